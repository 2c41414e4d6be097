"""A k x 1 conv to few channels, then a 1 x k conv."""

from compress.patches import LinearMap


class SpatialFactorizer:
    """The first conv works along the first spatial dimension, the second along the others.

    A layer with fewer than two spatial dimensions has none to divide: the first of the two has what there is.

    Jaderberg, Vedaldi, Zisserman 2014, "Speeding up convolutional neural networks with low rank expansions" (BMVC,
    arXiv:1405.3866), scheme 2.
    """

    name = "spatial"

    def first_dims(self, how: LinearMap) -> tuple[int, ...]:
        return (0,)[: how.dims]
