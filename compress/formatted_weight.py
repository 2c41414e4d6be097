"""Weights of a traced module that are kept in a stored format: simulated while training, decoded in the end."""

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor, fx, nn

from compress.attributes import copy_traced, sibling, value_of
from compress.folding import output_axis
from compress.graph import Layer, is_parameter
from compress.plan import LayerFormat
from compress.quantizer import Quantizer
from compress.weight_format import Parameters, WeightFormat
from compress.weight_formats import (
    AffineFormat,
    Bfloat16Format,
    BinaryFormat,
    CodebookFormat,
    Float16Format,
    Float32Format,
    PowerOfTwoFormat,
    SymmetricFormat,
    TernaryFormat,
)
from compress.weight_rows import RowLayout

_FORMATS = {kind.name: kind for kind in (
    AffineFormat, Bfloat16Format, BinaryFormat, CodebookFormat, Float16Format, Float32Format, PowerOfTwoFormat,
    SymmetricFormat, TernaryFormat,
)}  # fmt: skip


def make_format(scheme: str, bits: int, masked: bool) -> WeightFormat:
    """The number format of this name, see `LayerFormat.scheme`."""
    return _FORMATS[scheme](bits, masked)


class FormattedWeight(nn.Module):
    """Maps the float weight of a layer to what its stored format makes of it; the gradient passes through.

    Args:
        layer_format: scheme, bits and granularity.
        weight: the weight as it is now, from which the parameters of the format are found.
        axis: the dimension that counts its output channels.
        quantizer: who chooses the ranges.
        kept: bool of the weight's shape, False where it is zero and stays so; None if it has no mask.
        trained: whether scales, offsets and centroids are trained with the weights.

    Raises:
        DataError: if the weight has NaN or infinite values.
    """

    kept: Tensor | None

    def __init__(
        self, layer_format: LayerFormat, weight: Tensor, axis: int, quantizer: Quantizer, kept: Tensor | None = None,
        trained: bool = False,
    ) -> None:  # fmt: skip
        super().__init__()
        self.layer_format = layer_format
        self.layout = RowLayout(tuple(weight.shape), layer_format.granularity, axis, layer_format.group_size)
        self.format = make_format(layer_format.scheme, layer_format.bits, kept is not None)
        self.register_buffer("kept", None if kept is None else kept.clone())
        with torch.no_grad():
            fitted = self.format.fit(self._rows(weight), self._kept(weight.device), quantizer)
        self._fitted = tuple(fitted)
        for name, value in fitted.items():
            if trained and value.is_floating_point():
                self.register_parameter(name, nn.Parameter(value))
            else:
                self.register_buffer(name, value)

    def forward(self, weight: Tensor) -> Tensor:
        rows = self.format.simulate(self._rows(weight), self._kept(weight.device), self.fitted())
        return self.layout.tensor(rows).to(weight.dtype)

    def fitted(self) -> Parameters:
        """The parameters of the format by name."""
        return {name: getattr(self, name) for name in self._fitted}

    @torch.no_grad()
    def symbols(self, weight: Tensor) -> Tensor:
        """What is stored of this weight: symbols of its shape."""
        return self.layout.tensor(self.format.encode(self._rows(weight), self._kept(weight.device), self.fitted()))

    def _rows(self, weight: Tensor) -> Tensor:
        return self.layout.rows(weight).float()

    def _kept(self, device: torch.device) -> Tensor:
        return self.layout.real(device) if self.kept is None else self.layout.rows(self.kept)


@dataclass(frozen=True)
class FormattedEntry:
    """Where a weight is formatted.

    Attributes:
        parameter: qualified name of the float weight.
        holder: qualified name of the `FormattedWeight`.
        module: it.
        nodes: its calls in the graph, one for each reader of the weight.
    """

    parameter: str
    holder: str
    module: FormattedWeight
    nodes: tuple[fx.Node, ...]


def formatted_weights(module: nn.Module) -> list[FormattedEntry]:
    """The formatted weights of a prepared module, in execution order; none of any other module."""
    found: dict[str, list[fx.Node]] = {}
    for node in module.graph.nodes if isinstance(module, fx.GraphModule) else ():
        if node.op == "call_module" and isinstance(module.get_submodule(node.target), FormattedWeight):
            found.setdefault(node.target, []).append(node)
    return [FormattedEntry(nodes[0].args[0].target, holder, module.get_submodule(holder), tuple(nodes))
            for holder, nodes in found.items()]  # fmt: skip


def weight_masks(module: nn.Module) -> set[fx.Node]:
    """The calls of a prepared module that hold the zeros of a weight and leave its other values as they are."""
    entries = formatted_weights(module)
    return {node for entry in entries if entry.module.layer_format.scheme == "float32" for node in entry.nodes}


def format_weight_(module: fx.GraphModule, name: str, formatted: FormattedWeight) -> str:
    """Let every reader of the weight `name` see its formatted values, in place; the name of the holder.

    Tied names are one weight. Call `module.recompile()` after the last one.
    """
    weight = value_of(module, name)
    holder = sibling(module, name, name.rpartition(".")[2] + "_format")
    module.add_submodule(holder, formatted)
    for node in list(_readers(module, weight)):
        with module.graph.inserting_after(node):
            call = module.graph.call_module(holder, (node,))
        node.replace_all_uses_with(call, delete_user_cb=lambda user, call=call: user is not call)
    return holder


def insert_stored_formats(
    module: fx.GraphModule, layers: Sequence[Sequence[Layer]], formats: Mapping[str, LayerFormat],
    quantizer: Quantizer, trained: bool = False, on_integers: bool = True,
) -> None:  # fmt: skip
    """Let layers see their weights in stored formats, in place; and masks of any format, which are the zeros now.

    Args:
        layers: those that share a weight together, from before fake-quantisers were inserted.
        formats: layer name -> format.
        quantizer, trained: see `FormattedWeight`.
        on_integers: whether formats that engines compute on have fake-quantisers, and get a mask at the most.
    """
    for group in layers:
        found = next((formats[layer.name] for layer in group if layer.name in formats), None)
        if found is None:
            continue
        weight = value_of(module, group[0].weight)
        kept = weight.detach() != 0 if found.density < 1 else None
        found = LayerFormat(32, "float32") if found.on_integers and on_integers else found
        if found.scheme == "float32" and kept is None:
            continue
        axis = min(output_axis(layer) for layer in group)
        format_weight_(module, group[0].weight, FormattedWeight(found, weight, axis, quantizer, kept, trained))
    module.graph.lint()
    module.recompile()


def bake_formats(module: fx.GraphModule) -> fx.GraphModule:
    """A copy without stored formats: the weights have the decoded values, bit for bit those of the simulation.

    What is quantised on integers stays as it is. Names of weights stay; those of scales and masks go.
    """
    module = copy_traced(module)
    for entry in formatted_weights(module):
        with torch.no_grad():
            weight = value_of(module, entry.parameter)
            weight.copy_(entry.module(weight))
        for node in entry.nodes:
            node.replace_all_uses_with(node.args[0])
            module.graph.erase_node(node)
        module.delete_submodule(entry.holder)
    module.graph.lint()
    module.recompile()
    return module


def _readers(module: fx.GraphModule, weight: Tensor) -> Iterator[fx.Node]:
    return (node for node in module.graph.nodes if is_parameter(node) and value_of(module, node.target) is weight)
