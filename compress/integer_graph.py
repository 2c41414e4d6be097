"""A prepared module rewritten to compute from stored integers: the form that exporters translate op by op."""

from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor, fx

from compress.activation_edges import MOVES
from compress.attributes import copy_module, remove_unused, set_buffer, sibling, value_of
from compress.fake_quantization import ACTIVATION_OP, quantized_weights
from compress.graph import ATEN, is_parameter
from compress.quantizer import round_weight

_LIBRARY = "autolabel_compress"


def _channels(scale: Tensor, dims: int, axis: int) -> Tensor:
    shape = [1] * dims
    shape[axis] = -1
    return scale.reshape(shape)


@torch.library.custom_op(f"{_LIBRARY}::quantize_activation", mutates_args=())
def quantize_activation(x: Tensor, scale: Tensor, zero_point: Tensor) -> Tensor:
    """`x` rounded to uint8 levels and back."""
    return torch.fake_quantize_per_tensor_affine(x, scale, zero_point.int(), 0, 255)


@torch.library.custom_op(f"{_LIBRARY}::dequantize_weight", mutates_args=())
def dequantize_weight(integers: Tensor, scale: Tensor, axis: int) -> Tensor:
    """Weight of a layer that an engine computes on integers."""
    return integers.float() * _channels(scale, integers.dim(), axis)


@torch.library.custom_op(f"{_LIBRARY}::unpack_weight", mutates_args=())
def unpack_weight(integers: Tensor, scale: Tensor, axis: int) -> Tensor:
    """Weight of a layer that an engine computes in float: unpacked once, when the file is loaded."""
    return integers.float() * _channels(scale, integers.dim(), axis)


@torch.library.custom_op(f"{_LIBRARY}::dequantize_bias", mutates_args=())
def dequantize_bias(integers: Tensor, weight_scale: Tensor, input_scale: Tensor) -> Tensor:
    """Bias as int32 multiples of weight scale times input scale, the unit of an integer sum."""
    return integers.float() * (weight_scale * input_scale)


@torch.library.custom_op(f"{_LIBRARY}::lookup", mutates_args=())
def lookup(ids: Tensor, integers: Tensor, scale: Tensor, axis: int) -> Tensor:
    """Rows of a quantised embedding."""
    return (integers.float() * _channels(scale, 2, axis))[ids]


@torch.library.custom_op(f"{_LIBRARY}::gemm", mutates_args=())
def gemm(x: Tensor, weight: Tensor, bias: Tensor | None) -> Tensor:
    """`x @ weight + bias` of matrices, `weight` being (in, out)."""
    y = x @ weight
    return y if bias is None else y + bias


@torch.library.custom_op(f"{_LIBRARY}::global_average_pool", mutates_args=())
def global_average_pool(x: Tensor) -> Tensor:
    """Mean over all dimensions after the channels, which stay with size 1."""
    return x.mean(dim=tuple(range(2, x.dim())), keepdim=True)


@quantize_activation.register_fake
def _(x: Tensor, scale: Tensor, zero_point: Tensor) -> Tensor:
    return torch.empty_like(x)


@dequantize_weight.register_fake
@unpack_weight.register_fake
def _(integers: Tensor, scale: Tensor, axis: int) -> Tensor:
    return integers.new_empty(integers.shape, dtype=torch.float32)


@dequantize_bias.register_fake
def _(integers: Tensor, weight_scale: Tensor, input_scale: Tensor) -> Tensor:
    return integers.new_empty(integers.shape, dtype=torch.float32)


@lookup.register_fake
def _(ids: Tensor, integers: Tensor, scale: Tensor, axis: int) -> Tensor:
    return integers.new_empty((*ids.shape, integers.shape[1]), dtype=torch.float32)


@gemm.register_fake
def _(x: Tensor, weight: Tensor, bias: Tensor | None) -> Tensor:
    return x.new_empty((x.shape[0], weight.shape[1]))


@global_average_pool.register_fake
def _(x: Tensor) -> Tensor:
    return x.new_empty((*x.shape[:2], *[1] * (x.dim() - 2)))


def integer_graph(module: fx.GraphModule, shapes: Mapping[str, Any]) -> fx.GraphModule:
    """A copy of a prepared (or float) module in which low-bit weights are int8 buffers and biases int32.

    It computes what the simulation computes, up to the rounding of biases to the unit of the integer sums (far below
    one level of the output).

    Args:
        module: from `prepare_quantized`, or any traced module.
        shapes: node name -> shape on example inputs, from `record_shapes`.
    """
    module = copy_module(module)
    graph = module.graph
    stored: dict[tuple[int, bool], tuple[str, str]] = {}
    for node in list(graph.nodes):
        if node.op != "call_function":
            continue
        if node.target is ATEN.adaptive_avg_pool2d.default and list(node.args[1]) == [1, 1]:
            node.target, node.args = torch.ops.autolabel_compress.global_average_pool.default, node.args[:1]
    tied: dict[int, int] = {}
    entries = quantized_weights(module)
    for entry in entries:
        key = id(module.get_parameter(entry.parameter))
        tied[key] = tied.get(key, 0) + len(entry.node.users)
    for entry in entries:
        weight = module.get_parameter(entry.parameter)
        scale = value_of(module, entry.scale)
        (layer,) = entry.node.users
        is_linear = layer.target is ATEN.linear.default
        # A linear stores its weight as (in, out), what engines multiply with, unless an embedding shares it.
        transposed = is_linear and tied[id(weight)] == 1
        key = (id(weight), transposed)
        if key not in stored:
            integers = round_weight(weight, scale, entry.largest, entry.axis)
            name = sibling(module, entry.parameter, "integers")
            set_buffer(module, name, integers.t().contiguous() if transposed else integers)
            stored[key] = (name, entry.scale)
        names = stored[key]
        with graph.inserting_before(layer):
            integers, scales = (graph.get_attr(name) for name in names)
        if layer.target is ATEN.embedding.default:
            layer.target = torch.ops.autolabel_compress.lookup.default
            layer.args, layer.kwargs = (layer.args[1], integers, scales, entry.axis), {}
        else:
            _rewrite_layer(
                module, layer, integers, scales, entry.axis, is_linear and len(shapes[layer.name]) == 2, transposed
            )
        graph.erase_node(entry.node)
    for node in list(graph.nodes):
        if node.target is ACTIVATION_OP:
            zero = node.args[2].target
            if value_of(module, zero).dtype != torch.uint8:
                set_buffer(module, zero, value_of(module, zero).to(torch.uint8))
            node.target, node.args = torch.ops.autolabel_compress.quantize_activation.default, node.args[:3]
    remove_unused(module)
    return module


def _rewrite_layer(
    module: fx.GraphModule,
    layer: fx.Node,
    integers: fx.Node,
    scales: fx.Node,
    axis: int,
    matrix: bool,
    transposed: bool,
) -> None:
    graph, ops = module.graph, torch.ops.autolabel_compress
    is_linear = layer.target is ATEN.linear.default
    source = layer.args[0]
    while source.op == "call_function" and source.target in MOVES:
        source = source.args[0]
    on_integers = source.target is ACTIVATION_OP or source.target is ops.quantize_activation.default
    with graph.inserting_before(layer):
        if is_linear and not transposed:
            integers = graph.call_function(ATEN.permute.default, (integers, [1, 0]))
        axis = 1 - axis if is_linear else axis
        target = ops.dequantize_weight.default if on_integers else ops.unpack_weight.default
        weight = graph.call_function(target, (integers, scales, axis))
    bias = layer.args[2] if len(layer.args) > 2 else None
    input_scale = source.args[1] if on_integers else None
    per_output = axis == (1 if is_linear else 0)
    if on_integers and per_output and is_parameter(bias) and (matrix or not is_linear):
        unit = value_of(module, scales.target).double() * value_of(module, input_scale.target).double()
        rounded = torch.round(value_of(module, bias.target).detach().double() / unit)
        name = sibling(module, scales.target, "integer_bias")
        set_buffer(module, name, rounded.clamp(-(2**31) + 1, 2**31 - 1).to(torch.int32))
        with graph.inserting_before(layer):
            arguments = (graph.get_attr(name), graph.get_attr(scales.target), graph.get_attr(input_scale.target))
            bias = graph.call_function(ops.dequantize_bias.default, arguments)
    if not is_linear:
        layer.update_arg(1, weight)
        if bias is not None:
            layer.update_arg(2, bias)
        return
    if matrix:
        layer.target, layer.args = ops.gemm.default, (layer.args[0], weight, bias)
        return
    with graph.inserting_before(layer):
        product = graph.call_function(ATEN.matmul.default, (layer.args[0], weight))
    if bias is None:
        layer.replace_all_uses_with(product)
        graph.erase_node(layer)
    else:
        layer.target, layer.args = ATEN.add.Tensor, (product, bias)
