"""What other budgets would cost: the labeler's damages, added and solved for anew at bounds around the run's own."""

import logging
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass, field, replace

import numpy as np

from autolabel.learning import join_scores
from autolabel.tables import LabelTable
from compress.allocator import Allocator, Constraints
from compress.allocators import KnapsackAllocator
from compress.budget import Budget
from compress.costs import CostTable
from compress.layer_choice import LayerChoice, choice_of
from compress.layer_prices import ranks_of
from compress.menu import open_menu
from compress.pareto import pareto_front
from compress.plan import CompressionPlan, LayerFormat
from compress.quantizer import FLOAT_BITS
from compress.scores import Scores
from compress.spending import feasible_budget, format_of
from compress.units import UnitTable
from experiments.front_table import ON_FRONT, FrontRow
from experiments.workbench import Workbench

log = logging.getLogger(__name__)


def solve_front(
    bench: Workbench,
    labels: LabelTable,
    formats: LabelTable | None,
    chosen: CompressionPlan,
    factors: Sequence[float],
    on_plan: Callable[[int, int], None] | None = None,
) -> list[FrontRow]:
    """The front along every bound of the budget, the most expensive plan first, and the run's plan last.

    Args:
        bench: of the run; its dense weights are loaded.
        labels: of the units, `"removed"`.
        formats: of the layers; None where the knapsack may not choose any.
        chosen: the run's plan, whichever method made it.
        factors: each bound of the budget times these is solved for, and the bound itself. Those that no plan meets are
            left out, and those above the dense model stand for it.
        on_plan: called with how many of how many bounds are done.

    Raises:
        CompressError: for a budget without bounds, labels of other units, or units without a label.
    """
    structure, costs, parts = bench.structure, bench.costs, bench.parts
    scores = join_scores(structure, labels, formats)
    always = formats is not None and parts.allocator.always_quantize
    own = parts.allocator if isinstance(parts.allocator, KnapsackAllocator) else KnapsackAllocator()
    budgets = {
        name: _feasible_around(structure.units, scores, costs, parts.budget, parts.constraints, name, factors, always)
        for name in parts.budget.absolute(costs.dense)
    }
    total = len({budget for found in budgets.values() for budget in found})
    allocator = _Remembering(replace(own, always_quantize=always), total, on_plan)
    rows = []
    for name, found in budgets.items():
        plans = pareto_front(
            structure.units, scores, costs, name, budgets=[getattr(budget, name) for budget in found],
            within=replace(parts.budget, **{name: None}), allocator=allocator, constraints=parts.constraints,
        )  # fmt: skip
        for plan in plans:
            told = plan.provenance
            fraction = told["bounds"][name] / costs.dense[name]
            # A menu without choices is not solved.
            solved = told.get("solved_damage", max(plan.predicted_damage or 0.0, 0.0))
            rows.append(_row(bench, plan, name, ON_FRONT, fraction, (plan.predicted_damage, solved),
                             (told.get("lower_bound"), told.get("gap"))))  # fmt: skip
    method = str(chosen.provenance.get("method", "the run's plan"))
    return [*rows, _row(bench, chosen, "", method, None, added_damage(structure.units, costs, scores, chosen))]


def added_damage(
    units: UnitTable, costs: CostTable, scores: Scores, plan: CompressionPlan
) -> tuple[float | None, float | None]:
    """Sum of the scores of all that a plan does, as they are and with negative ones counted as 0.

    Both are None where it does what has no score. A layer in plain 8 bits counts as harmless then, as for allocators.
    """
    row_of = {unit: row for row, unit in enumerate(scores.unit_ids)}
    removed = [row_of[units.ids[row]] for row in np.flatnonzero(plan.removed_mask(units))]
    spent = [float(value) for value in scores.values[removed, scores.choices.index("removed")]]
    spent += [_format_damage(scores, costs, name, row_of[name], f) for name, f in plan.layer_formats.items()]
    values = np.array(spent)
    if np.isnan(values).any():
        return None, None
    return float(values.sum()), float(np.maximum(values, 0.0).sum())


def _format_damage(scores: Scores, costs: CostTable, name: str, row: int, layer_format: LayerFormat) -> float:
    """The score of a layer's format, NaN where there is none."""
    layer = costs.layer_names.index(name)
    for column, choice_name in enumerate(scores.choices):
        choice = None if choice_name == "removed" else choice_of(choice_name)
        if choice is None or np.isnan(scores.values[row, column]):
            continue
        rank = None if choice.rank is None else int(ranks_of(costs, choice)[layer])
        if choice != LayerChoice() and format_of(choice, rank, costs.number_format) == layer_format:
            return float(scores.values[row, column])
    return 0.0 if layer_format == LayerFormat(8) else float("nan")


def _feasible_around(
    units: UnitTable, scores: Scores, costs: CostTable, budget: Budget, constraints: Constraints, name: str,
    factors: Sequence[float], always: bool,
) -> list[Budget]:  # fmt: skip
    """The budget, and those with one of its bounds times each factor that some plan meets."""
    share = budget.absolute(costs.dense)[name] / costs.dense[name]
    found = [budget]
    for factor in factors:
        wanted = replace(budget, **{name: min(1.0, factor * share)})
        menu = open_menu(units, scores, costs, wanted, constraints, always_quantize=always)
        if feasible_budget(menu, wanted) == wanted:
            found.append(wanted)
        else:
            log.info("front: no plan has %.4g of the %s within the other bounds, left out", factor * share, name)
    return list(dict.fromkeys(found))


def _row(
    bench: Workbench, plan: CompressionPlan, bound: str, made_by: str, fraction: float | None,
    damage: tuple[float | None, float | None], proof: tuple[float | None, float | None] = (None, None),
) -> FrontRow:  # fmt: skip
    costs = {name: plan.predicted_cost.get(name) for name in asdict(Budget())}
    removed = plan.removed_mask(bench.structure.units)
    return FrontRow(bound, made_by, fraction, *damage, *proof, **costs, units_removed=int(removed.sum()),
                    mean_bits=_mean_bits(bench.costs, plan, removed))  # fmt: skip


def _mean_bits(costs: CostTable, plan: CompressionPlan, removed: np.ndarray) -> float:
    kept_in, kept_out = costs.kept_shares(removed)
    kept, formats = costs.layer_weights * kept_in * kept_out, plan.layer_formats
    names = [costs.unit_ids[unit] if unit >= 0 else "" for unit in costs.layer_unit]
    bits = [formats[name].bits if name in formats else FLOAT_BITS for name in names]
    return float(np.dot(kept, bits) / kept.sum())


@dataclass
class _Remembering:
    """An allocator that is asked once about each budget: all fronts meet in that of the run."""

    allocator: Allocator
    total: int
    on_plan: Callable[[int, int], None] | None = None
    plans: dict[Budget, CompressionPlan] = field(default_factory=dict)
    name = KnapsackAllocator.name

    def allocate(
        self, units: UnitTable, scores: Scores, costs: CostTable, budget: Budget, constraints: Constraints
    ) -> CompressionPlan:
        if budget not in self.plans:
            self.plans[budget] = self.allocator.allocate(units, scores, costs, budget, constraints)
            if self.on_plan is not None:
                self.on_plan(len(self.plans), self.total)
        return self.plans[budget]
