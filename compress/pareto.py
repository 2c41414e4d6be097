"""What each further saving costs in damage: a front of plans, from the model as it is to the strictest one."""

from collections.abc import Sequence
from dataclasses import replace

import numpy as np

from compress.allocation import allocate
from compress.allocator import Allocator, Constraints
from compress.budget import Budget
from compress.costs import CostTable
from compress.errors import CompressError
from compress.ledger import Ledger
from compress.menu import Menu, open_menu
from compress.plan import CompressionPlan
from compress.scores import Scores
from compress.spending import feasible_budget, require_feasible
from compress.strictest_plan import take_strictest
from compress.units import UnitTable

_ROOM = 1 + 1e-4  # for the strictest plan and its rounding


def pareto_front(
    units: UnitTable,
    scores: Scores,
    costs: CostTable,
    cost: str = "coded_bytes",
    *,
    points: int = 10,
    budgets: Sequence[float | int] | None = None,
    within: Budget | None = None,
    allocator: str | Allocator = "knapsack",
    constraints: Constraints | None = None,
    always_quantize: bool = False,
) -> list[CompressionPlan]:
    """Plans of falling cost and rising damage, none of which another one beats in both.

    Each is solved for a bound of its own, in equal ratios from the dense model to the strictest plan; those that end
    up beaten by another are left out, so there may be fewer than asked for.

    Args:
        units, scores, costs, constraints, always_quantize: as in `allocate`; scores in nats.
        cost: which one falls: `"macs"`, `"weight_bytes"`, `"coded_bytes"`, `"bit_operations"` or `"latency_ms"`.
        points: bounds to solve for, 2 or more.
        budgets: the bounds instead, each as in `Budget`.
        within: bounds on other costs that all plans meet.
        allocator: a name or an allocator; the front is as good as its plans.

    Raises:
        BudgetError: for one of `budgets`, or for `within`, that no plan meets.
        CompressError: for an unknown cost, fewer points, or scores that are only an order.
    """
    within, constraints = within or Budget(), constraints or Constraints()
    _check(scores, costs, cost, points, within)
    if budgets is None:
        menu = open_menu(
            units, scores, costs, replace(within, **{cost: 1.0}), constraints, always_quantize=always_quantize
        )
        wanted = _spread(menu, cost, points, within, constraints)
    else:
        wanted = [replace(within, **{cost: bound}) for bound in budgets]
    plans = [
        allocate(units, scores, costs, budget, allocator=allocator, constraints=constraints,
                 always_quantize=always_quantize)
        for budget in wanted
    ]  # fmt: skip
    return _non_dominated(plans, cost)


def _check(scores: Scores, costs: CostTable, cost: str, points: int, within: Budget) -> None:
    if cost not in costs.dense or getattr(within, cost) is not None:
        raise CompressError(
            f"The 'cost' parameter of pareto_front must be one of {sorted(costs.dense)} that 'within' leaves free. "
            f"Got {cost!r}."
        )
    if isinstance(points, bool) or not isinstance(points, int) or points < 2:
        raise CompressError(f"The 'points' parameter of pareto_front must be an int of at least 2. Got {points!r}.")
    if scores.scale != "nats":
        raise CompressError("The 'scores' parameter of pareto_front must be in nats. Got an order, which says no harm.")


def _spread(menu: Menu, cost: str, points: int, within: Budget, constraints: Constraints) -> list[Budget]:
    """Bounds in equal ratios from dense to the strictest plan, without those that `within` leaves out of reach."""
    dense = menu.costs.dense
    require_feasible(menu, replace(within, **{cost: 1.0}), constraints)
    ledger = Ledger(replace(menu, bounds={cost: dense[cost]}))
    take_strictest(ledger)
    least = min(1.0, ledger.exact_cost()[cost] / dense[cost] * _ROOM)
    found = []
    for fraction in np.geomspace(1.0, least, points).tolist():
        budget = replace(within, **{cost: min(fraction, 1.0)})
        closest = feasible_budget(replace(menu, bounds=budget.absolute(dense)), budget)
        # A bound on this cost may have to be raised a bit, to where rounding lets it be met; the others stay.
        if replace(closest, **{cost: None}) == within:
            found.append(closest)
    return list(dict.fromkeys(found))


def _non_dominated(plans: Sequence[CompressionPlan], cost: str) -> list[CompressionPlan]:
    """By falling cost, those that no other plan beats or equals in cost and damage."""
    kept: list[CompressionPlan] = []
    for plan in sorted(plans, key=lambda plan: (plan.predicted_cost[cost], plan.predicted_damage)):
        if not kept or plan.predicted_damage < kept[-1].predicted_damage:
            kept.append(plan)
    return kept[::-1]
