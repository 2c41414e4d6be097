"""Fake-quantisers written into a traced graph: rounding that a state dict can fill and training can pass through."""

from collections.abc import Mapping
from dataclasses import dataclass

import torch
from torch import fx, nn

from compress.activation_edges import activation_edges, moves_values
from compress.attributes import copy_traced, set_buffer, sibling, value_of
from compress.dynamic_ranges import ROUND_OP, insert_dynamic_ranges
from compress.errors import PlanError
from compress.folding import output_axis
from compress.graph import ATEN, Layer, is_parameter, layers_of
from compress.plan import LayerFormat
from compress.quantizer import ACTIVATION_LEVELS, INTEGER_BITS, largest_integer

WEIGHT_OP = ATEN.fake_quantize_per_channel_affine.default
ACTIVATION_OP = ATEN.fake_quantize_per_tensor_affine.tensor_qparams
HOLDER = "activation_ranges"
INT32_LIMIT = 2**31 - 1
# The largest integer of 8 bits in a reduced range.
_REDUCED = 63
_INTEGER_LAYERS = {ATEN.linear.default, ATEN.conv1d.default, ATEN.conv2d.default, ATEN.conv3d.default,
                   ATEN.conv1d.padding, ATEN.conv2d.padding, ATEN.conv3d.padding}  # fmt: skip


@dataclass(frozen=True)
class QuantizedWeight:
    """Where a weight is fake-quantised.

    Attributes:
        parameter: qualified name of the weight.
        bits: its format.
        largest: the largest integer: 2^(bits-1)-1, or 63 for 8 bits of reduced range.
        axis: the dimension with one scale per index.
        scale: qualified name of the buffer with the scales.
        node: the fake-quantiser in the graph.
    """

    parameter: str
    bits: int
    largest: int
    axis: int
    scale: str
    node: fx.Node


def check_formats(module: fx.GraphModule, formats: Mapping[str, LayerFormat]) -> None:
    """Raises PlanError for a layer that the module does not have, or two formats of one tied weight."""
    layers = list(layers_of(module))
    known = {layer.name for layer in layers}
    for name in formats:
        if name not in known:
            raise PlanError(
                f"The plan has a format for layer {name!r}, which this model does not have. Its layers look like "
                f"{sorted(known)[:3]}."
            )
    for group in tied_layers(module):
        first, *others = [layer.name for layer in group if layer.name in formats] or [None]
        for name in others:
            if formats[name] != formats[first]:
                raise PlanError(
                    f"Layers {first!r} and {name!r} share one weight but the plan gives them two formats: "
                    f"{formats[first].to_json()} and {formats[name].to_json()}. Give both the same."
                )


def tied_layers(module: fx.GraphModule) -> list[list[Layer]]:
    """The layers in execution order, those that share one weight together."""
    tied: dict[int, list[Layer]] = {}
    for layer in layers_of(module):
        tied.setdefault(id(value_of(module, layer.weight)), []).append(layer)
    return list(tied.values())


def insert_fake_quantizers(
    module: fx.GraphModule, formats: Mapping[str, LayerFormat], activation_ranges: str | None, reduce_range: bool
) -> fx.GraphModule:
    """A copy with fake-quantisers that still lack their ranges (all scales are 1): the form that a state dict fills.

    Formats that engines do not compute on (see `LayerFormat.on_integers`) are left out: their layers stay in float.

    Args:
        module: a traced module, batch norms folded.
        formats: layer name -> format of its weight.
        activation_ranges: of activations, as in a plan; None leaves them in float.
        reduce_range: see `prepare_quantized`.

    Raises:
        PlanError: for an unknown layer, or two formats of one tied weight.
    """
    check_formats(module, formats)
    formats = {name: layer_format for name, layer_format in formats.items() if layer_format.on_integers}
    module = copy_traced(module)
    if activation_ranges == "dynamic":
        insert_dynamic_ranges(module, formats)
    elif activation_ranges == "static":
        _insert_activation_quantizers(module, formats)
    _insert_weight_quantizers(module, formats, reduce_range)
    _insert_bias_rounding(module)
    module.graph.lint()
    module.recompile()
    return module


def _insert_weight_quantizers(module: fx.GraphModule, formats: Mapping[str, LayerFormat], reduce_range: bool) -> None:
    graph = module.graph
    for group in tied_layers(module):
        named = [layer for layer in group if layer.name in formats]
        if not named:
            continue
        bits = formats[named[0].name].bits
        largest = largest_integer(bits)
        largest = min(largest, _REDUCED) if reduce_range else largest
        # One tied weight has one set of integers: a linear needs its scales at its outputs, an embedding can do either.
        axis = min(output_axis(layer) for layer in group)
        weight = value_of(module, group[0].weight)
        channels = weight.shape[axis]
        scale = sibling(module, group[0].weight, _leaf(group[0].weight) + "_scale")
        zero = sibling(module, group[0].weight, _leaf(group[0].weight) + "_zero_point")
        set_buffer(module, scale, torch.ones(channels, device=weight.device))
        set_buffer(module, zero, torch.zeros(channels, dtype=torch.int32, device=weight.device), persistent=False)
        for layer in group:
            position = 0 if layer.kind == "embedding" else 1
            with graph.inserting_before(layer.node):
                arguments = (
                    layer.node.args[position],
                    graph.get_attr(scale),
                    graph.get_attr(zero),
                    axis,
                    -largest,
                    largest,
                )
                node = graph.call_function(WEIGHT_OP, arguments)
            node.meta["bits"] = bits
            layer.node.update_arg(position, node)


def _insert_activation_quantizers(module: fx.GraphModule, formats: Mapping[str, LayerFormat]) -> None:
    graph = module.graph
    edges = activation_edges(module, formats)
    if not edges:
        return
    module.add_submodule(HOLDER, nn.Module())
    holder = module.get_submodule(HOLDER)
    for node, users in edges:
        device = next((p.device for p in module.parameters()), torch.device("cpu"))
        holder.register_buffer(f"{node.name}_scale", torch.ones((), device=device))
        holder.register_buffer(f"{node.name}_zero_point", torch.zeros((), dtype=torch.int32, device=device))
        with graph.inserting_after(node):
            zero = graph.get_attr(f"{HOLDER}.{node.name}_zero_point")
        with graph.inserting_after(node):
            scale = graph.get_attr(f"{HOLDER}.{node.name}_scale")
        with graph.inserting_after(zero):
            fake = graph.call_function(ACTIVATION_OP, (node, scale, zero, 0, ACTIVATION_LEVELS))
        for user in users:
            user.replace_input_with(node, fake)


def _insert_bias_rounding(module: fx.GraphModule) -> None:
    """Round biases to the unit of the integer sums that engines add them to: weight scale times input scale.

    Small as it is, without it the simulation of a deep net drifts from the file: rounding amplifies what differs.
    """
    graph = module.graph
    for entry in quantized_weights(module):
        for layer in list(entry.node.users):
            source = integer_input(layer)
            bias = layer.args[2] if len(layer.args) > 2 else None
            if source is None or not is_parameter(bias) or entry.axis != 0:
                continue
            with graph.inserting_before(layer):
                unit = graph.call_function(ATEN.mul.Tensor, (entry.node.args[1], source.args[1]))
                arguments = (bias, unit, entry.node.args[2], 0, -INT32_LIMIT, INT32_LIMIT)
                layer.update_arg(2, graph.call_function(WEIGHT_OP, arguments))


def integer_input(layer: fx.Node) -> fx.Node | None:
    """The fake-quantiser of a static range behind the input of a conv or linear, or None."""
    if layer.target not in _INTEGER_LAYERS:
        return None
    source = layer.args[0]
    while moves_values(source):
        source = source.args[0]
    return source if source.target is ACTIVATION_OP else None


def quantized_weights(module: fx.GraphModule) -> list[QuantizedWeight]:
    """Where the weights of a prepared module are fake-quantised, in execution order; empty for a float module."""
    # The scales of a rounded bias are computed, those of a weight are read.
    nodes = [node for node in module.graph.nodes
             if node.op == "call_function" and node.target is WEIGHT_OP and is_parameter(node.args[1])]  # fmt: skip
    reduced = all(node.args[5] <= _REDUCED for node in nodes)
    found = []
    for node in nodes:
        weight, scale, _, axis, _, largest = node.args
        weight = weight.args[0] if weight.op == "call_module" else weight  # a mask may lie between
        bits = node.meta.get("bits") or _bits_of(largest, reduced)
        found.append(QuantizedWeight(weight.target, bits, largest, axis, scale.target, node))
    return found


def _bits_of(largest: int, reduced: bool) -> int:
    """The bits of a graph that was traced anew and lost them: 63 is of 7 bits, or of 8 where all ranges are reduced."""
    bits = next((bits for bits in sorted(INTEGER_BITS) if largest_integer(bits) >= largest), 8)
    return 8 if bits == 7 and reduced else bits


def quantizes_activations(module: fx.GraphModule) -> bool:
    """Whether any activation of this module is fake-quantised."""
    return any(node.target in (ACTIVATION_OP, ROUND_OP) for node in module.graph.nodes)


def _leaf(name: str) -> str:
    return name.rpartition(".")[2]
