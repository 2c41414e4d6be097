"""The plan that a plan labeler likes best among hundreds of one size."""

from collections.abc import Callable
from dataclasses import dataclass, field

import numpy as np

from autolabel.format_summary import FormatSummarizer
from autolabel.plan_labeler import PlanLabeler
from autolabel.plan_search import PlanSearch
from autolabel.plan_summary import PlanSummarizer
from compress.allocator import Constraints
from compress.budget import Budget
from compress.costs import CostTable
from compress.errors import CompressError
from compress.plan import CompressionPlan, LayerFormat
from compress.scores import Scores
from compress.units import UnitTable


@dataclass(frozen=True, eq=False)
class LearnedSearchAllocator:
    """Searches plans that remove channels and heads; damages are not added up, whole plans are judged.

    The scores, if they know how to remove units, are one more order in which units of a group may go.

    Args:
        summarizer: of the network; its costs and units are the ones to allocate.
        labeler: a fitted plan labeler.
        search: how to search.
        on_round: called with the rounds done, or rounds and measured plans, and all of them.
        measure: what a plan, `(n_units,)` bool, loses after its repair, for a search that measures plans.
        formats: of the network; with it the bits of layers are searched too, at a size in bytes.
    """

    name = "learned_search"

    summarizer: PlanSummarizer
    labeler: PlanLabeler
    search: PlanSearch = field(default_factory=PlanSearch)
    on_round: Callable[[int, int], None] | None = None
    measure: Callable[[np.ndarray], float] | None = None
    formats: FormatSummarizer | None = None

    def allocate(
        self, units: UnitTable, scores: Scores | None, costs: CostTable, budget: Budget, constraints: Constraints
    ) -> CompressionPlan:
        """The plan.

        Raises:
            BudgetError: if no plan meets the budget under the constraints.
            CompressError: unless exactly one cost is bounded, or if the units are not those of the summarizer.
        """
        bounds = budget.absolute(costs.dense)
        if len(bounds) != 1:
            raise CompressError(f"A search of plans needs exactly one bound in the budget. Got {sorted(bounds)}.")
        ((size, bound),) = bounds.items()
        if units.ids != self.summarizer.statistics.units.ids:
            raise CompressError("The units to allocate are not those that the plan summarizer knows.")
        dense = {"macs": costs.dense_macs, "weight_bytes": costs.dense_weight_bytes}[size]
        found = self.search.run(self.summarizer, self.labeler, size, bound / dense, constraints, self.on_round,
                                self._orders(scores), self.measure, self.formats)  # fmt: skip
        n_measured = len(found.losses)
        corrected = f"+{n_measured}" if n_measured else ""
        layers, rows = {}, None
        if self.formats is not None and found.bits is not None:
            bits = zip(self.formats.layers, found.bits.tolist(), strict=True)
            layers, rows = {name: LayerFormat(own) for name, own in bits}, self.formats.rows(found.bits)
        macs, weight_bytes = costs.total(found.removed, rows)
        return CompressionPlan.removing(
            units, [units.ids[row] for row in np.flatnonzero(found.removed)],
            layer_formats=layers, predicted_cost={"macs": macs, "weight_bytes": weight_bytes},
            provenance={
                "allocator": self.name, "plan_labeler": self.labeler.name + corrected, "seed": self.search.seed,
                "search": {"score": found.score, "spread": found.spread, "judged": found.n_judged,
                           "measured": n_measured},
            },
        )  # fmt: skip

    def _orders(self, scores: Scores | None) -> dict[str, np.ndarray]:
        if scores is None or "removed" not in scores.choices:
            return {}
        values = scores.values[: self.summarizer.n, scores.choices.index("removed")]
        return {"scores": values} if np.isfinite(values).all() else {}
