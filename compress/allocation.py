"""Spend a budget in one call, or ask beforehand whether it can be met."""

from collections.abc import Iterable

import numpy as np

from compress.allocator import Allocator, Constraints
from compress.allocators import GreedyAllocator, KnapsackAllocator, ThresholdAllocator, UniformAllocator
from compress.budget import Budget
from compress.costs import CostTable
from compress.errors import CompressError
from compress.menu import Menu, open_menu
from compress.plan import CompressionPlan
from compress.scores import Scores
from compress.spending import feasible_budget, require_feasible
from compress.units import UnitTable

ALLOCATORS = {kind.name: kind for kind in (UniformAllocator, GreedyAllocator, KnapsackAllocator, ThresholdAllocator)}


def allocate(
    units: UnitTable,
    scores: Scores,
    costs: CostTable,
    budget: Budget,
    *,
    allocator: str | Allocator = "greedy",
    constraints: Constraints | None = None,
    always_quantize: bool = False,
) -> CompressionPlan:
    """The plan that an allocator writes for this budget: within every bound, and close to one of them.

    Args:
        units: from `find_units`.
        scores: of channels and heads (`"removed"`) and of layers (`"8bit"`, ...). What has no score stays as it is.
        costs: from `unit_costs`.
        budget: upper bounds.
        allocator: `"uniform"`, `"threshold"`, `"greedy"` or `"knapsack"`, or an allocator with its own settings.
        constraints: floors, alignment and pinned parts.
        always_quantize: for an allocator given by name: store every layer in at most 8 bits.

    Raises:
        BudgetError: if no plan meets the budget under the constraints; the message gives the closest feasible one.
        CompressError: for an unknown name, inputs that do not belong together, or scores that cannot be added.
    """
    if isinstance(allocator, str):
        if allocator not in ALLOCATORS:
            raise CompressError(
                f"The 'allocator' parameter of allocate must be one of {list(ALLOCATORS)} or an Allocator. "
                f"Got {allocator!r}."
            )
        allocator = ALLOCATORS[allocator](always_quantize=always_quantize)
    return allocator.allocate(units, scores, costs, budget, constraints or Constraints())


def closest_feasible(
    units: UnitTable,
    costs: CostTable,
    budget: Budget,
    constraints: Constraints | None = None,
    choices: Iterable[str] = ("removed",),
    *,
    always_quantize: bool = False,
) -> Budget:
    """The budget itself if some plan meets it, else the closest one that some plan meets. Needs no scores.

    Args:
        units, costs, budget, constraints: as in `allocate`.
        choices: what the scores are going to offer: `"removed"`, `"8bit"`, `"4bit"`, ...
        always_quantize: as in the allocators.
    """
    constraints = constraints or Constraints()
    return feasible_budget(_unscored_menu(units, costs, budget, constraints, choices, always_quantize), budget)


def check_budget(
    units: UnitTable,
    costs: CostTable,
    budget: Budget,
    constraints: Constraints | None = None,
    choices: Iterable[str] = ("removed",),
    *,
    always_quantize: bool = False,
) -> None:
    """Refuse, before any work starts, a budget that no plan can meet. Parameters as in `closest_feasible`.

    Raises:
        BudgetError: with the closest feasible budget and what to loosen. CompressError: for an unknown pinned name.
    """
    constraints = constraints or Constraints()
    menu = _unscored_menu(units, costs, budget, constraints, choices, always_quantize)
    require_feasible(menu, budget, constraints)


def _unscored_menu(
    units: UnitTable,
    costs: CostTable,
    budget: Budget,
    constraints: Constraints,
    choices: Iterable[str],
    always_quantize: bool,
) -> Menu:
    """The menu if all were scored. The cheapest units of a group go, so that whichever go later save no less."""
    choices = tuple(choices)
    weight = costs.layer_macs / max(costs.layer_macs.sum(), 1e-300)
    share = dict(zip(costs.unit_ids, weight @ (costs.in_share + costs.out_share), strict=True))
    values = np.zeros((len(units), len(choices)))
    for column, choice in enumerate(choices):
        if choice == "removed":
            values[:, column] = [share.get(unit, 0.0) for unit in units.ids]
    scores = Scores(units.ids, choices, values, "order")
    return open_menu(units, scores, costs, budget, constraints, always_quantize=always_quantize)
