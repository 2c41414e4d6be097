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
from compress.outer_approximation import approximate
from compress.plan import CompressionPlan
from compress.scores import Scores
from compress.spending import require_feasible, require_nats, settle, write_plan
from compress.units import UnitTable

_LOG = logging.getLogger(__name__)
_RELAXED = 40  # problems without whole numbers before those with
_TIE = 1e-9  # price of a level without damage, as a fraction of all damage: nothing goes without need

# (radius, overshoot) of the linear problems to try around one plan. A trade (more of this, less of that) costs less in
# a product than its linearisation says, so some are solved with wider bounds and then brought into the real ones.
_VIEWS = ((1.0, 0.0), (1.0, 0.03), (1.0, 0.1), (0.5, 0.0), (0.3, 0.03), (0.2, 0.0), (0.1, 0.01))


@dataclass(frozen=True)
class KnapsackAllocator:
    """Chooses a level of every group and a width of every layer so that the summed damage is least within the bounds.

    Where groups do not meet in a layer and widths stand alone, costs are linear and the result is the optimum. In
    general the cost of a layer is (kept inputs) x (kept outputs) x (bits), so the problem is linearised: from a plan
    that meets the budget (the one of steepest descent) every level of every group and every width is given its exact
    cost *with all else as it is now*, the linear problem is solved, and its solution is brought into the bounds by
    exact steps and filled up. If that does less damage it is the new plan, and all begins anew around it; otherwise the
    problem is solved again with fewer levels or wider bounds, until none of these views offers anything better. So the
    plan is never worse than the descent's (`descent_damage` in the provenance). Then a lower bound is proven, and
    better plans are met on the way (`compress.outer_approximation`): no plan within the budget does less damage than
    `lower_bound` in the provenance, and `gap` is the plan's excess over it as a part of the plan's damage. Small
    problems are solved to optimality; where rounds or time end first, the gap is what is left. Both are None where
    nothing was proven.

    Damages are assumed to add over choices; a negative one counts as 0. Units of a group go lowest score first. The
    sum that was made least so, of which bound and gap speak, is `solved_damage` in the provenance: above
    `predicted_damage` where choices were taken that seem to help.

    Args:
        always_quantize: store every layer in at most 8 bits, even if the bytes are not bounded.
        time_limit_s: seconds for all solves together; when they are over, the best plan so far is returned and the
            provenance says so.
        gap: relative optimality gap at which the solver stops.
        rounds: most linear problems to solve.
        proof_rounds: most problems in whole numbers to solve for the lower bound; 0 proves nothing where costs are not
            linear.

    Raises:
        CompressError: for a parameter out of range.
    """

    always_quantize: bool = False
    time_limit_s: float = 60.0
    gap: float = 1e-4
    rounds: int = 30
    proof_rounds: int = 10
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
        details = self._improve(ledger) if menu.bounds and (menu.groups or menu.layers) else {}
        return write_plan(ledger, self.name, budget, constraints, {"always_quantize": self.always_quantize, **details})

    def _improve(self, ledger: Ledger) -> dict[str, object]:
        """Replace the ledger's plan by better ones; what the provenance says of the search."""
        start = time.monotonic()
        best, least = ledger.levels(), ledger.damage()
        first, rounds, gap, timed_out = least, 0, 0.0, False
        seen: set[bytes] = set()
        linear = _costs_are_linear(ledger)
        again = _VIEWS[:1] if linear else _VIEWS
        views = list(again)
        while views and rounds < self.rounds and not timed_out:
            radius, overshoot = views.pop(0)
            left = self.time_limit_s - (time.monotonic() - start)
            answer = _linearise(ledger, radius, overshoot).solve(left, self.gap) if left > 0 else None
            timed_out = answer is None or answer.timed_out
            if answer is None:
                break
            rounds += 1
            gap = max(gap, answer.gap)
            key = answer.group_level.tobytes() + answer.layer_level.tobytes()
            if key in seen:
                continue
            seen.add(key)
            ledger.set_levels(answer.group_level, answer.layer_level)
            settle(ledger)
            ledger.bounds = dict(ledger.menu.bounds)
            if ledger.damage() < least * (1 - 1e-9):
                best, least, views = ledger.levels(), ledger.damage(), [] if linear else list(again)
            else:
                ledger.set_levels(*best)
        ledger.set_levels(*best)
        # Linear problems around a plan say nothing of the real one, and one that was not solved says nothing at all.
        lower = least * (1 - gap) if linear and rounds else None
        if not linear and self.proof_rounds:
            left = self.time_limit_s - (time.monotonic() - start)
            proof = approximate(ledger, left, self.gap, _RELAXED, self.proof_rounds)
            least, lower, rounds = ledger.damage(), proof.lower_bound, rounds + proof.rounds
            timed_out |= proof.timed_out
        _LOG.info("knapsack: %d rounds, %.2f s, damage %.6g -> %.6g", rounds, time.monotonic() - start, first, least)
        excess = None if lower is None else (least - lower) / least if least > 0 else 0.0
        return {"linear": linear, "rounds": rounds, "gap": excess, "lower_bound": lower, "solved_damage": least,
                "timed_out": timed_out, "descent_damage": first}  # fmt: skip


@dataclass(frozen=True, eq=False)
class _Problem:
    """One linear multiple-choice knapsack: a row of `item` and `level` for each entry, exactly one entry per item."""

    item: np.ndarray
    level: np.ndarray
    damage: np.ndarray
    needed: np.ndarray  # (n_bounds, n_entries) cost against the present plan, in units of the bound
    slack: np.ndarray  # (n_bounds,)
    n_groups: int

    def solve(self, time_limit_s: float, gap: float) -> "_Answer | None":
        """The best levels, or None if the time was over before there was any solution."""
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
        return _Answer(level[: self.n_groups], level[self.n_groups :], float(result.mip_gap or 0.0), result.status == 1)


@dataclass(frozen=True, eq=False)
class _Answer:
    group_level: np.ndarray
    layer_level: np.ndarray
    gap: float
    timed_out: bool


def _costs_are_linear(ledger: Ledger) -> bool:
    """Whether no two choices meet in a layer, so that costs add and one solve is final."""
    menu = ledger.menu
    layers = [c.layers for c in menu.groups]
    if menu.bounds.keys() - {"macs"} or any(choice.rank for choice in menu.prices.choices):
        layers += [c.layers for c in menu.layers]
    touched = np.concatenate(layers) if layers else np.empty(0, dtype=np.int64)
    return len(np.unique(touched)) == len(touched)


def _linearise(ledger: Ledger, radius: float, overshoot: float) -> _Problem:
    """The linear problem around the present plan.

    Levels further away than the fraction `radius` of all are left out; the bounds are widened by the fraction
    `overshoot`.
    """
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
        np.array([overshoot + max(slack[name], 0.0) / menu.bounds[name] for name in menu.bounds]), len(menu.groups),
    )  # fmt: skip


def _near(level: int, n_levels: int, radius: float) -> np.ndarray:
    reach = max(1, int(np.ceil(radius * (n_levels - 1))))
    return np.arange(max(0, level - reach), min(n_levels, level + reach + 1))
