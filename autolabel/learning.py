"""From a model to labels of all its units: features, measured damages of a sample, a labeler that predicts the rest."""

import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np

from autolabel.active_sampling import ActiveSampling
from autolabel.evaluation import Agreement, compare, coverage, held_out_predictions
from autolabel.extraction import extract_features
from autolabel.labeler import Labeler
from autolabel.measuring import measure
from autolabel.oracle import Oracle
from autolabel.sampling import sample_units
from autolabel.tables import FeatureTable, LabelTable, merge_labels
from compress.criterion import Criterion, score_units
from compress.errors import CompressError
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
    active: ActiveSampling | None = None,
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
        active: if given, only its first part of the sample is drawn by `strategy`, and the labeler is judged on it.
    """
    start = time.monotonic()
    features = features or extract_features(structure, task=task, statistics=statistics)
    removable = structure.units.removable
    if active is not None and rows_file is None:
        raise CompressError("learn_labels needs 'rows_file' with 'active', so that nothing is measured twice.")
    total = int(removable.sum())
    n = total if sample is None else min(sample, total)
    if n == total:
        active = None
    n_drawn = n if active is None else max(int(active.first * n), 1)
    drawn = sample_units(structure.units, n_drawn, seed, strategy)
    ids = [structure.units.ids[row] for row in drawn]

    def told(done: int, _: int) -> None:
        if on_row is not None:
            on_row(done, n)

    def measured_units() -> LabelTable:
        found = measure(structure, None, task, label_batches, oracle, ids, rows_file=rows_file, on_row=told)
        # The file of a killed run may hold more: what is asked next must not hang on that.
        return _only(_rows(found, removable), ids)

    own = measured_units()
    for left in range(0 if active is None else active.rounds, 0, -1):
        labels = merge_labels(own, labeler.fit(features, own).predict(features))
        ids += active.choose(labels, -(-(n - len(ids)) // left))
        own = measured_units()
    # Units that were chosen for being doubtful are no fair sample to judge a labeler on.
    judged = _only(own, ids[:n_drawn])
    held_out = held_out_predictions(labeler, features, own, intervals=True)
    fitted = labeler.fit(features, own)
    labels = merge_labels(own, fitted.predict(features))
    others = {name: score_units(structure, criterion, statistics) for name, criterion in (criteria or {}).items()}
    agreement = compare(
        judged,
        held_out,
        {n: s.removal[: len(own.unit_ids)] for n, s in others.items()},
        name=labeler.name,
        group=structure.units.group[removable],
    )
    covered = coverage(judged, held_out)
    held_out = _only(held_out, [unit for unit in held_out.unit_ids if unit not in set(ids[n_drawn:])])
    seconds = time.monotonic() - start
    return Learned(features, own, labels, held_out, agreement, covered, fitted, seconds)


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


def _only(table: LabelTable, unit_ids: Sequence[str]) -> LabelTable:
    """The table without what is known of other units than these."""
    kept = np.isin(np.array(table.unit_ids), np.array(unit_ids, dtype=str))[:, None]
    known = {name: np.where(kept, getattr(table, name), np.nan) for name in ("damage", "std_err", "lower", "upper")}
    return replace(table, **known)


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
