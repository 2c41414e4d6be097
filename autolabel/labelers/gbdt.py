"""Gradient-boosted trees (LightGBM), with settings for hundreds to a few thousand rows."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import ClassVar

import lightgbm as lgb
import numpy as np

from autolabel.choice_rows import BITS
from autolabel.tabular import TabularLabeler

# Fewer rows than this cannot be split into two leaves worth having: the trees then say the mean.
_ROWS_PER_LEAF = 10


@dataclass(frozen=True, eq=False)
class _Trees:
    """A fitted booster."""

    booster: lgb.Booster

    def predict(self, x: np.ndarray) -> np.ndarray:
        """`(n_rows,)` predictions."""
        return np.asarray(self.booster.predict(x, num_threads=1), dtype=np.float64)

    def contributions(self, x: np.ndarray) -> np.ndarray:
        """LightGBM's own SHAP values (Lundberg et al. 2018, "Consistent individualized feature attribution")."""
        return np.asarray(self.booster.predict(x, pred_contrib=True, num_threads=1), dtype=np.float64)

    def dump(self) -> bytes:
        """The booster in LightGBM's text format, which keeps every bit."""
        return self.booster.model_to_string(num_iteration=-1).encode()


@dataclass
class GBDTLabeler(TabularLabeler):
    """Boosted trees on the transformed damage; of the bit-widths it is told that fewer bits never help.

    Attributes:
        rounds: number of trees.
        learning_rate: step of each tree.
        leaves: leaves of each tree.
        feature_fraction: share of the columns each tree sees.
    """

    rounds: int = 200
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
        return _Trees(lgb.train(parameters, lgb.Dataset(x, label=z), num_boost_round=self.rounds))

    @classmethod
    def _parse(cls, content: bytes) -> _Trees:
        try:
            return _Trees(lgb.Booster(model_str=content.decode()))
        except lgb.basic.LightGBMError as error:
            raise ValueError(str(error)) from error
