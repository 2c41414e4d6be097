"""The pieces that all families are made of, in the usual order: conv or linear, norm, activation."""

from collections import OrderedDict

from torch import Tensor, nn

from experiments.zoo.inputs import InputSpec

ACTIVATIONS: dict[str, type[nn.Module]] = {
    "relu": nn.ReLU,
    "leaky_relu": nn.LeakyReLU,
    "gelu": nn.GELU,
    "silu": nn.SiLU,
    "elu": nn.ELU,
    "tanh": nn.Tanh,
}
NORMS = ("batch", "layer", "group", "rms", "none")
# Groups of a group norm; every width is a multiple of it.
GROUPS = 4
_CONVS = {1: nn.Conv1d, 2: nn.Conv2d}
_BATCH_NORMS = {0: nn.BatchNorm1d, 1: nn.BatchNorm1d, 2: nn.BatchNorm2d}


def rounded(channels: float) -> int:
    """The multiple of `GROUPS` next to `channels`, at least one."""
    return max(GROUPS, GROUPS * round(channels / GROUPS))


def make_norm(name: str, channels: int, dims: int) -> nn.Module:
    """A norm over `channels`, the last dimension if `dims` is 0, else dimension 1 before `dims` extents."""
    if name == "none":
        return nn.Identity()
    if name == "batch":
        return _BATCH_NORMS[dims](channels)
    if name == "rms":
        return nn.RMSNorm(channels)
    if name == "layer" and not dims:
        return nn.LayerNorm(channels)
    return nn.GroupNorm(1 if name == "layer" else GROUPS, channels)


def _scaled(layer: nn.Module) -> nn.Module:
    """The layer with weights of variance 2 / fan-in (He et al. 2015): deep networks without norms can learn too."""
    nn.init.kaiming_normal_(layer.weight, nonlinearity="relu")
    if layer.bias is not None:
        nn.init.zeros_(layer.bias)
    return layer


def conv_block(
    dims: int,
    in_ch: int,
    out_ch: int,
    kernel: int,
    norm: str,
    activation: str | None,
    stride: int = 1,
    groups: int = 1,
) -> nn.Sequential:
    """Conv, norm and activation (none if None); an odd kernel keeps the extents, or halves them by its stride."""
    conv = _CONVS[dims](
        in_ch, out_ch, kernel, stride=stride, padding=kernel // 2, groups=groups, bias=norm in ("none", "layer")
    )
    layers = OrderedDict(conv=_scaled(conv), norm=make_norm(norm, out_ch, dims))
    if activation is not None:
        layers["activation"] = ACTIVATIONS[activation]()
    return nn.Sequential(layers)


def linear_block(in_ch: int, out_ch: int, norm: str, activation: str) -> nn.Sequential:
    """Linear layer, norm and activation."""
    linear = nn.Linear(in_ch, out_ch, bias=norm != "batch")
    return nn.Sequential(
        OrderedDict(linear=_scaled(linear), norm=make_norm(norm, out_ch, 0), activation=ACTIVATIONS[activation]())
    )


class ChannelInput(nn.Module):
    """Channels first: tokens become embeddings `(batch, channels, length)`, floats stay as they are.

    Attributes:
        channels: of what it gives.
    """

    def __init__(self, spec: InputSpec, embedding: int) -> None:
        super().__init__()
        self.embedding = nn.Embedding(spec.tokens, embedding) if spec.kind == "tokens" else None
        self.channels = embedding if spec.kind == "tokens" else spec.shape[0]

    def forward(self, inputs: Tensor) -> Tensor:
        return inputs if self.embedding is None else self.embedding(inputs).transpose(1, 2)


class Classifier(nn.Module):
    """A linear layer over channels-first values: over their mean, all of them, or the last position.

    Args:
        pooling: `"mean"`, `"flatten"` or `"last"`.
        size: extents of the values.
    """

    def __init__(self, pooling: str, channels: int, size: tuple[int, ...], classes: int) -> None:
        super().__init__()
        self.pooling = pooling
        n_places = 1
        for extent in size:
            n_places *= extent
        self.linear = nn.Linear(channels * (n_places if pooling == "flatten" else 1), classes)

    def forward(self, x: Tensor) -> Tensor:
        x = x.flatten(2)
        if self.pooling == "mean":
            x = x.mean(2)
        elif self.pooling == "last":
            x = x[:, :, -1]
        return self.linear(x.flatten(1))
