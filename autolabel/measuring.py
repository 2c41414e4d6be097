"""Measures labels: samples units, asks an oracle, keeps every row as soon as it is known."""

import logging
from collections.abc import Callable, Collection, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from torch import Tensor, nn

from autolabel.oracle import Measurement, Oracle
from autolabel.row_log import RowLog
from autolabel.sampling import sample_units
from autolabel.tables import LabelTable
from compress.errors import DataError
from compress.hashing import hash_state, hash_values
from compress.number_format import SYMMETRIC
from compress.replay import Replay
from compress.statistics import check_batches
from compress.structure import Structure, analyze
from compress.task import Batch, Task
from compress.units import UnitTable

_LOG = logging.getLogger(__name__)
_PLAIN = (bool, int, float, str)


def measure(
    model: nn.Module | Structure,
    units: UnitTable | None,
    task: Task,
    calibration: Sequence[Batch],
    oracle: Oracle,
    sample: int | Collection[str] | None = None,
    *,
    seed: int = 0,
    strategy: str = "stratified",
    example_inputs: Any = None,
    rows_file: str | Path | None = None,
    on_row: Callable[[int, int], None] | None = None,
) -> LabelTable:
    """Measured damage of sampled units; the other units of the oracle's kind are NaN.

    Args:
        model: the dense model (traced on the first batch unless `example_inputs` is given), or its structure.
        units: as `find_units` returned them; None for all units of the model.
        task: reads batches and gives per-example losses.
        calibration: batches to measure on.
        oracle: who measures.
        sample: how many units, or ids of units; None for all.
        seed, strategy: how units are drawn, see `sample_units`.
        rows_file: a JSON-lines file that takes each row as soon as it is known. When it holds rows of the same model,
            data and oracle already, they are not measured again: a killed run loses at most the row in hand (of an
            oracle that knows its rows only at once, the mask or the batch in hand).
        on_row: called with (rows done, rows in all) after each row, for a progress bar.

    Returns:
        Labels over all units of the model, with standard errors, `forward_macs` and `naive_macs`.

    Raises:
        DataError: for an empty or unfit calibration set. ArtifactError: if `rows_file` belongs to something else.
    """
    batches = list(calibration)
    if not batches:
        raise DataError("The 'calibration' parameter of measure must hold at least one batch. Got none.")
    structure = analyze(model, task.inputs(batches[0]) if example_inputs is None else example_inputs)
    check_batches(structure, task, batches)
    if units is not None:
        structure.units.positions(units.ids)
    if sample is None or isinstance(sample, int):
        rows = sample_units(structure.units, sample, seed, strategy, oracle.kind)
    else:
        rows = np.sort(structure.units.positions(sample))
    replay = Replay(structure, task, batches)
    log = RowLog(rows_file, _key(structure, oracle, replay), structure.units.ids, oracle.choices)
    wanted = [(structure.units.ids[row], choice) for row in rows for choice in oracle.choices]
    known = {cell for cell in wanted if cell in log.rows}
    done = len(known)
    if log.notes and done < len(wanted):
        _LOG.info("%d notes of the oracle found in %s", len(log.notes), rows_file)
    if done:
        _LOG.info("%d of %d measured rows found in %s", done, len(wanted), rows_file)
    for measurement in oracle.measure(structure, replay, rows, known, log.notes):
        log.add(measurement)
        done += 1
        if on_row is not None:
            on_row(done, len(wanted))
    return _table(structure.units, oracle, log.rows, replay)


def _key(structure: Structure, oracle: Oracle, replay: Replay) -> str:
    """Hash of everything that a row depends on: weights, task, data and the oracle's settings."""
    settings = _told(vars(oracle))
    if not settings.get("relative_error"):
        settings.pop("hard_fraction", None)  # of adaptive measuring alone
    if not settings.get("training_steps"):  # rows from before there was a training
        settings.pop("training_steps", None)
        settings.pop("lr", None)
    if settings.get("number_format") == _told(SYMMETRIC):
        settings.pop("number_format")  # rows from before there were others
    # Of a task its class: what it holds besides may be counters of its own.
    return hash_values(
        structure.traced.fingerprint, hash_state(structure.traced.module), replay.batches,
        type(replay.task).__name__, oracle.name, settings,
    )  # fmt: skip


def _told(value: Any) -> Any:
    """A setting as plain values; of a component its type and its own settings."""
    if isinstance(value, Mapping):
        return {str(key): _told(item) for key, item in value.items()}
    if value is None or isinstance(value, (bool, int, float, str, tuple, list, Tensor, np.ndarray)):
        return value
    if isinstance(value, np.generic):
        return value.item()
    own = getattr(value, "__dict__", {})
    return [type(value).__name__, {name: one for name, one in own.items() if isinstance(one, _PLAIN)}]


def _table(units: UnitTable, oracle: Oracle, rows: dict[tuple[str, str], Measurement], replay: Replay) -> LabelTable:
    shape = (len(units), len(oracle.choices))
    damage, std_err = np.full(shape, np.nan), np.full(shape, np.nan)
    for (unit, choice), measurement in rows.items():
        place = int(units.positions([unit])[0]), oracle.choices.index(choice)
        damage[place], std_err[place] = measurement.damage, measurement.std_err
    # Two dense passes come on top of the rows: one for the losses, one for the values that are kept.
    spent = sum(m.forward_macs for m in rows.values()) + 2 * replay.full_macs * replay.n_examples
    return LabelTable(
        units.ids,
        oracle.choices,
        damage,
        std_err,
        damage - 1.96 * std_err,
        damage + 1.96 * std_err,
        np.full(len(units), "measured"),
        spent,
        sum(m.naive_macs for m in rows.values()),
    )
