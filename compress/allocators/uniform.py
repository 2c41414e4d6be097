"""The same kept fraction for every group, and the same width for every layer: the baseline that needs no damages."""

from dataclasses import dataclass

import numpy as np

from compress.allocator import Constraints
from compress.budget import Budget
from compress.costs import CostTable
from compress.ledger import Ledger
from compress.menu import Menu, open_menu
from compress.plan import CompressionPlan
from compress.scores import Scores
from compress.spending import exceeds, require_feasible, stopped_by, write_plan
from compress.strictest_plan import take_strictest
from compress.units import UnitTable


@dataclass(frozen=True)
class UniformAllocator:
    """Keeps the largest fraction of every group that meets the budget; the lowest scores of each group go.

    Only the order within a group is read, so scores of scale `"order"` will do. Where scored widths (`"8bit"`, ...) or
    ranks (`"32bit_r0.5"`, ...) save what is bounded, all layers take the same: the one with the least predicted damage
    if the scores are damages, else the widest with which the bytes need no more removals than the MACs do. Counts are
    rounded down to the fraction; what that leaves is given to single groups, one step each at most.

    Args:
        always_quantize: store every layer in at most 8 bits, even if the bytes are not bounded.
    """

    always_quantize: bool = False
    name = "uniform"

    def allocate(
        self, units: UnitTable, scores: Scores, costs: CostTable, budget: Budget, constraints: Constraints
    ) -> CompressionPlan:
        """The plan. Errors as in `Allocator.allocate`, except that any scale will do."""
        menu = open_menu(units, scores, costs, budget, constraints, always_quantize=self.always_quantize)
        require_feasible(menu, budget, constraints)
        ledger = Ledger(menu)
        fractions = _fractions(menu)
        candidates = []
        for width in sorted({float(b) for c in menu.layers for b in c.bits} or {32.0}, reverse=True):
            layer_level = np.array([_level_of_width(c.bits, width) for c in menu.layers], dtype=np.int64)
            rank = _largest_that_fits(ledger, fractions, layer_level)
            if rank is not None:
                ledger.set_levels(_group_levels(menu, fractions[rank]), layer_level)
                by_damage = ledger.damage() if menu.scale == "nats" else float(rank)
                candidates.append((by_damage, -width, rank, layer_level))
        if not candidates:
            take_strictest(ledger)
            details = {"kept_fraction": None}
        else:
            _, _, rank, layer_level = min(candidates, key=lambda candidate: candidate[:2])
            ledger.set_levels(_group_levels(menu, fractions[rank]), layer_level)
            _fill(ledger)
            details = {"kept_fraction": fractions[rank]}
        details["always_quantize"] = self.always_quantize
        step = f"larger {'kept fraction' if menu.groups else 'format'}"
        details["stopped_by"] = stopped_by(ledger, ledger.exact_cost(), step)
        return write_plan(ledger, self.name, budget, constraints, details)


def _fractions(menu: Menu) -> list[float]:
    """Every kept fraction at which some group changes, descending from 1."""
    kept = [1 - c.removed / c.size for c in menu.groups]
    return sorted({1.0, *np.concatenate([np.zeros(0), *kept]).tolist()}, reverse=True)


def _group_levels(menu: Menu, fraction: float) -> np.ndarray:
    """Of each group the first level that keeps no more than this fraction, or its last."""
    levels = [np.searchsorted(c.removed, (1 - fraction) * c.size - 1e-9) for c in menu.groups]
    return np.array([min(i, len(c.removed) - 1) for i, c in zip(levels, menu.groups, strict=True)], dtype=np.int64)


def _level_of_width(bits: np.ndarray, width: float) -> int:
    """The narrowest width on offer that is not below `width`, or the widest."""
    return max(0, int((bits >= width).sum()) - 1)


def _largest_that_fits(ledger: Ledger, fractions: list[float], layer_level: np.ndarray) -> int | None:
    """Position of the largest fraction that meets the bounds with these widths, by bisection; costs fall with it."""

    def fits(rank: int) -> bool:
        ledger.set_levels(_group_levels(ledger.menu, fractions[rank]), layer_level)
        return not exceeds(ledger)

    if not fits(len(fractions) - 1):
        return None
    low, high = 0, len(fractions) - 1
    while low < high:
        middle = (low + high) // 2
        low, high = (low, middle) if fits(middle) else (middle + 1, high)
    return low


def _fill(ledger: Ledger) -> None:
    """Let single groups keep one step more where it fits, the costliest first."""
    _, saved = ledger.group_steps(-1)
    needed = np.zeros(len(ledger.group_level))
    for name, bound in ledger.menu.bounds.items():
        needed -= saved[name] / bound
    for group in np.argsort(-needed, kind="stable"):
        old = int(ledger.group_level[group])
        if old > 0:
            ledger.set_group(int(group), old - 1)
            if exceeds(ledger):
                ledger.set_group(int(group), old)
