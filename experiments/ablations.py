"""What each ingredient of a plan labeler is worth: labelers that go without one."""

import re
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import partial

import numpy as np

from autolabel.plan_blend import BlendPlanLabeler
from autolabel.plan_board import AFTER_REPAIR, PlanBoard
from autolabel.plan_labeler import PlanLabeler
from autolabel.plan_labelers import RidgePlanLabeler
from autolabel.plan_oracle import MOMENTS
from autolabel.plan_summary import PlanSummary

# What goes without an ingredient -> the columns of summaries that the ingredient is.
INGREDIENTS: Mapping[str, str] = {
    "criteria": r"(?!macs_|bytes_|sensitivity_).*_(share|place)|log_removed_.*",
    "second-order nats of plans": r"(log_)?(fisher|second_order)_nats|log_second_order_and_format_nats",
    "silencing and averaging": r"(silenced|averaged)_.*",
    "least squares": r"refitted_.*|path_.*|effective_rank|rank_kept|log_refit_and_format_nats",
    "errors carried to outputs and loss": r"(silenced|averaged|refitted|path)_(output|loss).*|log_refit_and_.*",
    "paths through the network": r"path_.*",
    "shares of groups": r"kept|log_kept|log_kept_units",
    "bits": r"(least_|mean_|fewest_)?bits(_share)?|.*format.*|log_kept_weights",
}

# What goes without a part of the networks -> the part that it learns from.
PARTS_OF_NETWORKS: Mapping[str, float] = {"half": 0.5, "three quarters": 0.25, "seven eighths": 0.125}


@dataclass(eq=False)
class WithoutColumns:
    """A plan labeler that does not see some columns.

    Args:
        labeler: who learns from the others.
        pattern: of the names that it does not see.
    """

    labeler: PlanLabeler
    pattern: str

    def fit(self, boards: Sequence[PlanBoard], moment: str = "finetuned") -> "WithoutColumns":
        """See `PlanLabeler`."""
        self.labeler.fit([replace(board, summary=self._seen(board.summary)) for board in boards], moment)
        return self

    def predict(self, summary: PlanSummary, reference: PlanSummary | None = None) -> tuple[np.ndarray, np.ndarray]:
        """See `PlanLabeler`."""
        return self.labeler.predict(self._seen(summary), None if reference is None else self._seen(reference))

    def _seen(self, summary: PlanSummary) -> PlanSummary:
        stays = [i for i, name in enumerate(summary.names) if not re.fullmatch(self.pattern, name)]
        whole = [i for i, name in enumerate(summary.plan_names) if not re.fullmatch(self.pattern, name)]
        return PlanSummary(
            summary.groups,
            tuple(summary.names[i] for i in stays),
            summary.values[:, :, stays],
            tuple(summary.plan_names[i] for i in whole),
            summary.plan_values[:, whole],
        )


@dataclass(eq=False)
class LearnedOtherwise:
    """A plan labeler that learns from a part of the networks, drawn at random, or from the losses at another moment.

    Args:
        labeler: who learns.
        part: of the networks, in (0, 1].
        moment: see `PlanBoard.target`; None for the one that it is asked to learn.
        seed: of the drawing.
    """

    labeler: PlanLabeler
    part: float = 1.0
    moment: str | None = None
    seed: int = 0

    def fit(self, boards: Sequence[PlanBoard], moment: str = "finetuned") -> "LearnedOtherwise":
        """See `PlanLabeler`."""
        few = np.random.default_rng(self.seed).permutation(len(boards))[: max(round(self.part * len(boards)), 1)]
        self.labeler.fit([boards[i] for i in np.sort(few)], self.moment or moment)
        return self

    def predict(self, summary: PlanSummary, reference: PlanSummary | None = None) -> tuple[np.ndarray, np.ndarray]:
        """See `PlanLabeler`."""
        return self.labeler.predict(summary, reference)


def ablated_labelers(summary: PlanSummary) -> dict[str, Callable[[], WithoutColumns | LearnedOtherwise]]:
    """Name -> linear model without each ingredient that such plans have, of fewer networks, and of other labels."""
    columns = (*summary.names, *summary.plan_names)
    found: dict[str, Callable[[], WithoutColumns | LearnedOtherwise]] = {
        f"labeler/ridge without {name}": partial(_linear_without, pattern)
        for name, pattern in INGREDIENTS.items()
        if any(re.fullmatch(pattern, column) for column in columns)
    }
    for name, part in PARTS_OF_NETWORKS.items():
        found[f"labeler/ridge without {name} of the networks"] = partial(_linear_otherwise, part=part)
    for moment in (*MOMENTS[:-1], AFTER_REPAIR):
        found[f"labeler/ridge without labels but {moment}"] = partial(_linear_otherwise, moment=moment)
    return found


def _linear_without(pattern: str) -> WithoutColumns:
    return WithoutColumns(RidgePlanLabeler(), pattern)


def _linear_otherwise(part: float = 1.0, moment: str | None = None) -> LearnedOtherwise:
    return LearnedOtherwise(RidgePlanLabeler(), part, moment)


def ablated_parts(name: str, labeler: PlanLabeler) -> Iterator[tuple[str, PlanLabeler]]:
    """The blend, when it is fitted, without each of its parts; of other labelers none."""
    if isinstance(labeler, BlendPlanLabeler) and len(labeler.parts) > 1:
        for part in labeler.parts:
            yield f"{name} without {part}", labeler.without(part)
