"""How good labels are: rank correlation with measured damage on layers or networks that were held out."""

import copy
import re
import warnings
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
from scipy.stats import kendalltau, rankdata

from autolabel.choice_rows import is_layer, match_rows
from autolabel.conformal import CalibrationWarning
from autolabel.folds import assign_folds, group_keys
from autolabel.labeler import Labeler
from autolabel.tables import FeatureTable, LabelTable
from compress.errors import CompressError, DataError
from compress.scores import Scores

# Fewer units than this have no order worth correlating.
_SMALLEST_GROUP = 3
_MOST_AT_ONCE = 500_000  # values, of all resamples together
_INDEX_IN_ID = re.compile(r"\[\d+\]$")


@dataclass(frozen=True)
class Agreement:
    """How well one score orders the measured damages; None where there is nothing to correlate.

    Attributes:
        name: whose score.
        choice: of which choice.
        n: units compared: the same ones for every score of a comparison.
        spearman, kendall: over all units together (a constant score counts as 0: it orders nothing).
        spearman_low, spearman_high: 95 % bootstrap interval of `spearman`, resampling whole groups where there are
            several.
        within: median over groups of Spearman within the group; `within_low`, `within_high`: its bootstrap interval.
        n_groups: groups of at least 3 units with damages that differ.
        by_model: network -> Spearman over its units; empty for a single network.
    """

    name: str
    choice: str
    n: int
    spearman: float | None
    spearman_low: float | None
    spearman_high: float | None
    kendall: float | None
    within: float | None
    within_low: float | None
    within_high: float | None
    n_groups: int
    by_model: Mapping[str, float | None]


def held_out_predictions(
    labeler: Labeler,
    features: FeatureTable,
    labels: LabelTable,
    folds: int = 10,
    seed: int = 0,
    intervals: bool = False,
) -> LabelTable:
    """Predictions for every unit of `features` by copies of `labeler` that saw no label of its group.

    Whole groups are held out (whole networks if there are at least three); `labeler` itself is left as it is.

    Args:
        labeler: fitted or not; only its settings are used.
        features: of every unit, labelled or not.
        labels: measured damages.
        folds: how many copies are fitted at most.
        seed: of the folds.
        intervals: also let every copy calibrate intervals without the held-out groups, for `coverage`. That multiplies
            the time by the labeler's own number of folds; without it, `lower` and `upper` are NaN.

    Warns:
        CalibrationWarning: if all labels of a kind of unit lie in one group; those predictions are NaN.
    """
    if not np.isfinite(labels.damage).any():
        raise DataError("No damage in the label table is known, so nothing can be evaluated. Measure some units first.")
    labels = _labels_of(features, labels)
    fold = _folds_of(features, labels, folds, seed)
    shape = labels.damage.shape
    damage, lower, upper = np.full(shape, np.nan), np.full(shape, np.nan), np.full(shape, np.nan)
    for k in np.unique(fold[fold >= 0]):
        held = fold == k
        train = replace(labels, damage=np.where(held[:, None], np.nan, labels.damage))
        if not np.isfinite(train.damage).any():
            continue
        with warnings.catch_warnings():
            # That a part of the data is too small to calibrate on is no news about the whole.
            warnings.simplefilter("ignore", CalibrationWarning)
            fresh = copy.deepcopy(labeler)
            if not intervals and hasattr(fresh, "calibrate"):
                fresh.calibrate = False
            predicted = fresh.fit(features, train).predict(features.select(held))
        damage[held] = predicted.damage
        if intervals:
            lower[held], upper[held] = predicted.lower, predicted.upper
    return LabelTable(
        features.unit_ids, labels.choices, damage, np.full(shape, np.nan), lower, upper, np.full(shape[0], "predicted")
    )


def compare(
    labels: LabelTable,
    held_out: LabelTable | None,
    others: Mapping[str, Any] | None = None,
    *,
    choice: str = "removed",
    name: str = "labeler",
    group: np.ndarray | None = None,
    model: np.ndarray | None = None,
    seed: int = 0,
    resamples: int = 200,
) -> tuple[Agreement, ...]:
    """Agreement with the measured damages of the labeler and of every other score, on the same units, in that order.

    Args:
        labels: measured damages.
        held_out: from `held_out_predictions`, or None to compare only `others`.
        others: score name -> `Scores`, `LabelTable`, or an array aligned with `labels.unit_ids`.
        choice: which choice.
        name: what to call the labeler in the result.
        group, model: aligned with `labels.unit_ids`; by default the group is the unit id without its index, and there
            is one network.
        seed: of the bootstrap.
        resamples: of the bootstrap.

    Raises:
        CompressError: for an unknown choice, or a score of another shape.
    """
    if choice not in labels.choices:
        raise CompressError(f"The 'choice' parameter of compare must be one of {labels.choices}. Got {choice!r}.")
    damage = labels.damage[:, labels.choices.index(choice)]
    scores = {} if held_out is None else {name: _column(held_out, labels, choice, name)}
    scores |= {other: _column(value, labels, choice, other) for other, value in (others or {}).items()}
    usable = np.isfinite(damage)
    for values in scores.values():
        usable &= np.isfinite(values)
    group = np.array([_INDEX_IN_ID.sub("", unit) for unit in labels.unit_ids]) if group is None else np.asarray(group)
    model = np.zeros(len(damage), dtype=int) if model is None else np.asarray(model)
    _, keys = np.unique([f"{m}\0{g}" for m, g in zip(model, group, strict=True)], return_inverse=True)
    return tuple(
        _agreement(score, choice, damage[usable], values[usable], keys[usable], model[usable], seed, resamples)
        for score, values in scores.items()
    )


def coverage(labels: LabelTable, held_out: LabelTable, choice: str = "removed") -> float | None:
    """Share of measured damages inside their held-out intervals, in [0, 1]; None if there is nothing to check."""
    column = labels.choices.index(choice)
    damage = labels.damage[:, column]
    rows = _rows_in(held_out.unit_ids, labels.unit_ids, "held_out")
    lower, upper = (end[rows, held_out.choices.index(choice)] for end in (held_out.lower, held_out.upper))
    known = np.isfinite(damage) & np.isfinite(lower) & np.isfinite(upper)
    if not known.any():
        return None
    return float(((damage >= lower) & (damage <= upper))[known].mean())


def spearman(a: np.ndarray, b: np.ndarray) -> float | None:
    """Rank correlation, ties averaged; 0 if either is constant, None for fewer than 3 values."""
    if len(a) < _SMALLEST_GROUP:
        return None
    return _correlation(rankdata(a), rankdata(b))


def resampled_spearman(a: np.ndarray, b: np.ndarray, times: np.ndarray) -> list[float]:
    """`spearman` of each resample, in which value `i` comes `times[:, i]` times (`(n_resamples, n)` int); those of
    fewer than 3 values are left out."""
    most = max(1, _MOST_AT_ONCE // max(times.shape[1], 1))
    if len(times) > most:
        parts = np.split(times, range(most, len(times), most))
        return [value for part in parts for value in resampled_spearman(a, b, part)]
    size = times.sum(axis=1)
    x, y = (_repeated_ranks(values, times) - (size[:, None] + 1) / 2 for values in (a, b))
    norm = np.sqrt((times * x * x).sum(axis=1) * (times * y * y).sum(axis=1))
    found = np.divide((times * x * y).sum(axis=1), norm, out=np.zeros(len(times)), where=norm > 0.0)
    return np.clip(found, -1.0, 1.0)[size >= _SMALLEST_GROUP].tolist()


def _repeated_ranks(values: np.ndarray, times: np.ndarray) -> np.ndarray:
    """`(n_resamples, n)` ranks, ties averaged, among values that come so many times each."""
    order = np.argsort(values, kind="stable")
    _, place, tied = np.unique(values, return_inverse=True, return_counts=True)
    count = np.add.reduceat(times[:, order], np.cumsum(tied) - tied, axis=1)
    return (count.cumsum(axis=1) - (count - 1) / 2)[:, place]


def _correlation(a: np.ndarray, b: np.ndarray) -> float:
    a, b = a - a.mean(), b - b.mean()
    norm = float(np.sqrt((a @ a) * (b @ b)))
    return float(np.clip((a @ b) / norm, -1.0, 1.0)) if norm > 0.0 else 0.0


def _agreement(
    name: str,
    choice: str,
    damage: np.ndarray,
    score: np.ndarray,
    keys: np.ndarray,
    model: np.ndarray,
    seed: int,
    resamples: int,
) -> Agreement:
    rows_of = [np.flatnonzero(keys == key) for key in np.unique(keys)]
    within = np.array(
        [
            spearman(damage[rows], score[rows])
            for rows in rows_of
            if len(rows) >= _SMALLEST_GROUP and np.ptp(damage[rows]) > 0.0
        ]
    )
    overall = spearman(damage, score)
    generator = np.random.default_rng(seed)
    blocks = rows_of if len(rows_of) > 1 else [np.array([row]) for row in range(len(damage))]
    times, drawn_within = np.zeros((resamples if overall is not None else 0, len(damage)), dtype=np.int32), []
    for drawn in times:
        picks = np.bincount(generator.integers(len(blocks), size=len(blocks)), minlength=len(blocks))
        for rows, count in zip(blocks, picks, strict=True):
            drawn[rows] = count
        if len(within) > 1:
            drawn_within.append(float(np.median(within[generator.integers(len(within), size=len(within))])))
    low, high = _interval(resampled_spearman(damage, score, times))
    within_low, within_high = _interval(drawn_within)
    kendall = None
    if overall is not None:
        constant = np.ptp(damage) == 0.0 or np.ptp(score) == 0.0
        kendall = 0.0 if constant else float(kendalltau(damage, score).statistic)
    models = np.unique(model)
    by_model = {str(m): spearman(damage[model == m], score[model == m]) for m in models} if len(models) > 1 else {}
    return Agreement(
        name,
        choice,
        len(damage),
        overall,
        low,
        high,
        kendall,
        float(np.median(within)) if len(within) else None,
        within_low,
        within_high,
        len(within),
        by_model,
    )


def _interval(values: Sequence[float]) -> tuple[float | None, float | None]:
    if not values:
        return None, None
    low, high = np.quantile(values, [0.025, 0.975])
    return float(low), float(high)


def _column(value: Any, labels: LabelTable, choice: str, name: str) -> np.ndarray:
    """`(n_units,)` float64 of one score, in the order of `labels`; NaN for units it does not score."""
    if isinstance(value, Scores | LabelTable):
        if choice not in value.choices:
            raise CompressError(f"The score {name!r} knows nothing of {choice!r}. It has {value.choices}.")
        table = value.values if isinstance(value, Scores) else value.damage
        rows = _rows_in(value.unit_ids, labels.unit_ids, name)
        return np.where(rows >= 0, table[rows, value.choices.index(choice)], np.nan)
    column = np.asarray(value, dtype=np.float64)
    if column.shape != (len(labels.unit_ids),):
        raise CompressError(
            f"The score {name!r} must have shape {(len(labels.unit_ids),)}, one for each labelled unit. "
            f"Got {column.shape}."
        )
    return column


def _rows_in(where: tuple[str, ...], unit_ids: tuple[str, ...], name: str) -> np.ndarray:
    """Row in `where` of each unit id, -1 if absent."""
    if where == unit_ids:
        return np.arange(len(unit_ids))
    position = {unit: row for row, unit in enumerate(where)}
    if len(position) != len(where) or len(set(unit_ids)) != len(unit_ids):
        raise CompressError(
            f"Unit ids repeat (several networks?): {name!r} must then list the units of the labels in the same order."
        )
    return np.array([position.get(unit, -1) for unit in unit_ids], dtype=np.int64)


def _labels_of(features: FeatureTable, labels: LabelTable) -> LabelTable:
    """`labels` with one row for each row of `features`."""
    rows = match_rows(features, labels)
    kept = rows >= 0
    shape = (len(features.unit_ids), len(labels.choices))
    tables = {name: np.full(shape, np.nan) for name in ("damage", "std_err", "lower", "upper")}
    for name, table in tables.items():
        table[rows[kept]] = getattr(labels, name)[kept]
    return LabelTable(features.unit_ids, labels.choices, **tables, source=np.full(shape[0], "measured"))


def _folds_of(features: FeatureTable, labels: LabelTable, folds: int, seed: int) -> np.ndarray:
    """`(n_units,)` fold of each unit, -1 where none can be held out; layers and parts are dealt separately."""
    keys, layer = group_keys(features), is_layer(features)
    known = np.isfinite(labels.damage).any(axis=1)
    fold = np.full(len(keys), -1, dtype=np.int64)
    for kind, rows in (("layers", np.flatnonzero(layer)), ("channels and heads", np.flatnonzero(~layer))):
        if not known[rows].any():
            continue
        labelled = rows[known[rows]]
        if len(np.unique(keys[labelled])) < 2:
            warnings.warn(
                f"The labels of {kind} come from a single group, so none can be held out and nothing is evaluated. "
                "Measure units of at least two layers.",
                CalibrationWarning,
                stacklevel=3,
            )
            continue
        # Dealt by labelled rows, or all labels might fall into one fold; any copy may predict groups without labels.
        fold_of = dict(zip(keys[labelled], assign_folds(keys[labelled], folds, seed), strict=True))
        fold[rows] = [fold_of.get(key, 0) for key in keys[rows]]
    return fold
