"""Feature tables of a model's units and layers."""

from collections.abc import Sequence
from typing import Any

import numpy as np
from torch import nn

from autolabel.feature import feature_groups
from autolabel.tables import FeatureTable
from compress.errors import CompressError
from compress.layer_statistics import LayerStatistics, collect_layer_statistics
from compress.quantizer import Quantizer
from compress.quantizers.mse import MseQuantizer
from compress.statistics import Statistics, check_batches, collect_statistics
from compress.structure import Structure, analyze
from compress.task import Batch, Task
from compress.units import UnitTable

_LARGEST = 1e30


def extract_features(
    model: nn.Module | Structure,
    units: UnitTable | None = None,
    task: Task | None = None,
    calibration: Sequence[Batch] | None = None,
    *,
    example_inputs: Any = None,
    statistics: Statistics | None = None,
    model_name: str = "model",
) -> FeatureTable:
    """Features of channels and heads, one row for each; `autolabel.feature.describe_features` says what they mean.

    One forward pass and one forward and backward pass over `calibration`; the model stays as it is.

    Args:
        model: the dense model, or its structure.
        units: rows wanted, in this order (layers among them are passed over); None for all channels and heads.
        task: reads batches and gives the per-example loss.
        calibration: batches, not those that the labels are measured on.
        example_inputs: to trace a model with; taken from the first batch if None.
        statistics: of the same structure, instead of `task` and `calibration`.
        model_name: goes into the table's `model`, for tables of several networks.

    Raises:
        CompressError: for units of another model, or neither data nor statistics.
        DataError: for calibration data that is empty, of the wrong shape, or not finite.
    """
    if statistics is None:
        structure = _structure(model, task, calibration, example_inputs, "extract_features")
        statistics = collect_statistics(structure, task, list(calibration))
    _check_same(model, statistics.structure)
    known = statistics.units
    rows = np.arange(statistics.n_units)
    if units is not None:
        rows = known.positions([unit for unit, kind in zip(units.ids, units.kind, strict=True) if kind != "layer"])
    return _table("removed", statistics, rows, known, model_name)


def extract_layer_features(
    model: nn.Module | Structure,
    units: UnitTable | None = None,
    task: Task | None = None,
    calibration: Sequence[Batch] | None = None,
    *,
    example_inputs: Any = None,
    statistics: LayerStatistics | None = None,
    quantizer: Quantizer | None = None,
    model_name: str = "model",
) -> FeatureTable:
    """Features of layers, one row for each, for the choice of bits; arguments as of `extract_features`.

    Args:
        quantizer: chooses the scales of the rounded weights whose effect is a feature; `MseQuantizer(20)` if None
            (its full grid takes minutes on large embeddings).
    """
    if statistics is None:
        structure = _structure(model, task, calibration, example_inputs, "extract_layer_features")
        statistics = collect_layer_statistics(structure, task, list(calibration), quantizer or MseQuantizer(20))
    _check_same(model, statistics.structure)
    known = statistics.structure.units
    own = {name: i for i, name in enumerate(statistics.names)}
    names = statistics.names
    if units is not None:
        names = [unit for unit, kind in zip(units.ids, units.kind, strict=True) if kind == "layer"]
        known.positions(names)
    rows = np.array([own[name] for name in names], dtype=np.int64)
    return _table("bits", statistics, rows, known.select(known.positions(statistics.names)), model_name)


def _structure(
    model: nn.Module | Structure,
    task: Task | None,
    calibration: Sequence[Batch] | None,
    example_inputs: Any,
    owner: str,
) -> Structure:
    """The structure, traced on two examples of the first batch where nothing else is given."""
    if task is None or calibration is None:
        raise CompressError(f"{owner} needs 'task' and 'calibration' batches, or 'statistics' collected before.")
    if isinstance(model, Structure):
        return model
    if example_inputs is None:
        if not len(calibration):
            raise CompressError(f"The 'calibration' parameter of {owner} must hold at least one batch. Got none.")
        example_inputs = tuple(x[:2] if hasattr(x, "shape") else x for x in task.inputs(calibration[0]))
    structure = analyze(model, example_inputs)
    check_batches(structure, task, calibration)
    return structure


def _check_same(model: nn.Module | Structure, structure: Structure) -> None:
    if isinstance(model, Structure) and model.units.ids != structure.units.ids:
        raise CompressError("The 'statistics' belong to another model. Collect them from this structure.")


def _table(choice: str, statistics: Any, rows: np.ndarray, units: UnitTable, model_name: str) -> FeatureTable:
    """The columns of every group for this choice, the chosen rows."""
    names: list[str] = []
    blocks = []
    for group in feature_groups(choice):
        block = np.asarray(group.compute(statistics), dtype=np.float64)
        assert block.shape[1] == len(group.columns), (
            f"{group.name}: {block.shape[1]} columns, {len(group.columns)} names"
        )
        names += group.columns
        blocks.append(block)
    values = np.clip(np.concatenate(blocks, axis=1), -_LARGEST, _LARGEST)[rows].astype(np.float32)
    ids = tuple(units.ids[row] for row in rows)
    return FeatureTable(values, tuple(names), ids, units.group[rows], np.full(len(ids), model_name))
