"""The seam of plan labelers: they order plans of one size by the loss after repair and fine-tuning."""

from collections.abc import Sequence
from pathlib import Path
from typing import Protocol, runtime_checkable

import numpy as np

from autolabel.plan_board import PlanBoard
from autolabel.plan_summary import PlanSummary


@runtime_checkable
class PlanLabeler(Protocol):
    """Learns from boards of many networks. Every file in `plan_labelers/` holds one, named like its file."""

    name: str

    def fit(self, boards: Sequence[PlanBoard], moment: str = "finetuned") -> "PlanLabeler":
        """Learn the loss at this moment; returns itself. Raises CompressError without boards."""

    def predict(self, summary: PlanSummary, reference: PlanSummary | None = None) -> tuple[np.ndarray, np.ndarray]:
        """`(score, spread)`, each `(n_plans,)` float64: where each plan stands among those of the reference.

        Scores are normal scores of ranks, higher is worse; the spread is the standard deviation over the ensemble.
        Without a reference the plans are compared with one another.
        """

    def save(self, path: str | Path) -> None:
        """Write the fitted labeler as text or safetensors into the folder `path`."""

    @classmethod
    def load(cls, path: str | Path) -> "PlanLabeler":
        """Read what `save` wrote. Raises ArtifactError if it is missing, damaged or of another kind."""
