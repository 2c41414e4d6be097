"""What labelers on feature tables share: rows, target, held-out errors, intervals and files."""

import hashlib
import warnings
from abc import ABC, abstractmethod
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field, fields
from pathlib import Path
from typing import Any, ClassVar, Self

import numpy as np

from autolabel.choice_rows import BITS, Problem, is_layer, match_rows, problems
from autolabel.conformal import Calibration, CalibrationWarning
from autolabel.folds import assign_folds, group_keys
from autolabel.regressor import Regressor
from autolabel.tables import FeatureTable, LabelTable
from autolabel.transform import TargetTransform
from compress.errors import ArtifactError, CompressError, DataError
from compress.files import read_json, write_atomic, write_json

SCHEMA_VERSION = 2
INDEX_FILE = "labeler.json"


@dataclass(frozen=True, eq=False)
class FittedProblem:
    """One fitted regression with what turns its numbers into damages.

    Attributes:
        problem: the choices it covers.
        layers, parts: whether labels of whole layers, and of channels and heads, were among those it learned from;
            it predicts for no other kind of unit.
        transform: scale of the regression.
        calibration: how far off it may be.
        regressor: the regression itself.
    """

    problem: Problem
    layers: bool
    parts: bool
    transform: TargetTransform
    calibration: Calibration
    regressor: Regressor

    def applies_to(self, features: FeatureTable) -> np.ndarray:
        """`(n_units,)` bool: the kinds of units it has seen."""
        layer = is_layer(features)
        return (layer & self.layers) | (~layer & self.parts)

    def transformed(self, features: FeatureTable, choice: str) -> np.ndarray:
        """`(n_units,)` predictions on the transformed scale."""
        x = self.problem.rows(features.values, features.names, choice)
        return self.transform.clip(self.regressor.predict(x))

    def predict(self, features: FeatureTable, choice: str) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
        """Damage, lower and upper end, each `(n_units,)` in the task's loss unit."""
        z = self.transformed(features, choice)
        lower, upper = (self.transform.inverse(end) for end in self.calibration.interval(z))
        return self.transform.inverse(z), lower, upper


@dataclass
class TabularLabeler(ABC):
    """A labeler that fits one regression for each choice (and one for all bit-widths) on a transformed damage.

    Attributes:
        seed: of folds and of the regression.
        coverage: probability that an interval holds the damage of a unit in a new group, in (0, 1).
        folds: how many held-out groups of rows (layers, or networks from three on) calibrate the intervals.
        calibrate: False skips the held-out fits, which take most of the time: intervals then span the labels.
    """

    seed: int = 0
    coverage: float = 0.9
    folds: int = 8
    calibrate: bool = True
    _names: tuple[str, ...] = field(default=(), init=False, repr=False)
    _choices: tuple[str, ...] = field(default=(), init=False, repr=False)
    _fitted: tuple[FittedProblem, ...] = field(default=(), init=False, repr=False)

    name: ClassVar[str]
    suffix: ClassVar[str] = "safetensors"
    transformed_target: ClassVar[bool] = True

    def __post_init__(self) -> None:
        self._check("coverage", 0.0 < self.coverage < 1.0, "a float in (0, 1)")
        self._check("folds", isinstance(self.folds, int) and self.folds >= 2, "an int of at least 2")
        self._check("seed", isinstance(self.seed, int) and 0 <= self.seed < 2**31, "an int in [0, 2^31)")

    @abstractmethod
    def _regress(self, x: np.ndarray, z: np.ndarray, keys: np.ndarray, columns: Sequence[str]) -> Regressor:
        """The regression of `z` `(n_rows,)` on `x` `(n_rows, n_columns)`, rows of one key belonging together."""

    @classmethod
    @abstractmethod
    def _parse(cls, content: bytes) -> Regressor:
        """The regressor that `Regressor.dump` wrote. Raises ValueError or KeyError if the content is not one."""

    @property
    def feature_names(self) -> tuple[str, ...]:
        """Names of the features it was fitted on."""
        return self._names

    @property
    def choices(self) -> tuple[str, ...]:
        """The choices it predicts."""
        return self._choices

    def fit(self, features: FeatureTable, labels: LabelTable) -> Self:
        """Learn from every known damage of `labels`, matched to `features` by unit id; returns itself.

        Raises:
            DataError: if no damage is known, or a labelled unit has no features.
        """
        rows = match_rows(features, labels)
        if not np.isfinite(labels.damage).any():
            raise DataError("No damage in the label table is known. Measure some units first.")
        fitted = []
        for problem in problems(labels.choices, features.names):
            known = np.isfinite(labels.damage[:, [labels.choices.index(choice) for choice in problem.choices]])
            if not known.any():
                warnings.warn(
                    f"No damage of {problem.name!r} is known; it will not be predicted.", UserWarning, stacklevel=2
                )
                continue
            fitted.append(self._fit_problem(problem, features, labels, rows))
        self._names, self._choices, self._fitted = features.names, labels.choices, tuple(fitted)
        return self

    def predict(self, features: FeatureTable) -> LabelTable:
        """Labels of every unit of `features` in its order; NaN where a choice was never seen on that kind of unit.

        Raises:
            CompressError: if it is not fitted, or was fitted on other features.
        """
        features = self._aligned(features)
        shape = (len(features.unit_ids), len(self._choices))
        damage, lower, upper = np.full(shape, np.nan), np.full(shape, np.nan), np.full(shape, np.nan)
        for fitted in self._fitted:
            rows = np.flatnonzero(fitted.applies_to(features))
            for choice in fitted.problem.choices if rows.size else ():
                column = self._choices.index(choice)
                damage[rows, column], lower[rows, column], upper[rows, column] = fitted.predict(
                    features.select(rows), choice
                )
        return LabelTable(
            features.unit_ids,
            self._choices,
            damage,
            np.full(shape, np.nan),
            lower,
            upper,
            np.full(shape[0], "predicted"),
        )

    def problem_of(self, choice: str) -> FittedProblem:
        """The fitted regression behind a choice. Raises CompressError if there is none."""
        for fitted in self._fitted:
            if choice in fitted.problem.choices:
                return fitted
        raise CompressError(f"{type(self).__name__} has learned nothing of {choice!r}. It knows {self._choices}.")

    def _fit_problem(
        self, problem: Problem, features: FeatureTable, labels: LabelTable, rows: np.ndarray
    ) -> FittedProblem:
        blocks, damage, std_err, where = [], [], [], []
        for choice in problem.choices:
            column = labels.choices.index(choice)
            known = np.flatnonzero(np.isfinite(labels.damage[:, column]))
            # In the order of the features, so that the order of the labels means nothing.
            known = known[np.argsort(rows[known])]
            blocks.append(problem.rows(features.values[rows[known]], features.names, choice))
            damage.append(labels.damage[known, column])
            std_err.append(labels.std_err[known, column])
            where.append(rows[known])
        x, y, at = np.concatenate(blocks), np.concatenate(damage), np.concatenate(where)
        transform = TargetTransform.identity(y)
        if self.transformed_target:
            transform = TargetTransform.learn(y, np.concatenate(std_err))
        keys, z = group_keys(features)[at], transform.forward(y)
        held_out = self._held_out(problem, x, z, keys) if self.calibrate else None
        calibration = Calibration.unknown(transform.span, self.coverage)
        if held_out is not None:
            calibration = Calibration.learn(z - transform.clip(held_out), keys, self.coverage)
        layer = is_layer(features)[at]
        regressor = self._regress(x, z, keys, problem.columns)
        return FittedProblem(problem, bool(layer.any()), bool((~layer).any()), transform, calibration, regressor)

    def _held_out(self, problem: Problem, x: np.ndarray, z: np.ndarray, keys: np.ndarray) -> np.ndarray | None:
        """`(n_rows,)` predictions of regressions that saw no row of the same key; None if there is only one key."""
        fold = assign_folds(keys, self.folds, self.seed)
        if fold.max() == 0:
            warnings.warn(
                f"The labels of {problem.name!r} come from a single group, so nothing can be held out: "
                "intervals span the labels and are not calibrated. Measure units of at least two layers.",
                CalibrationWarning,
                stacklevel=4,
            )
            return None
        predicted = np.empty_like(z)
        for k in range(int(fold.max()) + 1):
            train = fold != k
            predicted[~train] = self._regress(x[train], z[train], keys[train], problem.columns).predict(x[~train])
        return predicted

    def _aligned(self, features: FeatureTable) -> FeatureTable:
        """`features` with the columns in the fitted order."""
        if not self._fitted:
            raise CompressError(f"{type(self).__name__} is not fitted. Call fit(features, labels) or load it first.")
        if features.names == self._names:
            return features
        unknown = [name for name in features.names if name not in self._names]
        missing = [name for name in self._names if name not in features.names]
        if unknown or missing:
            raise CompressError(
                f"{type(self).__name__} was fitted on {len(self._names)} other features: "
                f"unknown here are {unknown[:3]}, missing are {missing[:3]}. Extract the same features or fit again."
            )
        columns = [features.names.index(name) for name in self._names]
        return FeatureTable(features.values[:, columns], self._names, features.unit_ids, features.group, features.model)

    def save(self, path: str | Path) -> None:
        """Write the fitted labeler into the folder `path`: `labeler.json` and one file for each regression.

        A regression's file carries its own hash in its name and `labeler.json` is written last, so a crash leaves the
        older labeler whole.
        """
        if not self._fitted:
            raise CompressError(f"{type(self).__name__} is not fitted, there is nothing to save. Call fit first.")
        path = Path(path)
        entries = []
        for fitted in self._fitted:
            content = fitted.regressor.dump()
            digest = hashlib.sha256(content).hexdigest()
            file_name = f"{_plain(fitted.problem.name)}.{digest[:12]}.{self.suffix}"
            write_atomic(path / file_name, lambda file, content=content: file.write(content))
            entries.append(
                {
                    "problem": asdict(fitted.problem),
                    "layers": fitted.layers,
                    "parts": fitted.parts,
                    "transform": fitted.transform.to_json(),
                    "calibration": fitted.calibration.to_json(),
                    "file": file_name,
                    "sha256": digest,
                }
            )
        settings = {f.name: getattr(self, f.name) for f in fields(self) if f.init}
        write_json(
            path / INDEX_FILE,
            {
                "schema_version": SCHEMA_VERSION,
                "labeler": self.name,
                "settings": settings,
                "feature_names": list(self._names),
                "choices": list(self._choices),
                "problems": entries,
            },
        )
        for stale in path.glob(f"*.{self.suffix}"):
            if stale.name not in {entry["file"] for entry in entries}:
                stale.unlink(missing_ok=True)

    @classmethod
    def load(cls, path: str | Path) -> Self:
        """Read what `save` wrote. Raises ArtifactError if it is missing, damaged, or of another kind of labeler."""
        path = Path(path)
        index = read_json(path / INDEX_FILE)
        version, kind = (index.get("schema_version"), index.get("labeler")) if isinstance(index, dict) else (None, None)
        if version != SCHEMA_VERSION or kind != cls.name:
            raise ArtifactError(
                f"{path / INDEX_FILE} is a {kind!r} labeler of schema {version!r}. "
                f"{cls.__name__} reads {cls.name!r} of schema {SCHEMA_VERSION}."
            )
        try:
            labeler = cls(**index["settings"])
            labeler._names, labeler._choices = tuple(index["feature_names"]), tuple(index["choices"])
            labeler._fitted = tuple(cls._read_problem(path, entry) for entry in index["problems"])
        except ArtifactError:
            raise
        except (KeyError, TypeError, ValueError, AttributeError) as error:
            raise ArtifactError(f"{path} is not a valid labeler ({error}). Fit and save it again.") from error
        return labeler

    @classmethod
    def _read_problem(cls, path: Path, entry: Mapping[str, Any]) -> FittedProblem:
        file = path / Path(entry["file"]).name
        try:
            content = file.read_bytes()
        except OSError as error:
            raise ArtifactError(
                f"Cannot read {file}: {error.strerror or error}. Fit and save the labeler again."
            ) from error
        # Checked before parsing: the parsers are compiled code that trusts its input.
        if hashlib.sha256(content).hexdigest() != entry["sha256"]:
            raise ArtifactError(f"{file} is damaged (its sha256 differs). Fit and save the labeler again.")
        problem = Problem(**{key: value if key == "name" else tuple(value) for key, value in entry["problem"].items()})
        return FittedProblem(
            problem,
            bool(entry["layers"]),
            bool(entry["parts"]),
            TargetTransform.from_json(entry["transform"]),
            Calibration.from_json(entry["calibration"]),
            cls._parse(content),
        )

    def _check(self, name: str, holds: bool, wanted: str) -> None:
        """Raise CompressError unless `holds`."""
        if not holds:
            raise CompressError(
                f"The '{name}' parameter of {type(self).__name__} must be {wanted}. Got {getattr(self, name)!r}."
            )


def _plain(name: str) -> str:
    """`name` as a file name."""
    return name if name == BITS or name.isidentifier() else hashlib.sha256(name.encode()).hexdigest()[:12]
