"""Feature and label tables: frozen arrays keyed by unit id, stored as `.npz` without pickle."""

from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np

from compress.errors import ArtifactError, CompressError
from compress.files import load_arrays, save_arrays
from compress.scores import Scores

SOURCES = ("measured", "predicted")


@dataclass(frozen=True, eq=False)
class FeatureTable:
    """Numbers known of each unit without measuring damage.

    Attributes:
        values: `(n_units, n_features)` float32, finite.
        names: `n_features` unique column names.
        unit_ids: `n_units` ids.
        group: `(n_units,)` str, the layer or coupled group of each unit: what cross-validation must not split.
        model: name of the network the units belong to (rows of several networks may be concatenated).
    """

    values: np.ndarray
    names: tuple[str, ...]
    unit_ids: tuple[str, ...]
    group: np.ndarray
    model: np.ndarray

    def __post_init__(self) -> None:
        shape = (len(self.unit_ids), len(self.names))
        if self.values.shape != shape or self.values.dtype != np.float32:
            raise CompressError(
                f"FeatureTable.values must be float32 of shape {shape}. Got {self.values.dtype} {self.values.shape}."
            )
        if self.group.shape != shape[:1] or self.model.shape != shape[:1]:
            raise CompressError(f"FeatureTable.group and .model must have shape {shape[:1]}.")
        if len(set(self.names)) != len(self.names):
            raise CompressError("FeatureTable.names must be unique.")
        if not np.isfinite(self.values).all():
            row, column = np.argwhere(~np.isfinite(self.values))[0]
            raise CompressError(f"Feature {self.names[column]!r} of unit {self.unit_ids[row]!r} is not finite.")

    def column(self, name: str) -> np.ndarray:
        """`(n_units,)` values of one feature."""
        return self.values[:, self.names.index(name)]

    def select(self, rows: np.ndarray) -> "FeatureTable":
        """The table of these rows (positions or a bool mask)."""
        rows = np.flatnonzero(rows) if rows.dtype == bool else rows
        return FeatureTable(
            self.values[rows], self.names, tuple(self.unit_ids[i] for i in rows), self.group[rows], self.model[rows]
        )

    def save(self, path: str | Path) -> None:
        """Write `features.npz`, atomically."""
        save_arrays(
            path,
            values=self.values,
            names=np.array(self.names, dtype=str),
            unit_ids=np.array(self.unit_ids, dtype=str),
            group=self.group.astype(str),
            model=self.model.astype(str),
        )

    @classmethod
    def load(cls, path: str | Path) -> "FeatureTable":
        """Read `features.npz`. Raises ArtifactError if it is missing, damaged or inconsistent."""
        a = load_arrays(path, ("values", "names", "unit_ids", "group", "model"))
        try:
            return cls(a["values"], tuple(a["names"].tolist()), tuple(a["unit_ids"].tolist()), a["group"], a["model"])
        except (CompressError, TypeError, ValueError, IndexError) as error:
            raise ArtifactError(f"{path} is not a valid feature table: {error}") from None


@dataclass(frozen=True, eq=False)
class LabelTable:
    """Damage of each unit and choice, measured or predicted.

    Attributes:
        unit_ids: `n_units` ids.
        choices: `n_choices` column names (`"removed"`, `"8bit"`, ...).
        damage: `(n_units, n_choices)` float64 in the task's loss unit; NaN where it is unknown or does not apply.
        std_err: standard error of a measured damage over the examples; NaN for predictions.
        lower, upper: interval of a prediction (or damage -+ 1.96 std_err when measured).
        source: `"measured"` or `"predicted"`, per unit, `(n_units,)` str.
        forward_macs: MACs spent on getting these labels; `naive_macs`: what full masked forwards would have cost.
    """

    unit_ids: tuple[str, ...]
    choices: tuple[str, ...]
    damage: np.ndarray
    std_err: np.ndarray
    lower: np.ndarray
    upper: np.ndarray
    source: np.ndarray
    forward_macs: float = 0.0
    naive_macs: float = 0.0

    def __post_init__(self) -> None:
        shape = (len(self.unit_ids), len(self.choices))
        for name in ("damage", "std_err", "lower", "upper"):
            if getattr(self, name).shape != shape:
                raise CompressError(f"LabelTable.{name} must have shape {shape}. Got {getattr(self, name).shape}.")
        if self.source.shape != shape[:1] or not np.isin(self.source, SOURCES).all():
            raise CompressError(f"LabelTable.source must be {shape[:1]} of {SOURCES}.")
        if np.isinf(self.damage).any():
            raise CompressError("LabelTable.damage must not be infinite.")

    def of_choices(self, kept: Sequence[bool]) -> "LabelTable":
        """The same units with some of the choices; `kept` says of each whether it stays."""
        columns = np.flatnonzero(np.asarray(kept, dtype=bool))
        own = {name: getattr(self, name)[:, columns] for name in ("damage", "std_err", "lower", "upper")}
        return replace(self, choices=tuple(self.choices[column] for column in columns), **own)

    def scores(self) -> Scores:
        """The damages as scores in nats, for an allocator."""
        return Scores(self.unit_ids, self.choices, self.damage, "nats")

    def save(self, path: str | Path) -> None:
        """Write `labels.npz`, atomically."""
        save_arrays(
            path,
            unit_ids=np.array(self.unit_ids, dtype=str),
            choices=np.array(self.choices, dtype=str),
            damage=self.damage,
            std_err=self.std_err,
            lower=self.lower,
            upper=self.upper,
            source=self.source.astype(str),
            macs=np.array([self.forward_macs, self.naive_macs]),
        )

    @classmethod
    def load(cls, path: str | Path) -> "LabelTable":
        """Read `labels.npz`. Raises ArtifactError if it is missing, damaged or inconsistent."""
        a = load_arrays(path, ("unit_ids", "choices", "damage", "std_err", "lower", "upper", "source", "macs"))
        try:
            return cls(
                tuple(a["unit_ids"].tolist()),
                tuple(a["choices"].tolist()),
                a["damage"],
                a["std_err"],
                a["lower"],
                a["upper"],
                a["source"],
                float(a["macs"][0]),
                float(a["macs"][1]),
            )
        except (CompressError, TypeError, ValueError, IndexError) as error:
            raise ArtifactError(f"{path} is not a valid label table: {error}") from None


def merge_labels(measured: LabelTable, predicted: LabelTable) -> LabelTable:
    """All units and choices of both tables: a measured damage where there is one, else the predicted one.

    Units keep the order of `predicted`, then come measured units it lacks. A unit's source is `"measured"` if none of
    its known damages had to be predicted. Costs are those of `measured`.

    Raises:
        CompressError: if unit ids repeat (several networks) and the two tables do not list the same units in order.
    """
    unit_ids = predicted.unit_ids
    if measured.unit_ids != predicted.unit_ids:
        for table in (measured, predicted):
            if len(set(table.unit_ids)) != len(table.unit_ids):
                raise CompressError(
                    "Unit ids repeat (several networks?): both label tables must list the same units in the same order."
                )
        unit_ids = tuple(dict.fromkeys(predicted.unit_ids + measured.unit_ids))
    choices = tuple(dict.fromkeys(predicted.choices + measured.choices))
    ours, theirs = (_spread(table, unit_ids, choices) for table in (measured, predicted))
    known = np.isfinite(ours["damage"])
    merged = {name: np.where(known, ours[name], theirs[name]) for name in ours}
    guessed = (np.isfinite(merged["damage"]) & ~known).any(axis=1) | ~known.any(axis=1)
    return LabelTable(
        unit_ids,
        choices,
        **merged,
        source=np.where(guessed, "predicted", "measured"),
        forward_macs=measured.forward_macs,
        naive_macs=measured.naive_macs,
    )


def _spread(table: LabelTable, unit_ids: tuple[str, ...], choices: tuple[str, ...]) -> dict[str, np.ndarray]:
    """The number columns of `table` on these units and choices, NaN where it has none."""
    if unit_ids == table.unit_ids:
        rows = np.arange(len(unit_ids))
    else:
        position = {unit: row for row, unit in enumerate(unit_ids)}
        rows = np.array([position[unit] for unit in table.unit_ids], dtype=np.int64)
    cells = np.ix_(rows, [choices.index(choice) for choice in table.choices])
    spread = {}
    for name in ("damage", "std_err", "lower", "upper"):
        spread[name] = np.full((len(unit_ids), len(choices)), np.nan)
        spread[name][cells] = getattr(table, name)
    return spread
