"""Which layers can become two, at which ranks, and what the two are called with."""

import math
from dataclasses import dataclass
from typing import Any

from torch import Tensor, fx, nn

from compress.attributes import parameter_uses, value_of
from compress.errors import PlanError
from compress.factorizer import Factorizer
from compress.factorizers import ChannelFactorizer, SpatialFactorizer
from compress.factors import full_rank, per_rank, useful_rank
from compress.graph import Layer, argument, layers_of
from compress.patches import LinearMap, linear_map

SCHEMES: dict[str, Factorizer] = {kind.name: kind() for kind in (ChannelFactorizer, SpatialFactorizer)}
_OTHER_KINDS = {
    "embedding": "an embedding looks up its rows",
    "conv_transpose": "transposed convolutions are not divided",
}


@dataclass(frozen=True, eq=False)
class Split:
    """How one layer can become two.

    Attributes:
        layer: the layer.
        map: how it multiplies its weight.
        first_dims: the spatial dimensions that belong to the first of the two.
        shape: of the weight.
    """

    layer: Layer
    map: LinearMap
    first_dims: tuple[int, ...]
    shape: tuple[int, ...]

    @property
    def full_rank(self) -> int:
        """The rank at which nothing is lost."""
        return full_rank(self.shape, self.first_dims)

    @property
    def per_rank(self) -> tuple[int, int]:
        """Weights that each rank takes in the first and in the second layer."""
        return per_rank(self.shape, self.first_dims)

    @property
    def useful_rank(self) -> int:
        """The largest rank at which the two have fewer weights than the one; 0 for none."""
        return useful_rank(self.shape, self.first_dims)

    @property
    def n_weights(self) -> int:
        """Weights of the layer as it is."""
        return math.prod(self.shape)

    def arguments(self) -> tuple[tuple[Any, ...], tuple[Any, ...]]:
        """What follows the bias in the calls of the first and of the second layer: stride, padding, dilation."""
        if not self.map.dims:
            return (), ()
        node = self.layer.node
        padding = argument(node, 4, "padding", "valid" if node.target._overloadname == "padding" else 0)
        return self._arguments(padding, True), self._arguments(padding, False)

    def _arguments(self, padding: Any, first: bool) -> tuple[Any, ...]:
        own = [(d in self.first_dims) == first for d in range(self.map.dims)]
        stride, dilation = ([size if mine else 1 for size, mine in zip(sizes, own, strict=True)]
                            for sizes in (self.map.stride, self.map.dilation))  # fmt: skip
        if not isinstance(padding, str):  # 'same' and 'valid' pad nothing where the kernel is 1
            padding = [before if mine else 0 for (before, _), mine in zip(self.map.padding, own, strict=True)]
        return stride, padding, dilation


def first_dims(scheme: str, weight: Tensor) -> tuple[int, ...]:
    """The spatial dimensions of a layer with this weight that belong to the first of the two."""
    return SCHEMES[scheme].first_dims(LinearMap(weight.dim() - 2))


def find_splits(
    module: fx.GraphModule, scheme: str = "channel"
) -> tuple[dict[str, Split], tuple[tuple[str, str], ...]]:
    """`(splits, refused)`: layer name -> how it can become two, and (layer name, reason) of every other layer.

    Args:
        module: a traced module.
        scheme: the name of a factorizer, `"channel"` or `"spatial"`.

    Raises:
        PlanError: for another scheme.
    """
    if scheme not in SCHEMES:
        raise PlanError(f"The 'scheme' parameter of a factorization must be one of {sorted(SCHEMES)}. Got {scheme!r}.")
    uses = parameter_uses(module)
    modules = {name for name, _ in module.named_modules()}
    names: dict[int, int] = {}
    for _, parameter in module.named_parameters(remove_duplicate=False):
        names[id(parameter)] = names.get(id(parameter), 0) + 1
    found: dict[str, Split] = {}
    refused: dict[str, str] = {}
    for layer in layers_of(module):
        weight = value_of(module, layer.weight)
        shared = uses[id(weight)] > 1 or names.get(id(weight), 1) > 1
        how = linear_map(layer.node, weight)
        reason = _OTHER_KINDS.get(layer.kind) or _reason(module, modules, layer, how, shared)
        if reason is None:
            found[layer.name] = Split(layer, how, SCHEMES[scheme].first_dims(how), tuple(weight.shape))
        else:
            refused.setdefault(layer.name, reason)
    return found, tuple(refused.items())


def _reason(module: fx.GraphModule, modules: set[str], layer: Layer, how: LinearMap, shared: bool) -> str | None:
    """Why the layer has to stay one, or None."""
    weight = value_of(module, layer.weight)
    if shared:
        return "its weight is used more than once, or has several names"
    if not isinstance(weight, nn.Parameter):
        return "its weight is a buffer"
    if weight.dim() != (how.dims + 2 if how.dims else 2):
        return f"its weight has {weight.dim()} dimensions"
    if how.groups > 1:
        return f"its channels are in {how.groups} groups"
    taken = [name for name in part_names(layer.name) if name in modules]
    return f"the name {taken[0]!r} is taken" if taken else None


def part_names(layer: str) -> tuple[str, str]:
    """Names of the two layers that take the place of `layer`."""
    return f"{layer}.reduce", f"{layer}.expand"
