"""Gradient-boosted trees over ranks of a unit's features."""

import itertools
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any, ClassVar

import lightgbm as lgb
import numpy as np
from scipy.stats import rankdata

from autolabel.plan_labelers.gbdt import OBJECTIVES
from autolabel.unit_board import UnitBoard, unit_matrix
from compress.errors import CompressError

_GRADES = 31


@dataclass(eq=False)
class GBDTUnitLabeler:
    """LightGBM on normal scores of damages within each query, or LambdaRank on the queries.

    Args:
        objective: `"regression"` or `"lambdarank"` (Burges 2010).
        rounds, learning_rate, leaves, min_leaf, feature_fraction: of the trees.
        seed: of everything random.
    """

    name: ClassVar[str] = "gbdt"

    objective: str = "regression"
    rounds: int = 200
    learning_rate: float = 0.05
    leaves: int = 31
    min_leaf: int = 40
    feature_fraction: float = 0.3
    seed: int = 0
    _model: Any = field(default=None, repr=False)
    _fitted_on: tuple[str, tuple[str, ...]] | None = field(default=None, repr=False)

    def __post_init__(self) -> None:
        if self.objective not in OBJECTIVES:
            raise CompressError(
                f"The 'objective' parameter of GBDTUnitLabeler must be one of {OBJECTIVES}. Got {self.objective!r}."
            )

    def fit(self, boards: Sequence[UnitBoard], moment: str) -> "GBDTUnitLabeler":
        """See `UnitLabeler`."""
        if not boards:
            raise CompressError("A unit labeler needs at least one board to learn from. Got none.")
        self._fitted_on = boards[0].scope, boards[0].names
        orders = [np.concatenate(board.queries()) for board in boards]
        x = np.concatenate([unit_matrix(board)[order] for board, order in zip(boards, orders, strict=True)])
        y = np.concatenate([board.target(moment)[order] for board, order in zip(boards, orders, strict=True)])
        ranking: dict[str, Any] = {}
        sizes = None
        if self.objective == "lambdarank":
            sizes = [len(rows) for board in boards for rows in board.queries()]
            starts = np.cumsum([0, *sizes])
            y = np.concatenate([_grades(y[a:b]) for a, b in itertools.pairwise(starts)])
            ranking = {"label_gain": list(range(_GRADES)), "lambdarank_truncation_level": 1000}
        settings = {
            "objective": self.objective, "learning_rate": self.learning_rate, "num_leaves": self.leaves,
            "min_data_in_leaf": self.min_leaf, "feature_fraction": self.feature_fraction, "bagging_fraction": 0.7,
            "bagging_freq": 1, "lambda_l2": 5.0, "max_bin": 63, "seed": self.seed, "deterministic": True,
            "force_row_wise": True, "num_threads": 1, "verbose": -1, **ranking,
        }  # fmt: skip
        self._model = lgb.train(settings, lgb.Dataset(x, y, group=sizes), self.rounds)
        return self

    def predict(self, board: UnitBoard) -> np.ndarray:
        """See `UnitLabeler`."""
        if self._model is None:
            raise CompressError("This unit labeler was not fitted. Call fit first.")
        if (board.scope, board.names) != self._fitted_on:
            raise CompressError("This unit labeler was fitted on other features, or in another scope.")
        return np.asarray(self._model.predict(unit_matrix(board), num_threads=1))


def _grades(scores: np.ndarray) -> np.ndarray:
    """Whole numbers from 0 to 30, as many steps as there are."""
    rank = rankdata(scores) - 1
    return np.floor(rank / max(len(rank) - 1, 1) * (_GRADES - 1)).astype(np.int64)
