"""A prepared module rewritten to compute from stored integers: the form that exporters translate op by op."""

from collections import Counter
from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor, fx

from compress.attributes import copy_traced, remove_unused, set_buffer, sibling, value_of
from compress.dynamic_ranges import QUANTIZE_OP, ROUND_OP, sum_integers
from compress.fake_quantization import ACTIVATION_OP, INT32_LIMIT, WEIGHT_OP, integer_input, quantized_weights
from compress.graph import ATEN
from compress.patches import linear_map
from compress.quantizer import round_weight

_LIBRARY = "autolabel_compress"
_ADAPTIVE_POOLS = {
    ATEN.adaptive_avg_pool1d.default: ATEN.avg_pool1d.default,
    ATEN.adaptive_avg_pool2d.default: ATEN.avg_pool2d.default,
    ATEN.adaptive_avg_pool3d.default: ATEN.avg_pool3d.default,
}


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

    It computes what the simulation computes; only the order of sums differs.

    Args:
        module: from `prepare_quantized`, or any traced module.
        shapes: node name -> shape on example inputs, from `record_shapes`.
    """
    module = copy_traced(module)
    graph = module.graph
    for node in graph.nodes:
        if node.target in _ADAPTIVE_POOLS:
            _make_pool_plain(node, shapes)
        elif node.target is ROUND_OP:
            node.target = QUANTIZE_OP
    entries = quantized_weights(module)
    uses = Counter(id(value_of(module, entry.parameter)) for entry in entries)
    stored: dict[tuple[int, bool], tuple[str, str]] = {}
    for entry in entries:
        weight = value_of(module, entry.parameter)
        (layer,) = entry.node.users
        is_linear = layer.target is ATEN.linear.default
        # A linear stores its weight as (in, out), what engines multiply with, unless another layer shares it.
        transposed = is_linear and uses[id(weight)] == 1
        if (id(weight), transposed) not in stored:
            integers = round_weight(weight, value_of(module, entry.scale), entry.largest, entry.axis)
            name = sibling(module, entry.parameter, "integers")
            set_buffer(module, name, integers.t().contiguous() if transposed else integers)
            stored[id(weight), transposed] = (name, entry.scale)
        with graph.inserting_before(layer):
            integers, scales = (graph.get_attr(name) for name in stored[id(weight), transposed])
            if is_linear and not transposed:
                integers = graph.call_function(ATEN.permute.default, (integers, [1, 0]))
        if layer.target is ATEN.embedding.default:
            layer.target = torch.ops.autolabel_compress.lookup.default
            layer.args, layer.kwargs = (layer.args[1], integers, scales, entry.axis), {}
        elif layer.args[0].target is QUANTIZE_OP:
            sum_integers(layer, integers, scales, linear_map(layer, weight))
        else:
            matrix = is_linear and len(shapes[layer.name]) == 2
            _rewrite_layer(module, layer, integers, scales, entry.axis, matrix)
    for node in graph.nodes:
        if node.target is ACTIVATION_OP:
            zero = node.args[2].target
            if value_of(module, zero).dtype != torch.uint8:
                set_buffer(module, zero, value_of(module, zero).to(torch.uint8))
            node.target, node.args = torch.ops.autolabel_compress.quantize_activation.default, node.args[:3]
    _remove_dead(module)
    return module


def _make_pool_plain(node: fx.Node, shapes: Mapping[str, Any]) -> None:
    """Let an adaptive pool be a global one or one of fixed windows where its sizes allow: not every format knows it."""
    source, sizes = node.args[0], list(node.args[1])
    before = shapes[source.name][-len(sizes) :]
    if all(size == 1 for size in sizes):
        node.target, node.args = torch.ops.autolabel_compress.global_average_pool.default, (source,)
    elif all(size and not full % size for full, size in zip(before, sizes, strict=True)):
        window = [full // size for full, size in zip(before, sizes, strict=True)]
        node.target, node.args = _ADAPTIVE_POOLS[node.target], (source, window, window)


def _rewrite_layer(
    module: fx.GraphModule, layer: fx.Node, integers: fx.Node, scales: fx.Node, axis: int, matrix: bool
) -> None:
    """Let a conv or linear read its stored integers; a linear becomes the product that engines know."""
    graph, ops = module.graph, torch.ops.autolabel_compress
    is_linear = layer.target is ATEN.linear.default
    source = integer_input(layer)
    bias = layer.args[2] if len(layer.args) > 2 else None
    with graph.inserting_before(layer):
        target = ops.unpack_weight.default if source is None else ops.dequantize_weight.default
        weight = graph.call_function(target, (integers, scales, 1 - axis if is_linear else axis))
        if bias is not None and bias.target is WEIGHT_OP:
            bias = _rounded_bias(module, bias, scales, source, matrix or not is_linear)
    if not is_linear:
        layer.args = (layer.args[0], weight, bias, *layer.args[3:])
    elif matrix:
        layer.target, layer.args = ops.gemm.default, (layer.args[0], weight, bias)
    else:
        with graph.inserting_before(layer):
            product = graph.call_function(ATEN.matmul.default, (layer.args[0], weight))
        if bias is not None:
            layer.target, layer.args = ATEN.add.Tensor, (product, bias)
        else:
            layer.replace_all_uses_with(product)
            graph.erase_node(layer)


def _rounded_bias(
    module: fx.GraphModule, rounded: fx.Node, scales: fx.Node, source: fx.Node, as_integers: bool
) -> fx.Node:
    """The rounded bias as int32 times its unit, or as a float constant where the engine adds it to floats."""
    graph = module.graph
    weight_scale, input_scale = (value_of(module, node.target) for node in (scales, source.args[1]))
    unit = weight_scale * input_scale
    bias = value_of(module, rounded.args[0].target).detach()
    value = torch.fake_quantize_per_channel_affine(
        bias, unit, torch.zeros_like(unit, dtype=torch.int32), 0, -INT32_LIMIT, INT32_LIMIT
    )
    name = sibling(module, rounded.args[0].target, "rounded_bias")
    if not as_integers:
        set_buffer(module, name, value)
        return graph.get_attr(name)
    integers = torch.round(value.double() / unit.double()).clamp(-INT32_LIMIT, INT32_LIMIT).to(torch.int32)
    set_buffer(module, name, integers)
    arguments = (graph.get_attr(name), graph.get_attr(scales.target), graph.get_attr(source.args[1].target))
    return graph.call_function(torch.ops.autolabel_compress.dequantize_bias.default, arguments)


def _remove_dead(module: fx.GraphModule) -> None:
    for node in reversed(list(module.graph.nodes)):
        if node.op == "call_function" and node.target in (WEIGHT_OP, ATEN.mul.Tensor) and not node.users:
            module.graph.erase_node(node)
    remove_unused(module)
