"""ONNX files: float32, or integers with the scales of the plan, dynamic batch, nothing in them that is not needed."""

import contextlib
import logging
import warnings
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import onnx
import torch
from torch import Tensor, fx
from torch.utils import _pytree as pytree

from compress.capture import FAILURES, at_least_two, fixed_batch, free_sizes
from compress.errors import CompressError, ExportError, first_line
from compress.exporter import ExportedFile
from compress.files import write_atomic
from compress.folding import fold_batch_norm
from compress.formatted_weight import bake_formats
from compress.graph import as_inputs, record_shapes, require_traced
from compress.integer_graph import integer_graph
from compress.onnx_compaction import OPSET, compact, store_integers

_FOLD_ELEMENTS = 8
ENCODINGS = ("safe", "int8")


class OnnxExporter:
    """Writes ONNX (opset 21). A prepared module becomes Q/DQ around int8 operations with the scales of the simulation;
    convs and linears of dynamic ranges become DynamicQuantizeLinear and ConvInteger or MatMulInteger.

    Weights are stored at their bits: 4-bit ones as INT4, other low ones packed into integers that a few nodes unpack
    while the file is loaded. The engine then computes on 8-bit integers all the same. Stored formats (see
    `compress.formatted_weight`) leave as the float32 weights that they decode to: the file is no smaller for them.

    Args:
        int8_encoding: what 8-bit weights are stored as. CPUs without VNNI multiply uint8 by int8 in pairs that are
            summed in 16 bits and saturate silently. `"safe"`: a weight where no such pair can overflow (all of 6 bits
            and below, or of reduced range) stays int8; others become uint8 with zero point 128, exact on every
            machine, at up to twice the time of int8 on CPUs with VNNI. `"int8"`: always int8; only for files that
            stay on machines with VNNI or on ARM.

    Raises:
        CompressError: for another encoding.
    """

    name = "onnx"
    suffix = ".onnx"

    def __init__(self, int8_encoding: str = "safe") -> None:
        if int8_encoding not in ENCODINGS:
            raise CompressError(
                f"The 'int8_encoding' parameter of OnnxExporter must be one of {ENCODINGS}. Got {int8_encoding!r}."
            )
        self.int8_encoding = int8_encoding

    def export(self, module: fx.GraphModule, example_inputs: Any, path: str | Path) -> ExportedFile:
        require_traced(module, "export_onnx")
        args, kwargs = as_inputs(example_inputs)
        _check_outputs(module)
        module = fold_batch_norm(bake_formats(module), example_inputs).eval()
        module = integer_graph(module, record_shapes(module, args, kwargs))
        program, args, kwargs, dynamic = _export_program(module, args, kwargs)
        model = _translate(program)
        try:
            store_integers(model, safe=self.int8_encoding == "safe")
            compact(model, dynamic)
        except (onnx.checker.ValidationError, onnx.shape_inference.InferenceError) as error:
            raise ExportError(
                f"torch.onnx wrote a graph that is no valid ONNX: {_first_line(error)} An operation of the model has "
                f"no sound translation yet. Write it with plainer ones; known: EmbeddingBag is Embedding and a sum."
            ) from error
        data = model.SerializeToString(deterministic=True)
        write_atomic(path, lambda file: file.write(data))
        names = tuple(value.name for value in model.graph.input)
        return ExportedFile(Path(path), len(data), dynamic, names)


def _check_outputs(module: fx.GraphModule) -> None:
    """Raises ExportError for an output that is no tensor: files hold tensors alone."""
    output = next(node for node in module.graph.nodes if node.op == "output")
    for leaf in pytree.tree_leaves(output.args[0]):
        if leaf is not None and not isinstance(leaf, fx.Node):
            raise ExportError(f"The model returns {leaf!r}, which is no tensor. Return tensors alone to export it.")


def export_onnx(
    module: fx.GraphModule, example_inputs: Any, path: str | Path, int8_encoding: str = "safe"
) -> ExportedFile:
    """The ONNX file of a traced or prepared module, see `OnnxExporter`."""
    return OnnxExporter(int8_encoding).export(module, example_inputs, path)


def _export_program(module: fx.GraphModule, args: tuple, kwargs: dict) -> tuple[Any, tuple, dict, bool]:
    """The exported program with a free batch if the model allows it: `(program, args, kwargs, dynamic)`."""
    doubled = pytree.tree_map(_own, (args, kwargs))
    error: Exception | None = None
    for (a, k), dynamic in ((doubled, True), ((args, kwargs), False)):
        shapes = None
        if dynamic:
            shapes = tuple(pytree.tree_map(free_sizes, value) for value in (*a, *k.values()))
        try:
            with warnings.catch_warnings():
                warnings.simplefilter("ignore")
                program = torch.export.export(module, a, k, dynamic_shapes=shapes, strict=False)
            if not dynamic or fixed_batch(program.graph_module) is None:
                return program, a, k, dynamic
        except FAILURES as reason:
            error = reason
    raise ExportError(f"The module could not be exported by torch.export: {_first_line(error)}") from error


def _own(leaf: Any) -> Any:
    """A copy: of a view torch.export would also guard the tensor behind it, which its decompositions do not know."""
    return at_least_two(leaf).clone() if isinstance(leaf, Tensor) else leaf


def _translate(program: Any) -> onnx.ModelProto:
    # Here and not above: they take as long to import as all else of this package, and most processes write no file.
    from onnxscript.optimizer import optimize

    from compress.onnx_translations import translations

    try:
        with _quiet():
            exported = torch.onnx.export(program, dynamo=True, opset_version=OPSET, optimize=False, verbose=False,
                                         custom_translation_table=translations())  # fmt: skip
            # Shapes fold; weights must not: a folded low-bit weight is a float one again.
            optimize(exported.model, input_size_limit=_FOLD_ELEMENTS, output_size_limit=_FOLD_ELEMENTS)
            return exported.model_proto
    except (torch.onnx.OnnxExporterError, *FAILURES) as error:
        raise ExportError(f"The module could not be written as ONNX: {_first_line(error)}") from error


@contextlib.contextmanager
def _quiet() -> Iterator[None]:
    """Without the exporter's own reports on absent optional packages and on its deprecations."""
    logger = logging.getLogger("torch.onnx._internal.exporter._registration")
    level = logger.level
    logger.setLevel(logging.ERROR)
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            yield
    finally:
        logger.setLevel(level)


def _first_line(error: BaseException | None) -> str:
    """The first line of what began it: torch wraps the reason in advice about its own stages."""
    while error is not None and error.__cause__ is not None:
        error = error.__cause__
    return first_line(error)
