"""Gradient-boosted trees over numbers of whole plans, pooled over groups."""

from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, ClassVar

import lightgbm as lgb
import numpy as np

from autolabel.plan_board import PlanBoard, plan_matrix, select_columns
from autolabel.plan_labeler_files import load_members, save_members
from autolabel.plan_summary import PlanSummary
from compress.errors import ArtifactError, CompressError

OBJECTIVES = ("regression", "lambdarank")
# LambdaRank wants whole-number grades; gains grow linearly, since all of the order matters, not only its top.
_GRADES = 31


@dataclass(eq=False)
class GBDTPlanLabeler:
    """LightGBM on normal scores of ranks within each board, or LambdaRank on graded ranks.

    An ensemble: each member leaves out a part of the networks, drawn at random, so its spread tells how much a
    prediction hangs on which networks were seen.

    Args:
        objective: `"regression"` or `"lambdarank"` (Burges 2010, "From RankNet to LambdaRank to LambdaMART").
        members: size of the ensemble.
        rounds, learning_rate, leaves, min_leaf, feature_fraction: of each member.
        seed: of everything random.
    """

    name: ClassVar[str] = "gbdt"

    objective: str = "regression"
    members: int = 4
    rounds: int = 300
    learning_rate: float = 0.04
    leaves: int = 15
    min_leaf: int = 30
    feature_fraction: float = 0.2
    seed: int = 0
    _models: list[Any] = field(default_factory=list, repr=False)
    _names: tuple[str, ...] = field(default=(), repr=False)

    def __post_init__(self) -> None:
        if self.objective not in OBJECTIVES:
            raise CompressError(
                f"The 'objective' parameter of GBDTPlanLabeler must be one of {OBJECTIVES}. Got {self.objective!r}."
            )

    def fit(self, boards: Sequence[PlanBoard], moment: str = "finetuned") -> "GBDTPlanLabeler":
        """See `PlanLabeler`."""
        if not boards:
            raise CompressError("A plan labeler needs at least one board to learn from. Got none.")
        matrices = [plan_matrix(board.summary) for board in boards]
        self._names = matrices[0][1]
        targets = [self._target(board.target(moment)) for board in boards]
        rng = np.random.default_rng(self.seed)
        self._models = []
        for member in range(self.members):
            chosen = np.flatnonzero(rng.random(len(boards)) < 0.85) if self.members > 1 else np.arange(len(boards))
            chosen = chosen if len(chosen) else np.arange(len(boards))
            x = np.concatenate([matrices[i][0] for i in chosen]).astype(np.float32)
            y = np.concatenate([targets[i] for i in chosen])
            groups = [len(targets[i]) for i in chosen] if self.objective == "lambdarank" else None
            data = lgb.Dataset(x, y, group=groups, free_raw_data=True)
            self._models.append(lgb.train(self._settings(member), data, self.rounds))
        return self

    def predict(self, summary: PlanSummary, reference: PlanSummary | None = None) -> tuple[np.ndarray, np.ndarray]:
        """See `PlanLabeler`."""
        if not self._models:
            raise CompressError("This plan labeler was not fitted. Call fit first.")
        found = self._raw(select_columns(*plan_matrix(summary, reference), self._names))
        if self.objective == "lambdarank":
            # Its scores have no scale: that of the plans compared with.
            known = found if reference is None else self._raw(select_columns(*plan_matrix(reference), self._names))
            mean, deviation = known.mean(axis=1, keepdims=True), known.std(axis=1, keepdims=True)
            found = (found - mean) / np.maximum(deviation, 1e-9)
        return found.mean(axis=0), found.std(axis=0)

    def save(self, path: str | Path) -> None:
        """See `PlanLabeler`."""
        save_members(path, self, self._names, [("txt", text) for text in self.texts()])

    @classmethod
    def load(cls, path: str | Path) -> "GBDTPlanLabeler":
        """See `PlanLabeler`."""
        settings, names, members = load_members(path, cls.name)
        try:
            labeler = cls(**settings)
            labeler.restore(members, names)
        except (TypeError, ValueError, KeyError, IndexError, RuntimeError) as error:
            raise ArtifactError(f"{path} is not a valid plan labeler ({error}). Fit and save it again.") from error
        return labeler

    @property
    def columns(self) -> tuple[str, ...]:
        """Names of what the trees read."""
        return self._names

    def texts(self) -> list[bytes]:
        """Each member in LightGBM's text format. Raises CompressError if it was not fitted."""
        if not self._models:
            raise CompressError("This plan labeler was not fitted. Call fit first.")
        return [model.model_to_string(num_iteration=-1).encode() for model in self._models]

    def restore(self, texts: Sequence[bytes], columns: tuple[str, ...]) -> None:
        """Take over members that `texts` gave. Raises ValueError for a text that is no model."""
        try:
            self._models = [lgb.Booster(model_str=content.decode()) for content in texts]
        except lgb.basic.LightGBMError as error:
            raise ValueError(str(error)) from error
        self._names = columns

    def _raw(self, x: np.ndarray) -> np.ndarray:
        """`(n_members, n_plans)`"""
        return np.stack([model.predict(x.astype(np.float32), num_threads=1) for model in self._models])

    def _target(self, scores: np.ndarray) -> np.ndarray:
        if self.objective == "regression":
            return scores
        rank = np.argsort(np.argsort(scores))
        return np.floor(rank / max(len(rank) - 1, 1) * (_GRADES - 1)).astype(np.int64)

    def _settings(self, member: int) -> dict[str, Any]:
        ranking = {"label_gain": list(range(_GRADES)), "lambdarank_truncation_level": 1000}
        return {
            "objective": self.objective, "learning_rate": self.learning_rate, "num_leaves": self.leaves,
            "min_data_in_leaf": self.min_leaf, "feature_fraction": self.feature_fraction, "bagging_fraction": 0.7,
            "bagging_freq": 1, "lambda_l2": 5.0, "max_bin": 63, "seed": self.seed + member, "deterministic": True,
            "force_row_wise": True, "num_threads": 1, "verbose": -1,
            **(ranking if self.objective == "lambdarank" else {}),
        }  # fmt: skip
