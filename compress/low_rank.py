"""Layers of low rank: a copy of a model in which chosen convs and linears are two."""

from collections.abc import Mapping
from dataclasses import dataclass

from torch import Tensor, fx, nn

from compress.attributes import copy_traced, remove_unused, value_of
from compress.errors import PlanError
from compress.factors import RIDGE, factor_weight
from compress.graph import argument, place
from compress.splitting import SCHEMES, Split, find_splits, part_names


@dataclass(frozen=True)
class Factorization:
    """How one layer becomes two.

    Attributes:
        rank: channels between the two, 1 or more.
        scheme: `"channel"` or `"spatial"`, see `compress.factorizers`.
    """

    rank: int
    scheme: str = "channel"

    def __post_init__(self) -> None:
        if isinstance(self.rank, bool) or not isinstance(self.rank, int) or self.rank < 1:
            raise PlanError(f"The 'rank' parameter of Factorization must be an int of at least 1. Got {self.rank!r}.")
        if self.scheme not in SCHEMES:
            raise PlanError(
                f"The 'scheme' parameter of Factorization must be one of {sorted(SCHEMES)}. Got {self.scheme!r}."
            )


def factorize(
    module: fx.GraphModule,
    ranks: Mapping[str, int | Factorization],
    second_moments: Mapping[str, Tensor] | None = None,
    ridge: float = RIDGE,
) -> fx.GraphModule:
    """A copy in which each named layer is two: `NAME.reduce`, and `NAME.expand` with its bias.

    Names and shapes depend on `ranks` alone, so the copy of another seed, made without second moments, takes the
    state dict. Other parameters keep their names, and calls the names of their nodes.

    Args:
        module: a traced module; it stays as it is.
        ranks: layer name -> rank (of scheme `"channel"`) or `Factorization`.
        second_moments: layer name -> second moment of its inputs, from `collect_input_moments`; the outputs of these
            layers come closest then, instead of their weights.
        ridge: see `factor_weight`.

    Raises:
        PlanError: for an unknown layer, one that cannot be factorised, or a rank above its full rank.
    """
    module = copy_traced(module)
    given = second_moments or {}
    calls = []
    for split, rank in _chosen(module, ranks):
        layer, node = split.layer, split.layer.node
        weight = value_of(module, layer.weight)
        (factors,) = factor_weight(weight, split.first_dims, [rank], given.get(layer.name), ridge)
        bias = value_of(module, layer.bias) if layer.bias else argument(node, 2, "bias")
        # In plain order, as masks and formats leave them: else a loaded model would add its products in another order.
        parts = [w.contiguous() for w in (factors.reduce, factors.expand)]
        weights = [nn.Parameter(part, requires_grad=weight.requires_grad) for part in parts]
        calls.append((split, split.arguments(), weights, bias))
        node.args, node.kwargs = node.args[:1], {}
    remove_unused(module)  # the names must be free before what takes their place gets them
    for split, arguments, weights, bias in calls:
        _wire(module, split, arguments, weights, bias)
    module.graph.lint()
    module.recompile()
    module.train(module.training)  # the new submodules too
    return module


def _chosen(module: fx.GraphModule, ranks: Mapping[str, int | Factorization]) -> list[tuple[Split, int]]:
    wanted = {name: Factorization(rank) if isinstance(rank, int) else rank for name, rank in ranks.items()}
    schemes = {scheme: find_splits(module, scheme) for scheme in {wish.scheme for wish in wanted.values()}}
    chosen = []
    for name, wish in wanted.items():
        splits, refused = schemes[wish.scheme]
        if name not in splits:
            reason = dict(refused).get(name, "this model has no layer of that name")
            raise PlanError(f"Layer {name!r} cannot be factorised: {reason}.")
        if wish.rank > splits[name].full_rank:
            raise PlanError(
                f"The rank of layer {name!r} must be at most {splits[name].full_rank}, its full rank. Got {wish.rank}."
            )
        chosen.append((splits[name], wish.rank))
    return chosen


def _wire(
    module: fx.GraphModule,
    split: Split,
    arguments: tuple[tuple, tuple],
    weights: list[nn.Parameter],
    bias: Tensor | fx.Node | None,
) -> None:
    """The first layer before the node; the node itself becomes the second one and keeps its name and readers."""
    node, graph = split.layer.node, module.graph
    first, second = part_names(split.layer.name)
    place(module, f"{first}.weight", weights[0])
    place(module, f"{second}.weight", weights[1])
    with graph.inserting_before(node):
        reduce = graph.get_attr(f"{first}.weight")
        expand = graph.get_attr(f"{second}.weight")
        if isinstance(bias, Tensor):
            place(module, f"{second}.bias", bias)
            bias = graph.get_attr(f"{second}.bias")
        # Trailing arguments follow the bias by position, so it is spelt out where there is none.
        between = graph.call_function(node.target, (node.args[0], reduce, None, *arguments[0]))
    node.args = (between, expand, bias, *arguments[1])
