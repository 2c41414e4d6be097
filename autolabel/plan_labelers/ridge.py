"""Ridge regression over numbers of whole plans, compared within each board."""

from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import ClassVar

import numpy as np
import safetensors.numpy
from safetensors import SafetensorError

from autolabel.plan_board import PlanBoard, plan_matrix, select_columns
from autolabel.plan_labeler_files import load_members, save_members
from autolabel.plan_summary import PlanSummary
from compress.errors import ArtifactError, CompressError


@dataclass(eq=False)
class RidgePlanLabeler:
    """A linear model of the columns that are standardised or ranked within a board: the floor of what is learned.

    Args:
        strength: of the penalty, as a part of the number of rows.
    """

    name: ClassVar[str] = "ridge"

    strength: float = 0.3
    _weight: np.ndarray | None = field(default=None, repr=False)
    _names: tuple[str, ...] = field(default=(), repr=False)

    def fit(self, boards: Sequence[PlanBoard], moment: str = "finetuned") -> "RidgePlanLabeler":
        """See `PlanLabeler`."""
        if not boards:
            raise CompressError("A plan labeler needs at least one board to learn from. Got none.")
        found = [self._columns(board.summary) for board in boards]
        self._names = found[0][1]
        x = np.concatenate([columns for columns, _ in found])
        y = np.concatenate([board.target(moment) for board in boards])
        gram = x.T @ x + self.strength * len(x) * np.eye(x.shape[1])
        self._weight = np.linalg.solve(gram, x.T @ y)
        return self

    def predict(self, summary: PlanSummary, reference: PlanSummary | None = None) -> tuple[np.ndarray, np.ndarray]:
        """See `PlanLabeler`."""
        if self._weight is None:
            raise CompressError("This plan labeler was not fitted. Call fit first.")
        score = select_columns(*self._columns(summary, reference), self._names) @ self._weight
        return score, np.zeros(len(score))

    def save(self, path: str | Path) -> None:
        """See `PlanLabeler`."""
        save_members(path, self, self._names, [("safetensors", safetensors.numpy.save({"weight": self.weight}))])

    @classmethod
    def load(cls, path: str | Path) -> "RidgePlanLabeler":
        """See `PlanLabeler`."""
        settings, names, members = load_members(path, cls.name)
        try:
            labeler = cls(**settings)
            labeler.restore(safetensors.numpy.load(members[0])["weight"], names)
        except (TypeError, ValueError, KeyError, IndexError, RuntimeError, SafetensorError) as error:
            raise ArtifactError(f"{path} is not a valid plan labeler ({error}). Fit and save it again.") from error
        return labeler

    @property
    def columns(self) -> tuple[str, ...]:
        """Names of what the model reads."""
        return self._names

    @property
    def weight(self) -> np.ndarray:
        """`(n_columns,)`. Raises CompressError if it was not fitted."""
        if self._weight is None:
            raise CompressError("This plan labeler was not fitted. Call fit first.")
        return self._weight

    def restore(self, weight: np.ndarray, columns: tuple[str, ...]) -> None:
        """Take over what `weight` and `columns` gave."""
        if weight.shape != (len(columns),):
            raise ValueError(f"{len(columns)} columns, {weight.shape} weights")
        self._weight, self._names = weight, columns

    def _columns(
        self, summary: PlanSummary, reference: PlanSummary | None = None
    ) -> tuple[np.ndarray, tuple[str, ...]]:
        matrix, names = plan_matrix(summary, reference)
        chosen = [i for i, name in enumerate(names) if name.startswith(("z_", "rank_"))]
        scale = np.array([3.0 if names[i].startswith("rank_") else 1.0 for i in chosen])
        return np.clip(matrix[:, chosen], -4, 4) * scale, tuple(names[i] for i in chosen)
