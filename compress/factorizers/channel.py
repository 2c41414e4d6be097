"""A conv to few channels with the whole kernel, then a 1 x 1 conv; a linear layer to few features, then another."""

from compress.patches import LinearMap


class ChannelFactorizer:
    """The first layer has the kernel, stride, padding and dilation; the second mixes its channels.

    Denton, Zaremba, Bruna, LeCun, Fergus 2014, "Exploiting linear structure within convolutional networks for efficient
    evaluation" (NeurIPS, arXiv:1404.0736); Zhang, Zou, He, Sun 2016, "Accelerating very deep convolutional networks for
    classification and detection" (TPAMI, arXiv:1505.06798). Linear layers become two (Sainath et al. 2013).
    """

    name = "channel"

    def first_dims(self, how: LinearMap) -> tuple[int, ...]:
        return tuple(range(how.dims))
