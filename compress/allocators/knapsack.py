"""Channels and widths together as a multiple-choice knapsack, solved to optimality by HiGHS around the present plan."""

import logging
import time
from dataclasses import dataclass

import numpy as np
from scipy.optimize import LinearConstraint, milp
from scipy.sparse import csr_array

from compress.allocator import Constraints
from compress.budget import Budget
from compress.costs import CostTable
from compress.errors import CompressError
from compress.ledger import Ledger
from compress.menu import open_menu
from compress.plan import CompressionPlan
from compress.scores import Scores
from compress.spending import require_feasible, require_nats, settle, write_plan
from compress.units import UnitTable

_LOG = logging.getLogger(__name__)
_TIE = 1e-9  # price of a level without damage, as a fraction of all damage: nothing goes without need


@dataclass(frozen=True)
class KnapsackAllocator:
    """Chooses a level of every group and a width of every layer so that the summed damage is least within the bounds.

    Where groups do not meet in a layer and widths stand alone, costs are linear and the result is the optimum. In
    general the cost of a layer is (kept inputs) x (kept outputs) x (bits), so the problem is linearised: from a plan
    that meets the budget (the one of steepest descent) every level of every group and every width is given its exact
    cost *with all else as it is now*, the linear problem is solved, its solution is brought into the bounds by exact
    steps and filled up, and becomes the new plan if it does less damage. Otherwise the levels are confined to half the
    distance and solved again. It ends when the confined problem has nothing better to offer. The plan is never worse
    than the one it started from; `gap` in the provenance is HiGHS's for the last linear problem, not a bound for the
    product form.

    Damages are assumed to add over choices; a negative one counts as 0. Units of a group go lowest score first.

    Args:
        always_quantize: store every layer in at most 8 bits, even if the bytes are not bounded.
        time_limit_s: seconds for all solves together; when they are over, the best plan so far is returned and the
            provenance says so.
        gap: relative optimality gap at which HiGHS stops.
        rounds: most linear problems to solve.

    Raises:
        CompressError: for a parameter out of range.
    """

    always_quantize: bool = False
    time_limit_s: float = 60.0
    gap: float = 1e-4
    rounds: int = 30
    name = "knapsack"

    def __post_init__(self) -> None:
        if not self.time_limit_s > 0:
            raise CompressError(
                f"The 'time_limit_s' parameter of KnapsackAllocator must be above 0. Got {self.time_limit_s!r}."
            )
        if not 0 <= self.gap < 1:
            raise CompressError(f"The 'gap' parameter of KnapsackAllocator must be in [0, 1). Got {self.gap!r}.")
        if self.rounds < 1:
            raise CompressError(f"The 'rounds' parameter of KnapsackAllocator must be at least 1. Got {self.rounds!r}.")

    def allocate(
        self, units: UnitTable, scores: Scores, costs: CostTable, budget: Budget, constraints: Constraints
    ) -> CompressionPlan:
        """The plan. Errors as in `Allocator.allocate`."""
        menu = open_menu(units, scores, costs, budget, constraints, always_quantize=self.always_quantize)
        require_nats(menu, self.name)
        require_feasible(menu, budget, constraints)
        ledger = Ledger(menu)
        settle(ledger)
        details = self._improve(ledger) if menu.bounds else {}
        return write_plan(ledger, self.name, budget, constraints, {"always_quantize": self.always_quantize, **details})

    def _improve(self, ledger: Ledger) -> dict[str, object]:
        """Replace the ledger's plan by better ones; what the provenance says of the search."""
        start = time.monotonic()
        best, least = ledger.levels(), ledger.damage()
        first = least
        radius, rounds, gap, timed_out = 1.0, 0, 0.0, False
        while rounds < self.rounds and radius > 0.01:
            left = self.time_limit_s - (time.monotonic() - start)
            if left <= 0:
                timed_out = True
                break
            rounds += 1
            problem = _linearise(ledger, radius)
            answer = problem.solve(left, self.gap)
            if answer is None:
                timed_out = True
                break
            levels, gap = answer
            if all(np.array_equal(a, b) for a, b in zip(levels, best, strict=True)):
                break
            ledger.set_levels(*levels)
            settle(ledger)
            ledger.bounds = dict(ledger.menu.bounds)
            if ledger.damage() < least * (1 - 1e-9):
                best, least = ledger.levels(), ledger.damage()
            else:
                ledger.set_levels(*best)
                radius /= 2
        _LOG.info("knapsack: %d rounds, %.2f s, damage %.6g -> %.6g", rounds, time.monotonic() - start, first, least)
        return {"rounds": rounds, "gap": gap, "timed_out": timed_out, "descent_damage": first}


@dataclass(frozen=True, eq=False)
class _Problem:
    """One linear multiple-choice knapsack: a row of `item` and `level` for each entry, exactly one entry per item."""

    item: np.ndarray
    level: np.ndarray
    damage: np.ndarray
    needed: np.ndarray  # (n_bounds, n_entries) cost against the present plan, in units of the bound
    slack: np.ndarray  # (n_bounds,)
    n_groups: int

    def solve(self, time_limit_s: float, gap: float) -> tuple[tuple[np.ndarray, np.ndarray], float] | None:
        """`((group_level, layer_level), gap)`, or None if the time was over before there was any solution."""
        n_items, n_entries = int(self.item.max()) + 1, len(self.item)
        one_each = csr_array((np.ones(n_entries), (self.item, np.arange(n_entries))), shape=(n_items, n_entries))
        result = milp(
            self.damage, integrality=np.ones(n_entries), bounds=(0, 1),
            constraints=[LinearConstraint(one_each, 1, 1), LinearConstraint(self.needed, -np.inf, self.slack)],
            options={"time_limit": time_limit_s, "mip_rel_gap": gap},
        )  # fmt: skip
        if result.x is None:
            return None
        level = np.zeros(n_items, dtype=np.int64)
        chosen = result.x > 0.5
        level[self.item[chosen]] = self.level[chosen]
        return (level[: self.n_groups], level[self.n_groups :]), float(result.mip_gap or 0.0)


def _linearise(ledger: Ledger, radius: float) -> _Problem:
    """The linear problem around the present plan; levels further away than this fraction of all are left out."""
    menu = ledger.menu
    items, levels, damages = [], [], []
    needed: dict[str, list[np.ndarray]] = {name: [] for name in menu.bounds}
    for index, choices in enumerate(menu.groups):
        near = _near(int(ledger.group_level[index]), len(choices.removed), radius)
        saved = ledger.group_levels(index)
        items.append(np.full(len(near), index))
        levels.append(near)
        damages.append(choices.damage[near])
        for name in menu.bounds:
            needed[name].append(-saved[name][near])
    layer, level, _, saved = ledger.formats()
    for index, choices in enumerate(menu.layers):
        near = _near(int(ledger.layer_level[index]), len(choices.bits), radius)
        rows = np.flatnonzero(layer == index)[near]
        items.append(np.full(len(near), len(menu.groups) + index))
        levels.append(level[rows])
        damages.append(choices.damage[near])
        for name in menu.bounds:
            needed[name].append(-saved[name][rows])
    slack = ledger.slack()
    damage = np.concatenate(damages)
    tie = _TIE * (damage.max() or 1.0) * np.concatenate(levels)
    return _Problem(
        np.concatenate(items), np.concatenate(levels), (damage + tie) / (damage.max() or 1.0),
        np.stack([np.concatenate(needed[name]) / menu.bounds[name] for name in menu.bounds]),
        np.array([max(slack[name], 0.0) / menu.bounds[name] for name in menu.bounds]), len(menu.groups),
    )  # fmt: skip


def _near(level: int, n_levels: int, radius: float) -> np.ndarray:
    reach = max(1, int(np.ceil(radius * (n_levels - 1))))
    return np.arange(max(0, level - reach), min(n_levels, level + reach + 1))
