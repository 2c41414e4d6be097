"""The weights of a model's conv and linear layers, for what acts on weights alone: penalties and gates."""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

from torch import Tensor, fx, nn
from torch.nn.utils import parametrize

from compress.attributes import value_of
from compress.errors import CompressError, suggestion
from compress.fake_quantization import quantized_weights
from compress.graph import layers_of
from compress.quantizer import OUTPUT_AXIS

_KINDS = (
    (nn.modules.conv._ConvTransposeNd, "conv_transpose"), (nn.modules.conv._ConvNd, "conv"), (nn.Linear, "linear")
)  # fmt: skip


@dataclass(frozen=True)
class LayerWeight:
    """The weight of a conv or linear layer.

    Attributes:
        layer: name of the layer.
        parameter: qualified name of the weight.
        axis: the dimension that counts output channels.
    """

    layer: str
    parameter: str
    axis: int

    def rows(self, model: nn.Module) -> Tensor:
        """`(out_ch, n)` the weight as `model` computes with it, differentiable."""
        return value_of(model, self.parameter).movedim(self.axis, 0).flatten(1)


def layer_weights(model: nn.Module, layers: Sequence[str] | None = None) -> list[LayerWeight]:
    """The weights of the conv and linear layers of any model, each once, in execution order where it is traced.

    Args:
        layers: only those of these names; None for all.

    Raises:
        CompressError: for a name that the model does not have.
    """
    found = list(_all(model))
    known = {weight.layer for weight in found}
    for name in layers or ():
        if name not in known:
            raise CompressError(f"Layer {name!r} is no conv or linear layer of this model. {suggestion(name, known)}")
    first: dict[int, LayerWeight] = {}
    for weight in found:
        if layers is None or weight.layer in layers:
            first.setdefault(_identity(model, weight.parameter), weight)
    return list(first.values())


def _identity(model: nn.Module, parameter: str) -> int:
    """Equal for names of one tied parameter, also where what is computed with is made from it."""
    owner, _, leaf = parameter.rpartition(".")
    module = model.get_submodule(owner)
    is_made = parametrize.is_parametrized(module, leaf)
    return id(module.parametrizations[leaf].original if is_made else getattr(module, leaf))


def _all(model: nn.Module) -> Iterator[LayerWeight]:
    if isinstance(model, fx.GraphModule):
        for layer in layers_of(model):
            if layer.kind != "embedding":
                yield LayerWeight(layer.name, layer.weight, OUTPUT_AXIS[layer.kind])
        for weight in quantized_weights(model):
            # A rounded bias has a single dimension.
            if value_of(model, weight.parameter).dim() > 1:
                yield LayerWeight(weight.parameter.removesuffix(".weight"), weight.parameter, weight.axis)
        return
    for name, module in model.named_modules():
        kind = next((kind for types, kind in _KINDS if isinstance(module, types)), None)
        if kind is not None:
            yield LayerWeight(name, f"{name}.weight" if name else "weight", OUTPUT_AXIS[kind])
