"""A plan labeler's scores, corrected by a few plans that were measured on the network itself."""

from dataclasses import dataclass

import numpy as np

from autolabel.plan_board import normal_scores, plan_matrix
from autolabel.plan_labeler import PlanLabeler
from autolabel.plan_summary import PlanSummary, join_summaries
from compress.errors import CompressError


@dataclass(frozen=True, eq=False)
class AdaptedPlanLabeler:
    """A fitted plan labeler that knows a few plans of the network it is asked about; it judges as `PlanLabeler` does.

    Args:
        labeler: who judges.
        plans: those that were measured.
        losses: theirs, at any one moment.
        others: random plans of the same size. Plans that are asked about without a reference are compared with these:
            favourites among themselves are so alike that the measured plans would lie outside of all they are.

    Raises:
        CompressError: for fewer than two measured plans, or losses that are not finite.
    """

    labeler: PlanLabeler
    plans: PlanSummary
    losses: np.ndarray
    others: PlanSummary

    def __post_init__(self) -> None:
        _check(np.arange(len(self.plans.plan_values)), self.losses)

    def predict(self, summary: PlanSummary, reference: PlanSummary | None = None) -> tuple[np.ndarray, np.ndarray]:
        """See `PlanLabeler.predict`."""
        compared = self.others if reference is None else reference
        whole, n = join_summaries(self.plans, summary), len(self.losses)
        score, spread = self.labeler.predict(whole, compared)
        known = self.labeler.predict(compared)[0]
        standard = (score - known.mean()) / max(float(known.std()), 1e-9)
        return adapt(standard, whole, np.arange(n), self.losses, reference=compared)[n:], spread[n:]


def adapt(
    score: np.ndarray, summary: PlanSummary, measured: np.ndarray, losses: np.ndarray, *, slope: float = 0.75,
    variance: float = 0.5, noise: float = 0.3, length: float = 1.0, reference: PlanSummary | None = None,
) -> np.ndarray:  # fmt: skip
    """`(n_plans,)` scores, higher is worse: what plans like these were found to lose more or less than expected.

    A Gaussian process over the standardised numbers of the plans, whose mean is the labeler's opinion (Rasmussen and
    Williams 2006, chapter 2).

    Args:
        score: `(n_plans,)` the labeler's, see `PlanLabeler`.
        summary: of the same plans.
        measured: rows of the plans that were measured.
        losses: theirs, at any one moment.
        slope: how much of the labeler's opinion, in standard deviations of the plans, is believed.
        variance, noise: of what the labeler gets wrong, and of the measured normal scores.
        length: of the kernel, in median distances between plans and those that were measured.
        reference: plans that scores were standardised among, and whose distances are meant; None to take these.

    Raises:
        CompressError: for fewer than two measured plans, or losses that are not finite.
    """
    measured, losses = np.asarray(measured), np.asarray(losses, dtype=np.float64)
    _check(measured, losses)
    standard = score if reference is not None else (score - score.mean()) / max(float(score.std()), 1e-9)
    prior = slope * standard
    x = _standard_numbers(summary, reference)
    typical = x if reference is None else _standard_numbers(reference, None)
    apart = _squared_distances(typical, x[measured])
    scale = 2 * length**2 * max(float(np.median(apart[apart > 0])) if (apart > 0).any() else 1.0, 1e-12)
    distance = _squared_distances(x, x[measured])
    kernel = variance * np.exp(-distance / scale)
    wrong = normal_scores(losses) - prior[measured]
    # Measured plans are compared with one another: where all of them lie among all plans is the labeler's to say.
    wrong = wrong - wrong.mean()
    return prior + kernel @ np.linalg.solve(kernel[measured] + noise * np.eye(len(measured)), wrong)


def _standard_numbers(summary: PlanSummary, reference: PlanSummary | None) -> np.ndarray:
    """`(n_plans, n_numbers)` of whole plans, in standard deviations of the reference."""
    matrix, names = plan_matrix(summary, reference)
    return np.clip(matrix[:, [i for i, name in enumerate(names) if name.startswith("z_")]], -3, 3)


def _squared_distances(a: np.ndarray, b: np.ndarray) -> np.ndarray:
    """`(len(a), len(b))`"""
    return ((a[:, None] - b[None]) ** 2).sum(axis=2)


def _check(measured: np.ndarray, losses: np.ndarray) -> None:
    if len(measured) != len(losses) or len(losses) < 2 or not np.isfinite(losses).all():
        raise CompressError(f"At least two plans with finite losses are needed. Got {len(measured)} and {losses}.")
