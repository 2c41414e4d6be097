"""Activations rounded to 256 levels over a range that is taken from each tensor when it is there.

No calibration data is needed, and no input is out of range; in return each tensor is read once more at run time, and
the outputs of an example depend a little on the other examples of its batch. The operators are those of ONNX:
DynamicQuantizeLinear, MatMulInteger and ConvInteger.
"""

import operator
from collections.abc import Callable, Collection, Sequence
from typing import Any

import torch
from torch import Tensor, fx
from torch.nn import functional as F

from compress.graph import layers_of
from compress.patches import LinearMap
from compress.quantizer import ACTIVATION_LEVELS

_CONVS = {1: F.conv1d, 2: F.conv2d, 3: F.conv3d}


def _operator(function: Callable[..., Any]) -> Any:
    """The function as one operation of a traced graph; its own body tells the shapes that come out."""
    made = torch.library.custom_op(f"autolabel_compress::{function.__name__}", function, mutates_args=())
    made.register_fake(function)
    return made


def dynamic_parameters(x: Tensor) -> tuple[Tensor, Tensor]:
    """`(scale, zero_point)` of uint8 levels over the values of `x` and zero, both float32 without dimensions.

    As ONNX's DynamicQuantizeLinear: `scale = (max(0, max x) - min(0, min x)) / 255`, and
    `zero_point = round(-min(0, min x) / scale)`, halves to even. The scale of a tensor of zeros is 1. Values that are
    NaN or infinite give parameters that are not finite. (Affine levels: Krishnamoorthi 2018, "Quantizing deep
    convolutional networks for efficient inference: a whitepaper", arXiv:1806.08342.)
    """
    low, high = torch.aminmax(x.float())
    low, high = low.clamp(max=0.0), high.clamp(min=0.0)
    scale = (high - low) / ACTIVATION_LEVELS
    scale = torch.where(scale == 0, 1.0, scale)
    return scale, torch.round(-low / scale).clamp(0, ACTIVATION_LEVELS)


def _levels(x: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    scale, zero_point = dynamic_parameters(x)
    return (torch.round(x.float() / scale) + zero_point).clamp(0, ACTIVATION_LEVELS), scale, zero_point


@_operator
def round_dynamically(x: Tensor) -> Tensor:
    """`x` rounded to uint8 levels over its own range and back; the gradient passes straight through."""
    levels, scale, zero_point = _levels(x)
    return ((levels - zero_point) * scale).to(x.dtype)


@_operator
def quantize_dynamically(x: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """`(levels, scale, zero_point)` of `x`: uint8 of its shape, float32, uint8."""
    levels, scale, zero_point = _levels(x)
    return levels.to(torch.uint8), scale, zero_point.to(torch.uint8)


@_operator
def integer_linear(
    x: Tensor, x_scale: Tensor, zero_point: Tensor, weight: Tensor, weight_scale: Tensor, bias: Tensor | None
) -> Tensor:
    """A linear layer on levels `x` and an int8 `(in_ch, out_ch)` weight, summed as integers and scaled to float32."""
    sums = (x.double() - zero_point.double()) @ weight.double()
    y = sums.float() * (x_scale * weight_scale)
    return y if bias is None else y + bias


@_operator
def integer_conv(
    x: Tensor,
    x_scale: Tensor,
    zero_point: Tensor,
    weight: Tensor,
    weight_scale: Tensor,
    bias: Tensor | None,
    strides: Sequence[int],
    pads: Sequence[int],
    dilations: Sequence[int],
    groups: int,
) -> Tensor:
    """A convolution on levels `x` and an int8 weight, summed as integers and scaled to float32.

    `pads` as in ONNX: before each spatial dimension, then after each.
    """
    dims = len(strides)
    ends = [amount for d in reversed(range(dims)) for amount in (pads[d], pads[dims + d])]
    padded = F.pad(x.double() - zero_point.double(), ends)
    sums = _CONVS[dims](padded, weight.double(), None, strides, 0, dilations, groups)
    spread = (-1, *[1] * dims)
    y = sums.float() * (x_scale * weight_scale).reshape(spread)
    return y if bias is None else y + bias.reshape(spread)


# Nothing is out of range by more than half a step, so no value is cut off from training.
round_dynamically.register_autograd(lambda _, gradient: gradient)
ROUND_OP = torch.ops.autolabel_compress.round_dynamically.default
QUANTIZE_OP = torch.ops.autolabel_compress.quantize_dynamically.default


def insert_dynamic_ranges(module: fx.GraphModule, formats: Collection[str]) -> None:
    """Round, in place, the input of every conv and linear layer of these names; layers of one input share it."""
    rounded: dict[fx.Node, fx.Node] = {}
    for layer in list(layers_of(module)):
        if layer.name not in formats or layer.kind not in ("conv", "linear"):
            continue
        source = layer.node.args[0]
        if source not in rounded:
            with module.graph.inserting_before(layer.node):
                rounded[source] = module.graph.call_function(ROUND_OP, (source,))
        layer.node.update_arg(0, rounded[source])


def sum_integers(layer: fx.Node, integers: fx.Node, scales: fx.Node, how: LinearMap) -> None:
    """Let a conv or linear that reads `quantize_dynamically` compute on stored integers; a linear on `(in, out)`."""
    bias = layer.args[2] if len(layer.args) > 2 else None
    with layer.graph.inserting_before(layer):
        parts = [layer.graph.call_function(operator.getitem, (layer.args[0], i)) for i in range(3)]
    arguments = (*parts, integers, scales, bias)
    if not how.dims:
        layer.target, layer.args, layer.kwargs = torch.ops.autolabel_compress.integer_linear.default, arguments, {}
        return
    pads = [pair[side] for side in (0, 1) for pair in how.padding]
    arguments += (list(how.stride), pads, list(how.dilation), how.groups)
    layer.target, layer.args, layer.kwargs = torch.ops.autolabel_compress.integer_conv.default, arguments, {}
