"""One threshold for the whole network: the lowest scores go, whatever they save."""

from dataclasses import dataclass

import numpy as np

from compress.allocator import Constraints
from compress.budget import Budget
from compress.costs import CostTable
from compress.ledger import Ledger
from compress.menu import open_menu
from compress.plan import CompressionPlan
from compress.scores import Scores
from compress.spending import exceeds, require_feasible, stopped_by, write_plan
from compress.strictest_plan import take_strictest
from compress.units import UnitTable


@dataclass(frozen=True)
class ThresholdAllocator:
    """Removes every unit below one score, the same for all groups: global pruning as most papers do it.

    Costs are only looked at to find the threshold that meets the budget, so scores of any scale will do as long as they
    can be compared between groups. All layers take the same width: the one with the least predicted damage if the
    scores are damages, else the one that lets most units stay.

    Args:
        always_quantize: store every layer in at most 8 bits, even if the bytes are not bounded.
    """

    always_quantize: bool = False
    name = "threshold"

    def allocate(
        self, units: UnitTable, scores: Scores, costs: CostTable, budget: Budget, constraints: Constraints
    ) -> CompressionPlan:
        """The plan. Errors as in `Allocator.allocate`, except that any scale will do."""
        menu = open_menu(units, scores, costs, budget, constraints, always_quantize=self.always_quantize)
        require_feasible(menu, budget, constraints)
        ledger = Ledger(menu)
        values = np.full(len(units), np.nan)
        values[units.positions(scores.unit_ids)] = scores.removal
        ordered = [values[choices.rows] for choices in menu.groups]
        thresholds = np.unique(np.concatenate([np.zeros(0), *ordered]))
        found = []
        for width in sorted({float(b) for c in menu.layers for b in c.bits} or {32.0}, reverse=True):
            formats = np.array([max(0, int((c.bits >= width).sum()) - 1) for c in menu.layers], dtype=np.int64)
            position = self._lowest(ledger, ordered, thresholds, formats)
            if position is not None:
                levels = _levels(ledger, ordered, thresholds[position] if position >= 0 else -np.inf)
                ledger.set_levels(levels, formats)
                rank = ledger.damage() if menu.scale == "nats" else float(position)
                found.append((rank, -width, levels, formats))
        if found:
            ledger.set_levels(*min(found, key=lambda choice: choice[:2])[2:])
        else:
            take_strictest(ledger)
        stopped = stopped_by(ledger, ledger.exact_cost(), "lower threshold")
        details = {"always_quantize": self.always_quantize, "stopped_by": stopped}
        return write_plan(ledger, self.name, budget, constraints, details)

    def _lowest(
        self, ledger: Ledger, ordered: list[np.ndarray], thresholds: np.ndarray, formats: np.ndarray
    ) -> int | None:
        """Position of the lowest threshold that meets the bounds, -1 if nothing needs to go, None if none does."""

        def fits(position: int) -> bool:
            level = thresholds[position] if position >= 0 else -np.inf
            ledger.set_levels(_levels(ledger, ordered, level), formats)
            return not exceeds(ledger)

        low, high = -1, len(thresholds) - 1
        if not fits(high):
            return None
        while low < high:
            middle = (low + high) // 2
            low, high = (low, middle) if fits(middle) else (middle + 1, high)
        return low


def _levels(ledger: Ledger, ordered: list[np.ndarray], threshold: float) -> np.ndarray:
    """Of each group the largest allowed level that removes only scores up to the threshold."""
    below = [int((scores <= threshold).sum()) for scores in ordered]
    levels = [np.searchsorted(c.removed, n, side="right") - 1 for c, n in zip(ledger.menu.groups, below, strict=True)]
    return np.array(levels, dtype=np.int64)
