"""Gradient-boosted trees (LightGBM) that correct formulas, with settings for hundreds to a few thousand rows."""

import json
from collections.abc import Sequence
from dataclasses import asdict, dataclass, replace
from typing import ClassVar

import lightgbm as lgb
import numpy as np
from scipy.stats import spearmanr

from autolabel.choice_rows import BITS
from autolabel.tabular import TabularLabeler

# Fewer rows than this cannot be split into two leaves worth having: the trees then say the mean.
_ROWS_PER_LEAF = 10


# Formulas that trees start from: of an unseen layer they speak on the scale of the layers they were fitted on.
ANCHORS = (
    "grad_second_order",
    "grad_square_log",
    "grad_mean_abs_log",
    "taylor_abs_mean_raw",
    "error_refitted_log",
    "error_silenced_log",
)


_LOUDEST = 6.0


@dataclass(frozen=True)
class _Committee:
    """The mean of several formulas, each on a common scale, and the line that turns it into the target.

    Which single formula orders a network best changes from network to network and, with few labels, by chance; their
    mean is close to the best everywhere.

    Attributes:
        columns: of the formulas that order the labels at all; empty says the mean.
        bends, centers, deviations: per column, `(asinh(x / bend) - center) / deviation` is its voice.
        lowest: per column, the least `asinh(x / bend)` it was fitted on. A silent unit of a layer without labels lies
            far below all that have some (logs end at a floor), and would be said to help.
        slope, mean: of the line.
    """

    columns: tuple[int, ...]
    bends: tuple[float, ...]
    centers: tuple[float, ...]
    deviations: tuple[float, ...]
    lowest: tuple[float, ...]
    slope: float
    mean: float

    def voices(self, x: np.ndarray) -> np.ndarray:
        """`(n_rows, n_formulas)` what each adds to the mean; their sum is the committee's word."""
        bent = np.arcsinh(x[:, list(self.columns)].astype(np.float64) / np.array(self.bends))
        bent = np.maximum(bent, np.array(self.lowest))
        share = self.slope / max(len(self.columns), 1)
        # An outlier of one formula must not outvote all others.
        return share * np.clip((bent - np.array(self.centers)) / np.array(self.deviations), -_LOUDEST, _LOUDEST)

    def predict(self, x: np.ndarray) -> np.ndarray:
        """`(n_rows,)` what the formulas say."""
        return self.mean + self.voices(x).sum(axis=1)

    @classmethod
    def fit(cls, x: np.ndarray, z: np.ndarray, columns: Sequence[str]) -> "_Committee":
        """The formulas that order `z` in the right direction, and the line by least squares."""
        mean = float(z.mean())
        chosen = [
            column
            for column, name in enumerate(columns)
            if name in ANCHORS and len(z) > 2 and _varies(x[:, column]) and _varies(z)
            and spearmanr(x[:, column], z).statistic > 0
        ]  # fmt: skip
        if not chosen:
            return cls((), (), (), (), (), 0.0, mean)
        values = x[:, chosen].astype(np.float64)
        # Of a column that is mostly zero the bend is that of the others.
        sizes = [np.abs(column[column != 0]) for column in values.T]
        bends = np.array([max(float(np.median(size)), float(np.finfo(np.float32).tiny)) for size in sizes])
        bent = np.arcsinh(values / bends)
        deviations = np.maximum(bent.std(axis=0), 1e-9)
        numbers = (bends, bent.mean(axis=0), deviations, bent.min(axis=0))
        committee = cls(tuple(chosen), *(tuple(v.tolist()) for v in numbers), 1.0, mean)
        said = committee.voices(x).sum(axis=1)
        # A few large values may turn the slope against the order: then the formulas say nothing on this scale.
        slope = float((said * (z - mean)).sum() / max(float((said**2).sum()), 1e-300))
        return replace(committee, slope=max(slope, 0.0))


def _varies(values: np.ndarray) -> bool:
    return bool(values.min() < values.max())


@dataclass(frozen=True, eq=False)
class _Trees:
    """Formulas and a fitted booster of what they leave."""

    formulas: _Committee
    booster: lgb.Booster

    def predict(self, x: np.ndarray) -> np.ndarray:
        """`(n_rows,)` predictions."""
        return self.formulas.predict(x) + np.asarray(self.booster.predict(x, num_threads=1), dtype=np.float64)

    def contributions(self, x: np.ndarray) -> np.ndarray:
        """LightGBM's own SHAP values (Lundberg et al. 2018, "Consistent individualized feature attribution")."""
        split = np.array(self.booster.predict(x, pred_contrib=True, num_threads=1), dtype=np.float64)
        split[:, -1] += self.formulas.mean
        split[:, list(self.formulas.columns)] += self.formulas.voices(x)
        return split

    def dump(self) -> bytes:
        """One line of JSON, then the booster in LightGBM's text format, which keeps every bit."""
        return (
            json.dumps(asdict(self.formulas)).encode() + b"\n" + self.booster.model_to_string(num_iteration=-1).encode()
        )


@dataclass
class GBDTLabeler(TabularLabeler):
    """Boosted trees on what the classic formulas leave of the transformed damage.

    With hundreds of rows of a few layers, trees alone say nothing sound of a layer they have not seen. So the mean of
    the formulas among the features that order the labels speaks first, and the trees learn to correct it. Of the
    bit-widths they are told that fewer bits never help.

    Attributes:
        rounds: number of trees.
        learning_rate: step of each tree.
        leaves: leaves of each tree.
        feature_fraction: share of the columns each tree sees.
    """

    rounds: int = 30
    learning_rate: float = 0.05
    leaves: int = 7
    feature_fraction: float = 0.5

    name: ClassVar[str] = "gbdt"
    suffix: ClassVar[str] = "txt"

    def __post_init__(self) -> None:
        super().__post_init__()
        self._check("rounds", isinstance(self.rounds, int) and self.rounds >= 1, "a positive int")
        self._check("leaves", isinstance(self.leaves, int) and self.leaves >= 2, "an int of at least 2")
        self._check("learning_rate", 0.0 < self.learning_rate <= 1.0, "a float in (0, 1]")
        self._check("feature_fraction", 0.0 < self.feature_fraction <= 1.0, "a float in (0, 1]")

    def _regress(self, x: np.ndarray, z: np.ndarray, keys: np.ndarray, columns: Sequence[str]) -> _Trees:
        parameters = {
            "objective": "regression",
            "learning_rate": self.learning_rate,
            "num_leaves": self.leaves,
            "min_data_in_leaf": max(1, min(5, len(z) // _ROWS_PER_LEAF)),
            "min_data_in_bin": 1,
            "max_bin": 127,
            "feature_fraction": self.feature_fraction,
            "bagging_fraction": 0.8 if len(z) > _ROWS_PER_LEAF else 1.0,
            "bagging_freq": 1,
            "lambda_l2": 1.0,
            "monotone_constraints": [-1 if column == BITS else 0 for column in columns],
            "feature_pre_filter": False,
            "seed": self.seed,
            "deterministic": True,
            "force_row_wise": True,
            "num_threads": 1,
            "verbosity": -1,
        }
        # Feature names may hold characters that LightGBM's text format forbids, so columns are numbered there.
        formulas = _Committee.fit(x, z, columns)
        data = lgb.Dataset(x, label=z - formulas.predict(x))
        return _Trees(formulas, lgb.train(parameters, data, num_boost_round=self.rounds))

    @classmethod
    def _parse(cls, content: bytes) -> _Trees:
        try:
            line, _, text = content.decode().partition("\n")
            formulas = {key: tuple(v) if isinstance(v, list) else v for key, v in json.loads(line).items()}
            return _Trees(_Committee(**formulas), lgb.Booster(model_str=text))
        except (lgb.basic.LightGBMError, TypeError) as error:
            raise ValueError(str(error)) from error
