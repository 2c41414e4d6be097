"""How good any plan can be at the most: a lower bound on the damage within a budget, and better plans on the way to it.

A cost is linear in levels but for products of two groups that meet in a layer. Their logarithm is linear, and the
exponential is convex: every tangent of it lies below it, so a linear problem under some tangents has a damage below
that of the best plan, and with more tangents it comes closer (outer approximation, Duran and Grossmann 1986, with a
tangent for each choice of the layer, see `compress.product_terms`: the perspective cuts of Frangioni and Gentile
2006). Levels that a better plan cannot have, by their reduced costs, are left out, and all begins anew with what is
left. A solution in whole numbers that meets the bounds is the optimum.
"""

import itertools
import math
import time
from dataclasses import dataclass

import numpy as np
from scipy.optimize import LinearConstraint, linprog, milp
from scipy.sparse import vstack

from compress.ledger import Ledger
from compress.product_terms import Product, ProductTerms, Row, undominated
from compress.spending import exceeds, settle

_TIE = 1e-9
_GRID = 4  # tangents of every product to begin with
_CLOSE = 1e-5  # a product that its tangents give to this part needs no further one
_SHRUNK = 0.8  # with so many levels left, all begins anew
_INFEASIBLE = 2  # scipy's status


@dataclass(frozen=True)
class Proof:
    """What a search found.

    Attributes:
        lower_bound: no plan within the budget does less damage.
        rounds: problems solved.
        timed_out: whether the time was over before the bound met the plan.
    """

    lower_bound: float
    rounds: int
    timed_out: bool


def approximate(ledger: Ledger, time_limit_s: float, gap: float, relaxed_rounds: int, whole_rounds: int) -> Proof:
    """A lower bound on the damage; the ledger, which must hold a plan within the bounds, gets the best plan met.

    Args:
        time_limit_s: seconds for all.
        gap: relative distance of plan and bound at which it stops.
        relaxed_rounds: most problems without whole numbers, which place tangents cheaply.
        whole_rounds: most problems in whole numbers.
    """
    start, problem = time.monotonic(), _Problem(ledger)
    best, least, bound, rounds = ledger.levels(), ledger.damage(), 0.0, 0
    while rounds < relaxed_rounds and least > bound * (1 + gap) + 1e-15:
        below = problem.relax(time_limit_s - (time.monotonic() - start), least)
        if below is None:
            break
        rounds, gained, bound = rounds + 1, below - bound, max(bound, below)
        if not problem.sharpened and gained < 0.01 * (least - bound):
            break
    for _ in range(whole_rounds):
        if least <= bound * (1 + gap) + 1e-15:
            break
        answer = problem.solve(time_limit_s - (time.monotonic() - start), gap / 2, least)
        if answer is None:
            break
        levels, below = answer
        rounds, bound = rounds + 1, max(bound, below)
        if levels is None:
            break
        ledger.set_levels(*levels)
        settle(ledger)
        ledger.bounds = dict(ledger.menu.bounds)
        if not exceeds(ledger) and ledger.damage() < least * (1 - 1e-9):
            best, least = ledger.levels(), ledger.damage()
        if not problem.sharpened:
            break
    ledger.set_levels(*best)
    return Proof(min(bound, least), rounds, time.monotonic() - start >= time_limit_s)


class _Problem:
    """The menu under tangents; `sharpened` says whether the last solution got new ones."""

    def __init__(self, ledger: Ledger) -> None:
        self._menu = menu = ledger.menu
        items = (*menu.groups, *menu.layers)
        damage = np.concatenate([item.damage for item in items])
        # No better plan has a level that alone does more damage than the whole plan at hand.
        allowed = undominated(menu) & (damage <= ledger.damage() * (1 + 1e-9))
        self._scale = float(damage[allowed].max()) or 1.0
        level = np.concatenate([np.arange(len(item.damage)) for item in items])
        # Among equal damages the least removal, so that nothing goes without need.
        self._price = damage / self._scale + _TIE * level
        self._most_tie = _TIE * sum(len(item.damage) - 1 for item in items)
        self.sharpened = True
        self._begin(allowed)

    def _begin(self, allowed: np.ndarray) -> None:
        self._allowed = allowed
        self._terms = terms = ProductTerms(self._menu, allowed)
        self._equal = terms.matrix(terms.equal)
        costs = [{**row, terms.one: row.get(terms.one, 0.0) - 1.0} for row in terms.costs.values()]
        cuts = [_tangent(p, at) for p in terms.products for at in np.linspace(max(p.low, p.high - 10), p.high, _GRID)]
        self._below = terms.matrix([*costs, *terms.below, *cuts])
        self._objective = np.zeros(len(terms.lower))
        self._objective[: terms.n_levels] = self._price

    def relax(self, time_limit_s: float, least: float) -> float | None:
        """A lower bound from fractions of levels, or None if the time is over; `least` is the damage of a plan."""
        if time_limit_s <= 0:
            return None
        result = linprog(
            self._objective, A_ub=self._below, b_ub=np.zeros(self._below.shape[0]), A_eq=self._equal,
            b_eq=np.zeros(self._equal.shape[0]), bounds=np.array([self._terms.lower, self._terms.upper]).T,
            method="highs", options={"time_limit": time_limit_s},
        )  # fmt: skip
        if result.status == _INFEASIBLE:
            return least
        if result.status != 0:
            return None
        below = self._damage(result.fun)
        n = self._terms.n_levels
        reach = result.fun + np.maximum(result.lower.marginals[:n], 0.0)
        worth = self._allowed & (reach <= least / self._scale + self._most_tie + 1e-7)
        self.sharpened = self._sharpen(result.x)
        if worth.sum() < _SHRUNK * self._allowed.sum():
            self.sharpened = True
            self._begin(worth)
        return below

    def solve(self, time_limit_s: float, gap: float, least: float) -> tuple[tuple | None, float] | None:
        """`(levels or None, lower bound)` in whole numbers, or None if the time was over before there were any."""
        if time_limit_s <= 0:
            return None
        terms = self._terms
        whole = np.arange(len(self._objective)) < terms.n_levels
        result = milp(
            self._objective, integrality=whole.astype(int), bounds=(terms.lower, terms.upper),
            constraints=[LinearConstraint(self._equal, 0, 0), LinearConstraint(self._below, -np.inf, 0)],
            options={"time_limit": time_limit_s, "mip_rel_gap": gap},
        )  # fmt: skip
        if result.status == _INFEASIBLE:
            return None, least
        if result.x is None:
            return None
        below = result.fun if result.mip_dual_bound is None else result.mip_dual_bound
        self.sharpened = self._sharpen(result.x)
        return self._levels(result.x), self._damage(below)

    def _damage(self, objective: float) -> float:
        return max(0.0, (objective - self._most_tie) * self._scale)

    def _levels(self, x: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """`(group_level, layer_level)` of a point in whole numbers."""
        start = self._terms.start
        level = np.array([int(np.argmax(x[a:b])) for a, b in itertools.pairwise(start)], dtype=np.int64)
        return level[: len(self._menu.groups)], level[len(self._menu.groups) :]

    def _sharpen(self, x: np.ndarray) -> bool:
        """Add a tangent for every product that the point takes for less than it is; whether there was one."""
        rows = []
        for product in self._terms.products:
            made = _value(product.made, x)
            if made > 1e-6:
                at = min(max(_value(product.log, x) / made, product.low), product.high)
                if x[product.value] < made * math.exp(at) * (1 - _CLOSE):
                    rows.append(_tangent(product, at))
        if rows:
            self._below = vstack([self._below, self._terms.matrix(rows)], format="csr")
        return bool(rows)


def _value(row: Row, x: np.ndarray) -> float:
    return sum(float(x[column]) * factor for column, factor in row.items())


def _tangent(product: Product, at: float) -> Row:
    """`made * exp(log / made) <= value`, made linear where the logarithm is `at`."""
    slope = math.exp(at)
    row = {column: slope * value for column, value in product.log.items()}
    for column, value in product.made.items():
        row[column] = row.get(column, 0.0) + slope * (1.0 - at) * value
    row[product.value] = row.get(product.value, 0.0) - 1.0
    return row
