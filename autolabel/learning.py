"""From a model to labels of all its units: features, measured damages of a sample, a labeler that predicts the rest."""

import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from autolabel.evaluation import Agreement, compare, coverage, held_out_predictions
from autolabel.extraction import extract_features
from autolabel.labeler import Labeler
from autolabel.measuring import measure
from autolabel.oracle import Oracle
from autolabel.tables import FeatureTable, LabelTable, merge_labels
from compress.criterion import Criterion, score_units
from compress.scores import Scores
from compress.statistics import Statistics
from compress.structure import Structure
from compress.task import Batch, Task


@dataclass(frozen=True, eq=False)
class Learned:
    """Labels of every unit, and how good they are.

    Attributes:
        features: of the removable units.
        measured: damages that were measured.
        labels: measured where known, else predicted, with intervals.
        held_out: predictions of measured units by labelers that had not seen their group.
        agreement: rank correlation with the measured damages: the labeler first, then every criterion.
        coverage: share of measured damages inside their held-out intervals (nominal 0.9).
        labeler: fitted on all measured rows.
        seconds: spent on measuring and learning.
    """

    features: FeatureTable
    measured: LabelTable
    labels: LabelTable
    held_out: LabelTable
    agreement: tuple[Agreement, ...]
    coverage: float | None
    labeler: Labeler
    seconds: float


def learn_labels(
    structure: Structure,
    task: Task,
    label_batches: Sequence[Batch],
    statistics: Statistics,
    labeler: Labeler,
    oracle: Oracle,
    *,
    sample: int | None,
    criteria: Mapping[str, Criterion] | None = None,
    features: FeatureTable | None = None,
    strategy: str = "stratified",
    seed: int = 0,
    rows_file: str | Path | None = None,
    on_row: Callable[[int, int], None] | None = None,
) -> Learned:
    """Measure a sample of the removable units, learn from it, and label all of them.

    Args:
        structure: the analysed model.
        task: reads batches and gives per-example losses.
        label_batches: what damage is measured on; not the batches of `statistics`.
        statistics: of the calibration batches, with activations and gradients.
        labeler: fitted here.
        oracle: measures removal.
        sample: how many units are measured; None for all.
        criteria: name -> criterion, compared with the labeler on the same units.
        features: as `extract_features` gives them, computed here if None.
        strategy, seed, rows_file, on_row: see `measure`.
    """
    start = time.monotonic()
    features = features or extract_features(structure, task=task, statistics=statistics)
    measured = measure(
        structure,
        None,
        task,
        label_batches,
        oracle,
        sample,
        seed=seed,
        strategy=strategy,
        rows_file=rows_file,
        on_row=on_row,
    )
    removable = structure.units.removable
    own = _rows(measured, removable)
    held_out = held_out_predictions(labeler, features, own, intervals=True)
    fitted = labeler.fit(features, own)
    labels = merge_labels(own, fitted.predict(features))
    others = {name: score_units(structure, criterion, statistics) for name, criterion in (criteria or {}).items()}
    agreement = compare(
        own,
        held_out,
        {n: s.removal[: len(own.unit_ids)] for n, s in others.items()},
        name=labeler.name,
        group=structure.units.group[removable],
    )
    seconds = time.monotonic() - start
    return Learned(features, own, labels, held_out, agreement, coverage(own, held_out), fitted, seconds)


def _rows(table: LabelTable, rows: np.ndarray) -> LabelTable:
    """The table of these rows only."""
    keep = np.flatnonzero(rows)
    return LabelTable(
        tuple(table.unit_ids[i] for i in keep),
        table.choices,
        table.damage[keep],
        table.std_err[keep],
        table.lower[keep],
        table.upper[keep],
        table.source[keep],
        table.forward_macs,
        table.naive_macs,
    )


def join_scores(structure: Structure, removal: Scores | LabelTable, formats: LabelTable | None = None) -> Scores:
    """Scores over all units of the model: `removed` of channels and heads, widths of layers.

    Args:
        removal: scores or labels of the removable units (at least), with the choice `"removed"`.
        formats: labels of layers with choices `"8bit"`, ...; None to choose no widths.
    """
    units = structure.units
    widths = formats.choices if formats is not None else ()
    values = np.full((len(units), 1 + len(widths)), np.nan)
    rows = units.positions(removal.unit_ids)
    column = removal.choices.index("removed")
    values[rows, 0] = (removal.values if isinstance(removal, Scores) else removal.damage)[:, column]
    if formats is not None:
        values[units.positions(formats.unit_ids), 1:] = formats.damage
    scale = removal.scale if isinstance(removal, Scores) else "nats"
    return Scores(units.ids, ("removed", *widths), values, scale)
