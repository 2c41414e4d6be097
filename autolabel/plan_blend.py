"""Trees, a linear model and a formula, each asked for its opinion."""

from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import ClassVar

import numpy as np
import safetensors.numpy
from safetensors import SafetensorError

from autolabel.plan_board import PlanBoard
from autolabel.plan_formula import PlanFormula
from autolabel.plan_labeler_files import load_members, save_members
from autolabel.plan_labelers.gbdt import GBDTPlanLabeler
from autolabel.plan_labelers.ridge import RidgePlanLabeler
from autolabel.plan_summary import PlanSummary
from compress.errors import ArtifactError, CompressError

_DAMAGED = (TypeError, ValueError, KeyError, IndexError, RuntimeError, SafetensorError)


@dataclass(eq=False)
class BlendPlanLabeler:
    """The mean of three: `GBDTPlanLabeler`, `RidgePlanLabeler`, and the error in nats that a refit leaves.

    Each is standardised among the plans compared with. The formula weighs as much as it agrees with the losses that the
    others learn from, the others 1. The spread is the disagreement of the three.

    Args:
        members, rounds: of the trees.
        strength: of the linear model.
        formula: name of a column of whole plans, higher is worse.
        seed: of everything random.
        parts: whose opinions count, out of `PARTS`; all are fitted.

    Raises:
        CompressError: for no part or one that is not known.
    """

    name: ClassVar[str] = "blend"
    PARTS: ClassVar[tuple[str, ...]] = ("trees", "linear", "formula")

    members: int = 2
    rounds: int = 200
    strength: float = 1.0
    formula: str = "refitted_loss_sum"
    seed: int = 0
    parts: tuple[str, ...] = PARTS
    _trees: GBDTPlanLabeler | None = field(default=None, repr=False)
    _linear: RidgePlanLabeler | None = field(default=None, repr=False)
    _weight: float = field(default=0.0, repr=False)

    def __post_init__(self) -> None:
        self.parts = tuple(self.parts)
        if not self.parts or not set(self.parts) <= set(self.PARTS):
            raise CompressError(
                f"The 'parts' parameter of BlendPlanLabeler must be out of {self.PARTS}. Got {self.parts}."
            )

    def without(self, part: str) -> "BlendPlanLabeler":
        """The same, already fitted if this one is, with the opinion of one part not heard."""
        return replace(self, parts=tuple(other for other in self.parts if other != part))

    def fit(self, boards: Sequence[PlanBoard], moment: str = "finetuned") -> "BlendPlanLabeler":
        """See `PlanLabeler`."""
        trees, linear = self._parts()
        self._trees, self._linear = trees.fit(boards, moment), linear.fit(boards, moment)
        agreement = [
            _correlation(PlanFormula(self.formula).values(board.summary), board.target(moment)) for board in boards
        ]
        self._weight = max(float(np.mean(agreement)), 0.0)
        return self

    def _parts(self) -> tuple[GBDTPlanLabeler, RidgePlanLabeler]:
        trees = GBDTPlanLabeler(members=self.members, rounds=self.rounds, leaves=8, seed=self.seed)
        return trees, RidgePlanLabeler(strength=self.strength)

    def predict(self, summary: PlanSummary, reference: PlanSummary | None = None) -> tuple[np.ndarray, np.ndarray]:
        """See `PlanLabeler`."""
        trees, linear = self._fitted()
        compared = summary if reference is None else reference
        opinions = np.stack([
            _standard(trees.predict(summary, reference)[0], trees.predict(compared)[0]),
            _standard(linear.predict(summary, reference)[0], linear.predict(compared)[0]),
            PlanFormula(self.formula).predict(summary, reference)[0],
        ])  # fmt: skip
        heard = np.array([part in self.parts for part in self.PARTS])
        weights = (np.array([1.0, 1.0, self._weight]) * heard)[:, None]
        weights = weights / max(float(weights.sum()), 1e-12)
        score = (weights * opinions).sum(axis=0)
        return score, np.sqrt((weights * (opinions - score) ** 2).sum(axis=0))

    def save(self, path: str | Path) -> None:
        """See `PlanLabeler`."""
        trees, linear = self._fitted()
        own = {"weight": linear.weight, "formula_weight": np.array([self._weight])}
        members = [("safetensors", safetensors.numpy.save(own)), *(("txt", text) for text in trees.texts())]
        save_members(path, self, (*trees.columns, "", *linear.columns), members)

    @classmethod
    def load(cls, path: str | Path) -> "BlendPlanLabeler":
        """See `PlanLabeler`."""
        settings, names, members = load_members(path, cls.name)
        try:
            labeler = cls(**settings)
            labeler._trees, labeler._linear = labeler._parts()
            split = names.index("")
            own = safetensors.numpy.load(members[0])
            labeler._weight = float(own["formula_weight"][0])
            labeler._linear.restore(own["weight"], names[split + 1 :])
            labeler._trees.restore(members[1:], names[:split])
        except _DAMAGED as error:
            raise ArtifactError(f"{path} is not a valid plan labeler ({error}). Fit and save it again.") from error
        return labeler

    def _fitted(self) -> tuple[GBDTPlanLabeler, RidgePlanLabeler]:
        if self._trees is None or self._linear is None:
            raise CompressError("This plan labeler was not fitted. Call fit first.")
        return self._trees, self._linear


def _standard(values: np.ndarray, others: np.ndarray) -> np.ndarray:
    return (values - others.mean()) / max(float(others.std()), 1e-9)


def _correlation(a: np.ndarray, b: np.ndarray) -> float:
    a, b = a - a.mean(), b - b.mean()
    return float((a * b).sum() / max(float(np.linalg.norm(a) * np.linalg.norm(b)), 1e-12))
