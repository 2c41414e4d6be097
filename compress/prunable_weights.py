"""The weights of a model that masks may hold, found by name in a traced module and in any other."""

from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from fnmatch import fnmatchcase

from torch import Tensor, fx, nn
from torch.nn.utils import parametrize

from compress.errors import PlanError
from compress.fake_quantization import WEIGHT_OP
from compress.graph import LAYER_OPS, Layer, is_parameter

_CONVS = (nn.Conv1d, nn.Conv2d, nn.Conv3d)
_TRANSPOSED = (nn.ConvTranspose1d, nn.ConvTranspose2d, nn.ConvTranspose3d)


@dataclass(frozen=True, eq=False)
class PrunableWeight:
    """The weight of one layer.

    Attributes:
        name: of the layer, see `compress.graph.Layer`.
        kind: `"conv"`, `"conv_transpose"`, `"linear"` or `"embedding"`.
        tensor: the parameter that an optimizer changes; of a parametrized weight the original.
    """

    name: str
    kind: str
    tensor: Tensor

    def outputs_first(self, values: Tensor) -> Tensor:
        """A view of `values`, shaped like the weight, as `(out_ch, in_ch, *kernel)`, or back; it undoes itself."""
        return values.transpose(0, 1) if self.kind in ("conv_transpose", "embedding") else values


def prunable_weights(module: nn.Module, skip: Iterable[str] = ()) -> dict[str, PrunableWeight]:
    """The weights of all conv, linear and embedding layers by layer name, in execution (or definition) order.

    A tied weight is found once, under the first of its names. Fake-quantisers between a weight and its layer, and
    parametrizations (`torch.nn.utils.parametrize`), are looked through to the float parameter behind them. A weight
    that several parameters make together (weight norm) is none of them.

    Args:
        module: traced or not.
        skip: names to leave out, with wildcards (`"classifier*"`).

    Raises:
        PlanError: if an entry of `skip` names no layer.
    """
    traced = isinstance(module, fx.GraphModule)
    places = _traced_places(module) if traced else _module_places(module)
    found: dict[str, PrunableWeight] = {}
    seen: set[int] = set()
    for weight, kind in places:
        tensor = _parameter_behind(module, weight)
        if tensor is not None and id(tensor) not in seen:
            seen.add(id(tensor))
            name = weight.removesuffix(".weight")
            found[name] = PrunableWeight(name, kind, tensor)
    skipped = {name for text in skip for name in matching_layers(found, text)}
    return {name: weight for name, weight in found.items() if name not in skipped}


def matching_layers(names: Iterable[str], text: str) -> list[str]:
    """The names that a name with wildcards stands for.

    Raises:
        PlanError: if there is none.
    """
    names = list(names)
    found = [name for name in names if fnmatchcase(name, text)]
    if not found:
        raise PlanError(f"{text!r} names no layer of this model. Its layers look like {names[:3]}.")
    return found


def prunable_layers(module: fx.GraphModule) -> Iterator[Layer]:
    """Every use of a weight in a traced module, also of one that is fake-quantised."""
    for node in module.graph.nodes:
        kind = LAYER_OPS.get(node.target) if node.op == "call_function" else None
        if kind is None:
            continue
        weight = node.args[0] if kind == "embedding" else node.args[1]
        while isinstance(weight, fx.Node) and weight.target is WEIGHT_OP:
            weight = weight.args[0]
        if is_parameter(weight):
            yield Layer(weight.target.removesuffix(".weight"), kind, node, weight.target, None)


def _traced_places(module: fx.GraphModule) -> Iterator[tuple[str, str]]:
    for layer in prunable_layers(module):
        yield layer.weight, layer.kind


def _module_places(module: nn.Module) -> Iterator[tuple[str, str]]:
    """`(qualified name of the weight, kind)` of the layers of a module that was not traced."""
    for name, layer in module.named_modules():
        prefix = f"{name}." if name else ""
        if isinstance(layer, nn.MultiheadAttention) and layer.in_proj_weight is not None:
            yield f"{prefix}in_proj_weight", "linear"
        for kind, types in (("conv", _CONVS), ("conv_transpose", _TRANSPOSED),
                            ("linear", nn.Linear), ("embedding", nn.Embedding)):  # fmt: skip
            if isinstance(layer, types):
                yield f"{prefix}weight", kind


def _parameter_behind(module: nn.Module, name: str) -> Tensor | None:
    owner, _, leaf = name.rpartition(".")
    holder = module.get_submodule(owner)
    if parametrize.is_parametrized(holder, leaf):
        return getattr(holder.parametrizations[leaf], "original", None)
    value = getattr(holder, leaf)
    return value if isinstance(value, nn.Parameter) else None
