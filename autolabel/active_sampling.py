"""Which units to measure next: those whose interval leaves open on which side of the cut they lie."""

from collections.abc import Callable
from dataclasses import dataclass

import numpy as np

from autolabel.tables import LabelTable
from compress.errors import CompressError

# Name beside those of `autolabel.sampling.STRATEGIES`.
ACTIVE = "active"


@dataclass(frozen=True, eq=False)
class ActiveSampling:
    """How true measurements are spent after a first random part of them.

    A plan is drawn up with the labels so far; where it cuts, damage per cost has a certain price. A unit far from that
    price keeps its side whatever its measurement says, one whose interval straddles it may change the plan
    (uncertainty sampling at a level set: Gotovos et al. 2013, "Active learning for level set estimation").

    Args:
        decide: from labels of the units to `(n,)` bool, those that a plan within the budget would remove; `n` rows of
            the labels.
        saved: `(n,)` cost that the removal of each alone saves, in the unit of the budget.
        first: part of all measurements that is drawn at random, in (0, 1). Quality is judged on these alone.
        rounds: how often the plan is drawn up anew.
    """

    decide: Callable[[LabelTable], np.ndarray]
    saved: np.ndarray
    first: float = 0.5
    rounds: int = 3

    def __post_init__(self) -> None:
        if not 0 < self.first < 1 or self.rounds < 1:
            raise CompressError(
                f"ActiveSampling needs 'first' in (0, 1) and 'rounds' of at least 1. Got {self.first}, {self.rounds}."
            )

    def choose(self, labels: LabelTable, n: int) -> list[str]:
        """Ids of `n` units that were not measured (fewer if there are no more), the most doubtful first.

        Args:
            labels: of all removable units, measured or predicted, with intervals; their order is that of `saved`.
        """
        open_rows = np.flatnonzero(labels.source != "measured")
        if not len(open_rows) or n < 1:
            return []
        doubt = straddle(labels, self.decide(labels), self.saved)
        order = open_rows[np.argsort(doubt[open_rows], kind="stable")]
        return [labels.unit_ids[row] for row in order[:n]]


def straddle(labels: LabelTable, removed: np.ndarray, saved: np.ndarray) -> np.ndarray:
    """`(n_units,)` distance of each damage from the cut, in widths of its interval: below 1/2 the interval straddles.

    The cut is the price of a unit of cost at which as many units lie below as the plan removes.
    """
    column = labels.choices.index("removed")
    damage, width = labels.damage[:, column], (labels.upper - labels.lower)[:, column]
    price = damage / np.maximum(saved, 1e-12 * float(np.max(saved, initial=1.0)))
    ordered, count = np.sort(price[np.isfinite(price)]), int(np.sum(removed))
    if not 0 < count < len(ordered):
        # Everything stays or goes: no cut to doubt, so that the widest intervals come first.
        return -np.nan_to_num(width)
    cut = (ordered[count - 1] + ordered[count]) / 2
    return np.abs(damage - cut * saved) / np.maximum(np.nan_to_num(width), 1e-30)
