"""Gradient-boosted trees (LightGBM) that correct a formula, with settings for hundreds to a few thousand rows."""

import json
from collections.abc import Sequence
from dataclasses import dataclass
from typing import ClassVar

import lightgbm as lgb
import numpy as np
from scipy.stats import spearmanr

from autolabel.choice_rows import BITS
from autolabel.tabular import TabularLabeler

# Fewer rows than this cannot be split into two leaves worth having: the trees then say the mean.
_ROWS_PER_LEAF = 10


# Formulas that trees may start from: of an unseen layer they speak on the scale of the layers they were fitted on.
ANCHORS = (
    "second_order_raw",
    "fisher_raw",
    "taylor_mean_abs_raw",
    "taylor_abs_mean_raw",
    "taylor_signed_raw",
    "grad_second_order",
    "grad_square_log",
    "grad_mean_abs_log",
    "error_refitted_log",
    "error_silenced_log",
)


@dataclass(frozen=True)
class _Line:
    """A formula's column, its slope, its mean and the mean of the target; column -1 says the mean."""

    column: int
    slope: float
    center: float
    mean: float

    def predict(self, x: np.ndarray) -> np.ndarray:
        """`(n_rows,)` what the formula says."""
        return self.mean + self.excess(x)

    def excess(self, x: np.ndarray) -> np.ndarray:
        """`(n_rows,)` the part above the mean."""
        if self.column < 0:
            return np.zeros(len(x))
        return self.slope * (x[:, self.column].astype(np.float64) - self.center)

    @classmethod
    def fit(cls, x: np.ndarray, z: np.ndarray, columns: Sequence[str]) -> "_Line":
        """The formula that orders `z` best, fitted by least squares; the mean if none orders it at all."""
        best, chosen = 0.0, -1
        for column, name in enumerate(columns):
            values = x[:, column]
            if name in ANCHORS and len(z) > 2 and values.min() < values.max() and z.min() < z.max():
                agreement = float(spearmanr(values, z).statistic)
                if agreement > best:
                    best, chosen = agreement, column
        mean = float(z.mean())
        if chosen < 0:
            return cls(-1, 0.0, 0.0, mean)
        values = x[:, chosen].astype(np.float64)
        center = float(values.mean())
        slope = float(((values - center) * (z - mean)).sum() / ((values - center) ** 2).sum())
        # A few large values may turn the slope against the order: then the formula says nothing on this scale.
        return cls(chosen, max(slope, 0.0), center, mean)


@dataclass(frozen=True, eq=False)
class _Trees:
    """A formula and a fitted booster of what it leaves."""

    line: _Line
    booster: lgb.Booster

    def predict(self, x: np.ndarray) -> np.ndarray:
        """`(n_rows,)` predictions."""
        return self.line.predict(x) + np.asarray(self.booster.predict(x, num_threads=1), dtype=np.float64)

    def contributions(self, x: np.ndarray) -> np.ndarray:
        """LightGBM's own SHAP values (Lundberg et al. 2018, "Consistent individualized feature attribution")."""
        split = np.array(self.booster.predict(x, pred_contrib=True, num_threads=1), dtype=np.float64)
        split[:, -1] += self.line.mean
        if self.line.column >= 0:
            split[:, self.line.column] += self.line.excess(x)
        return split

    def dump(self) -> bytes:
        """One line of JSON, then the booster in LightGBM's text format, which keeps every bit."""
        return json.dumps(vars(self.line)).encode() + b"\n" + self.booster.model_to_string(num_iteration=-1).encode()


@dataclass
class GBDTLabeler(TabularLabeler):
    """Boosted trees on what the best formula leaves of the transformed damage.

    With hundreds of rows of a few layers, trees alone say nothing sound of a layer they have not seen. So the formula
    among the features that orders the labels best speaks first, and the trees learn to correct it. Of the bit-widths
    they are told that fewer bits never help.

    Attributes:
        rounds: number of trees.
        learning_rate: step of each tree.
        leaves: leaves of each tree.
        feature_fraction: share of the columns each tree sees.
    """

    rounds: int = 100
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
        line = _Line.fit(x, z, columns)
        data = lgb.Dataset(x, label=z - line.predict(x))
        return _Trees(line, lgb.train(parameters, data, num_boost_round=self.rounds))

    @classmethod
    def _parse(cls, content: bytes) -> _Trees:
        try:
            line, _, text = content.decode().partition("\n")
            return _Trees(_Line(**json.loads(line)), lgb.Booster(model_str=text))
        except (lgb.basic.LightGBMError, TypeError) as error:
            raise ValueError(str(error)) from error
