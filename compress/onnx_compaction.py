"""Makes an ONNX model small: weights at their bits, short names, no metadata."""

import itertools

import ml_dtypes
import numpy as np
import onnx
from onnx import TensorProto, helper, numpy_helper

OPSET = 21
_SUMS = ("MatMulInteger", "ConvInteger")
_IMPLIED = {"pads": 0, "strides": 1, "dilations": 1}
_LANE_BITS = 64
_MIN_SAVED_BYTES = 400  # what the unpacking nodes themselves take
_MAX_7BIT = 2**20  # beyond it an eighth of the bytes is not worth seconds of unpacking at load
_PAIR_LIMIT = 128  # 255 * 128 < 2^15: a pair of products with uint8 activations that 16 bits can hold


def store_integers(model: onnx.ModelProto, safe: bool) -> None:
    """Store int8 weights at the bits they use, and those that could overflow as uint8 if `safe`; in place."""
    graph = model.graph
    shared: set[int] = set()
    for tensor in [t for t in graph.initializer if t.data_type == TensorProto.INT8]:
        values = numpy_helper.to_array(tensor)
        name = tensor.name
        users = [node for node in graph.node if tensor.name in node.input]
        if not users or values.ndim < 2:
            continue
        bits = _bits_needed(values)
        if bits == 4 and values.size >= 2 * _MIN_SAVED_BYTES // 4:
            _store_int4(graph, tensor, values)
        elif _worth_packing(bits, values.size):
            _store_lanes(graph, tensor, values, bits, shared)
        if safe and bits == 8 and _can_overflow(values, users):
            _store_uint8(graph, tensor, values, users)
        else:
            _add_zero_points(graph, name, values, users)


def _worth_packing(bits: int, size: int) -> bool:
    if bits in (4, 8) or (bits == 7 and size > _MAX_7BIT):
        return False
    return size * (8 - bits) / 8 > _MIN_SAVED_BYTES


def _add_zero_points(graph: onnx.GraphProto, name: str, values: np.ndarray, users: list[onnx.NodeProto]) -> None:
    """Zero points of zero: without them ONNX Runtime leaves matrix products in float."""
    for user in users:
        if user.op_type == "DequantizeLinear" and values.ndim == 2 and len(user.input) == 2:
            zeros = np.zeros(values.shape[_axis(user)], np.int8)
            graph.initializer.append(numpy_helper.from_array(zeros, f"{user.output[0]}_zero"))
            user.input.append(f"{user.output[0]}_zero")


def _axis(node: onnx.NodeProto) -> int:
    """The dimension of a weight that counts outputs, of a node that reads its integers."""
    default = 0 if node.op_type == "ConvInteger" else 1
    return next((attribute.i for attribute in node.attribute if attribute.name == "axis"), default)


def _bits_needed(values: np.ndarray) -> int:
    largest = int(np.abs(values.astype(np.int16)).max(initial=0))
    return next(bits for bits in range(2, 9) if 2 ** (bits - 1) - 1 >= largest or bits == 8)


def _can_overflow(values: np.ndarray, users: list[onnx.NodeProto]) -> bool:
    """Whether two weights of one output can, times 255 each, exceed 16 bits. Which two an engine pairs is not known."""
    axes = [_axis(user) for user in users if user.op_type in ("DequantizeLinear", *_SUMS)]
    if not axes:
        return False
    rows = np.moveaxis(np.abs(values.astype(np.int16)), axes[0], 0).reshape(values.shape[axes[0]], -1)
    if rows.shape[1] < 2:
        return False
    return bool((np.partition(rows, -2, axis=1)[:, -2:].sum(axis=1) > _PAIR_LIMIT).any())


def _store_uint8(graph: onnx.GraphProto, tensor: TensorProto, values: np.ndarray, users: list[onnx.NodeProto]) -> None:
    name = tensor.name
    tensor.CopyFrom(numpy_helper.from_array((values.astype(np.int16) + 128).astype(np.uint8), name))
    for user in users:
        # A sum's inputs are levels, weight, and the zero points of both; a convolution takes but one of a weight.
        shape, before = ((), 3) if user.op_type in _SUMS else ((values.shape[_axis(user)],), 2)
        zero = f"{name}_zero"
        if not any(t.name == zero for t in graph.initializer):
            graph.initializer.append(numpy_helper.from_array(np.full(shape, 128, np.uint8), zero))
        del user.input[before:]
        user.input.append(zero)


def _store_int4(graph: onnx.GraphProto, tensor: TensorProto, values: np.ndarray) -> None:
    name, packed = tensor.name, f"{tensor.name}_int4"
    tensor.CopyFrom(numpy_helper.from_array(values.astype(ml_dtypes.int4), packed))
    # Cast, not DequantizeLinear of INT4, which engines only run in float: the cast is done once, at load.
    graph.node.insert(0, helper.make_node("Cast", [packed], [name], to=TensorProto.INT8))


def _store_lanes(graph: onnx.GraphProto, tensor: TensorProto, values: np.ndarray, bits: int, shared: set[int]) -> None:
    """Pack into uint64 lanes: shift, mask, cut the padding off, look up, reshape. Engines fold all of it at load."""
    per_lane = _LANE_BITS // bits
    offset = 2 ** (bits - 1) - 1
    codes = (values.reshape(-1).astype(np.int16) + offset).astype(np.uint64)
    codes = np.pad(codes, (0, -codes.size % per_lane)).reshape(-1, per_lane)
    shifts = np.arange(per_lane, dtype=np.uint64) * np.uint64(bits)
    lanes = np.bitwise_or.reduce(codes << shifts, axis=1)[:, None]
    table = np.arange(2**bits, dtype=np.int16) - offset
    name = tensor.name
    constants = {f"{name}_shape": np.array(values.shape, np.int64), f"{name}_size": np.array([values.size], np.int64)}
    if bits not in shared:
        shared.add(bits)
        constants |= {f"shift_{bits}": shifts, f"mask_{bits}": np.array([2**bits - 1], np.uint64),
                      f"table_{bits}": table.clip(-128, 127).astype(np.int8)}  # fmt: skip
        if len(shared) == 1:
            constants |= {"zero": np.zeros(1, np.int64), "flat": np.array([-1], np.int64)}
    tensor.CopyFrom(numpy_helper.from_array(lanes, f"{name}_lanes"))
    graph.initializer.extend(numpy_helper.from_array(value, key) for key, value in constants.items())
    steps = [
        ("BitShift", [f"{name}_lanes", f"shift_{bits}"], {"direction": "RIGHT"}),
        ("BitwiseAnd", [f"mask_{bits}"], {}),
        ("Cast", [], {"to": TensorProto.INT32}),
        ("Reshape", ["flat"], {}),
        ("Slice", ["zero", f"{name}_size"], {}),
        ("Gather", [f"table_{bits}"], {}),
        ("Reshape", [f"{name}_shape"], {}),
    ]
    value = None
    nodes = []
    for i, (kind, inputs, attributes) in enumerate(steps):
        if value is not None:
            inputs = [*inputs, value] if kind == "Gather" else [value, *inputs]
        value = name if i == len(steps) - 1 else f"{name}_{i}"
        nodes.append(helper.make_node(kind, inputs, [value], **attributes))
    for i, node in enumerate(nodes):
        graph.node.insert(i, node)


def compact(model: onnx.ModelProto, dynamic: bool) -> None:
    """Shorten names and drop all that no engine needs; inputs and outputs keep their names. In place."""
    graph = model.graph
    keep = {value.name for value in (*graph.input, *graph.output)}
    short: dict[str, str] = {"": ""}
    free = (name for name in map(_base36, itertools.count(1)) if name not in keep)

    def shorten(name: str) -> str:
        if name in keep:
            return name
        if name not in short:
            short[name] = next(free)
        return short[name]

    _drop_duplicates(graph)
    for node in graph.node:
        node.name = ""
        node.doc_string = ""
        del node.metadata_props[:]
        _drop_defaults(node)
        node.input[:] = [shorten(name) for name in node.input]
        node.output[:] = [shorten(name) for name in node.output]
    used = {name for node in graph.node for name in node.input} | keep
    for tensor in graph.initializer:
        tensor.name = shorten(tensor.name)
        tensor.doc_string = ""
        del tensor.metadata_props[:]
    unused = [tensor for tensor in graph.initializer if tensor.name not in used]
    for tensor in unused:
        graph.initializer.remove(tensor)
    _name_free_dims(graph, dynamic)
    del graph.value_info[:]
    del graph.metadata_props[:]
    del model.metadata_props[:]
    del model.functions[:]
    graph.name, graph.doc_string, model.doc_string = "g", "", ""
    model.producer_name, model.producer_version, model.domain = "", "", ""
    del model.opset_import[:]
    model.opset_import.append(helper.make_opsetid("", OPSET))
    onnx.checker.check_model(model)


def _drop_defaults(node: onnx.NodeProto) -> None:
    """Drop the attributes that say what the operator's definition says anyway."""
    defaults = onnx.defs.get_schema(node.op_type, OPSET, node.domain).attributes
    for attribute in list(node.attribute):
        value = helper.get_attribute_value(attribute)
        default = defaults[attribute.name].default_value if attribute.name in defaults else onnx.AttributeProto()
        implied = default.type != onnx.AttributeProto.UNDEFINED and helper.get_attribute_value(default) == value
        repeated = isinstance(value, list) and value and set(value) == {_IMPLIED.get(attribute.name)}
        kernel = attribute.name == "kernel_shape" and node.op_type in ("Conv", "ConvTranspose")
        if implied or repeated or kernel:
            node.attribute.remove(attribute)


def _drop_duplicates(graph: onnx.GraphProto) -> None:
    """One initializer for equal small constants."""
    first: dict[bytes, str] = {}
    renamed: dict[str, str] = {}
    for tensor in list(graph.initializer):
        if len(tensor.raw_data) > 64 or not tensor.raw_data:
            continue
        key = bytes([tensor.data_type]) + repr(list(tensor.dims)).encode() + tensor.raw_data
        if key in first:
            renamed[tensor.name] = first[key]
            graph.initializer.remove(tensor)
        else:
            first[key] = tensor.name
    for node in graph.node:
        node.input[:] = [renamed.get(name, name) for name in node.input]


def _name_free_dims(graph: onnx.GraphProto, dynamic: bool) -> None:
    for value in (*graph.input, *graph.output):
        del value.metadata_props[:]
        value.doc_string = ""
        for i, dim in enumerate(value.type.tensor_type.shape.dim):
            if dim.HasField("dim_param"):
                dim.dim_param = ("batch", "tokens")[i] if dynamic and i < 2 and value in graph.input else dim.dim_param


def _base36(number: int) -> str:
    digits = "0123456789abcdefghijklmnopqrstuvwxyz"
    text = ""
    while number:
        number, rest = divmod(number, 36)
        text = digits[rest] + text
    return text or "0"
