"""What the operations of an integer graph are in ONNX."""

from collections.abc import Callable, Sequence
from typing import Any

import onnx
import torch
from onnxscript import opset21 as op

import compress.integer_graph as _operations  # noqa: F401  (registers them)


def translations() -> dict[Callable[..., Any], Callable[..., Any]]:
    """Operation of `compress.integer_graph` -> the ONNX nodes that compute it."""
    ops = torch.ops.autolabel_compress
    return {
        ops.quantize_activation.default: _quantize_activation, ops.dequantize_weight.default: _dequantize_weight,
        ops.unpack_weight.default: _unpack_weight, ops.dequantize_bias.default: _dequantize_bias,
        ops.lookup.default: _lookup, ops.gemm.default: _gemm, ops.global_average_pool.default: _global_average_pool,
        ops.quantize_dynamically.default: _quantize_dynamically, ops.integer_linear.default: _integer_linear,
        ops.integer_conv.default: _integer_conv,
    }  # fmt: skip


def _quantize_activation(x: Any, scale: Any, zero_point: Any) -> Any:
    return op.DequantizeLinear(op.QuantizeLinear(x, scale, zero_point), scale, zero_point)


def _dequantize_weight(integers: Any, scale: Any, axis: int) -> Any:
    return op.DequantizeLinear(integers, scale, axis=axis)


def _unpack_weight(integers: Any, scale: Any, axis: int) -> Any:
    # Not DequantizeLinear: engines keep that in the graph for their integer kernels and would redo it in every run.
    rank = len(integers.shape)
    others = [d for d in range(rank) if d != axis]
    spread = op.Unsqueeze(scale, op.Constant(value_ints=others)) if others else scale
    return op.Mul(op.Cast(integers, to=onnx.TensorProto.FLOAT), spread)


def _dequantize_bias(integers: Any, weight_scale: Any, input_scale: Any) -> Any:
    return op.DequantizeLinear(integers, op.Mul(weight_scale, input_scale), axis=0)


def _lookup(ids: Any, integers: Any, scale: Any, axis: int) -> Any:
    rows = op.Cast(op.Gather(integers, ids), to=onnx.TensorProto.FLOAT)
    return op.Mul(rows, scale if axis == 1 else op.Unsqueeze(op.Gather(scale, ids), op.Constant(value_ints=[-1])))


def _gemm(x: Any, weight: Any, bias: Any = None) -> Any:
    return op.Gemm(x, weight) if bias is None else op.Gemm(x, weight, bias)


def _quantize_dynamically(x: Any) -> Any:
    return op.DynamicQuantizeLinear(x)


def _integer_linear(x: Any, x_scale: Any, zero_point: Any, weight: Any, weight_scale: Any, bias: Any = None) -> Any:
    sums = op.Cast(op.MatMulInteger(x, weight, zero_point), to=onnx.TensorProto.FLOAT)
    y = op.Mul(sums, op.Mul(x_scale, weight_scale))
    return y if bias is None else op.Add(y, bias)


def _integer_conv(
    x: Any, x_scale: Any, zero_point: Any, weight: Any, weight_scale: Any, bias: Any, strides: Sequence[int],
    pads: Sequence[int], dilations: Sequence[int], groups: int,
) -> Any:  # fmt: skip
    sums = op.ConvInteger(x, weight, zero_point, strides=strides, pads=pads, dilations=dilations, group=groups)
    spatial = op.Constant(value_ints=list(range(1, 1 + len(strides))))
    scale = op.Mul(x_scale, op.Unsqueeze(weight_scale, spatial))
    y = op.Mul(op.Cast(sums, to=onnx.TensorProto.FLOAT), scale)
    return y if bias is None else op.Add(y, op.Unsqueeze(bias, spatial))


def _global_average_pool(x: Any) -> Any:
    return op.GlobalAveragePool(x)
