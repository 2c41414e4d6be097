"""How good any plan can be at the most: a lower bound on the damage within a budget, and better plans on the way to it.

A cost is a sum of products: what stays of a layer's inputs, times what stays of its outputs, times what its choice
costs. With one 0/1 variable for every level of every item, each product is the exponential of a linear function: exact
where the variables are whole, convex in between. So every tangent of the cost lies below it, a linear problem under
some tangents has a damage below that of the best plan, and with more tangents it comes closer (outer approximation,
Duran and Grossmann 1986). A solution in whole numbers that meets the bounds is the optimum.
"""

import time
from dataclasses import dataclass

import numpy as np
from scipy.optimize import LinearConstraint, milp
from scipy.sparse import csr_array

from compress.ledger import Ledger
from compress.spending import exceeds, settle

# Of the largest coefficient: what costs nothing has no logarithm.
_NOTHING = 1e-12
_TIE = 1e-9


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
    problem.touch(problem.point(*best))
    for whole in [False] * relaxed_rounds + [True] * whole_rounds:
        left = time_limit_s - (time.monotonic() - start)
        answer = problem.solve(whole, left, gap / 2) if left > 0 else None
        if answer is None:
            break
        point, below = answer
        rounds, bound = rounds + 1, max(bound, below)
        if whole:
            ledger.set_levels(*problem.levels(point))
            settle(ledger)
            ledger.bounds = dict(ledger.menu.bounds)
            if not exceeds(ledger) and ledger.damage() < least * (1 - 1e-9):
                best, least = ledger.levels(), ledger.damage()
        if least <= bound * (1 + gap) + 1e-15 or (not problem.touch(point) and whole):
            break
    ledger.set_levels(*best)
    timed_out = time.monotonic() - start >= time_limit_s
    return Proof(min(bound, least), rounds, timed_out)


class _Problem:
    """Variables are the levels of all groups, then those of all layers; `x` is `(n_variables,)`."""

    def __init__(self, ledger: Ledger) -> None:
        self._menu = menu = ledger.menu
        items = (*menu.groups, *menu.layers)
        sizes = np.array([len(item.damage) for item in items])
        self._start = np.concatenate([[0], np.cumsum(sizes)])
        n = int(self._start[-1])
        self._item = np.repeat(np.arange(len(items)), sizes)
        self._level = np.concatenate([np.arange(size) for size in sizes])
        damage = np.concatenate([item.damage for item in items])
        self._scale = float(damage.max()) or 1.0
        self._damage = damage / self._scale
        self._one_each = csr_array((np.ones(n), (self._item, np.arange(n))), shape=(len(items), n))
        self._terms = {name: self._products(name) for name in menu.bounds}
        self._cuts: list[tuple[np.ndarray, float]] = []

    def point(self, group_level: np.ndarray, layer_level: np.ndarray) -> np.ndarray:
        """The variables of a plan."""
        x = np.zeros(len(self._item))
        x[self._start[:-1] + np.concatenate([group_level, layer_level])] = 1.0
        return x

    def levels(self, x: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """`(group_level, layer_level)` of a point in whole numbers."""
        chosen = x > 0.5
        level = np.zeros(len(self._start) - 1, dtype=np.int64)
        level[self._item[chosen]] = self._level[chosen]
        return level[: len(self._menu.groups)], level[len(self._menu.groups) :]

    def touch(self, x: np.ndarray) -> bool:
        """Add the tangents of all bounds at a point; whether one of them cuts it off."""
        cut_off = False
        for logs, constant in self._terms.values():
            products = np.exp(logs @ x + constant)
            cost, slope = products.sum(), logs.T @ products
            self._cuts.append((slope, 1.0 - cost + slope @ x))
            cut_off |= bool(cost > 1.0 + 1e-9)
        return cut_off

    def solve(self, whole: bool, time_limit_s: float, gap: float) -> tuple[np.ndarray, float] | None:
        """`(x, lower bound)` under the tangents so far, or None if the time was over before there was any."""
        slopes, limits = (np.array(column) for column in zip(*self._cuts, strict=True))
        # Among equal damages the least removal, so that nothing goes without need.
        price = self._damage + _TIE * self._level
        result = milp(
            price, integrality=np.full(len(price), int(whole)), bounds=(0, 1),
            constraints=[LinearConstraint(self._one_each, 1, 1), LinearConstraint(slopes, -np.inf, limits)],
            options={"time_limit": time_limit_s, "mip_rel_gap": gap},
        )  # fmt: skip
        if result.x is None:
            return None
        below = result.mip_dual_bound if whole and result.mip_dual_bound is not None else result.fun
        most_tie = _TIE * float(self._level.max(initial=0)) * (len(self._start) - 1)
        return result.x, max(0.0, (below - most_tie) * self._scale)

    def _products(self, name: str) -> tuple[csr_array, np.ndarray]:
        """`(logs, constant)`: the cost as a fraction of its bound is the sum of `exp(logs @ x + constant)`.

        Bytes that are rounded up, layer by layer, are taken without rounding: less, so that the bound holds.
        """
        menu, prices = self._menu, self._menu.prices
        option = {int(row): i for i, choices in enumerate(menu.layers) for row in choices.layers}
        rows: list[dict[int, float]] = []
        constants: list[float] = []
        for layer in range(len(menu.costs.layer_names)):
            kept_in, kept_out = self._kept(layer, "in"), self._kept(layer, "out")
            for table, factors in (
                (prices.product[name], [(a, b) for a in kept_in for b in kept_out]),
                (prices.inward[name], [(a,) for a in kept_in]),
                (prices.outward[name], [(b,) for b in kept_out]),
            ):
                own = self._factor(layer, table, option)
                if own is None:
                    continue
                for parts in factors:
                    row: dict[int, float] = {}
                    constant = -np.log(menu.bounds[name])
                    for logs, level in (own, *parts):
                        constant += level
                        for variable, value in logs.items():
                            row[variable] = row.get(variable, 0.0) + value
                    rows.append(row)
                    constants.append(constant)
        where = [(r, v, value) for r, row in enumerate(rows) for v, value in row.items()]
        r, v, value = (np.array(column) for column in zip(*where, strict=True)) if where else (np.empty(0, int),) * 3
        return csr_array((value, (r, v)), shape=(len(rows), len(self._item))), np.array(constants)

    def _factor(self, layer: int, table: np.ndarray, option: dict[int, int]) -> tuple[dict[int, float], float] | None:
        """Logarithms of what the layer's choice multiplies a product with; None if it is nothing in any choice."""
        if layer not in option:
            return ({}, float(np.log(table[layer, 0]))) if table[layer, 0] > 0 else None
        choices = self._menu.layers[option[layer]]
        values = table[layer, choices.columns]
        if not values.max() > 0:
            return None
        start = self._start[len(self._menu.groups) + option[layer]]
        logs = np.log(np.maximum(values, _NOTHING * values.max()))
        return {int(start + level): float(log) for level, log in enumerate(logs)}, 0.0

    def _kept(self, layer: int, side: str) -> list[tuple[dict[int, float], float]]:
        """What stays of a layer's inputs or outputs as a sum of parts: one for each group, one for what never goes."""
        menu = self._menu
        share = (menu.costs.in_share if side == "in" else menu.costs.out_share)[layer][menu.columns]
        parts, rest = [], 1.0
        for index, choices in enumerate(menu.groups):
            place = np.flatnonzero(choices.layers == layer)
            if not len(place):
                continue
            gone = (choices.in_gone if side == "in" else choices.out_gone)[:, place[0]]
            whole = float(share[menu.units.group == choices.name].sum())
            if gone.any():
                rest -= whole
                logs = np.log(np.maximum(whole - gone, _NOTHING))
                parts.append(({int(self._start[index] + i): float(log) for i, log in enumerate(logs)}, 0.0))
        return [*parts, ({}, float(np.log(rest)))] if rest > 1e-9 else parts
