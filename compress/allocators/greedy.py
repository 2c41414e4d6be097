"""Step by step, what hurts least for what it saves: fast, and close to the optimum."""

from dataclasses import dataclass

from compress.allocator import Constraints
from compress.budget import Budget
from compress.costs import CostTable
from compress.ledger import Ledger
from compress.menu import open_menu
from compress.plan import CompressionPlan
from compress.scores import Scores
from compress.spending import require_feasible, require_nats, settle, write_plan
from compress.units import UnitTable


@dataclass(frozen=True)
class GreedyAllocator:
    """Takes steps (more units of a group, fewer bits of a layer) by damage per cost saved until the budget is met.

    Savings are the exact marginal ones, evaluated anew after every step, since removing inputs of a layer makes its
    outputs cheaper. In the end steps are taken back while they fit. Damages are assumed to add over choices; a negative
    one counts as 0. Units of a group always go lowest score first.

    Args:
        always_quantize: store every layer in at most 8 bits, even if the bytes are not bounded.
    """

    always_quantize: bool = False
    name = "greedy"

    def allocate(
        self, units: UnitTable, scores: Scores, costs: CostTable, budget: Budget, constraints: Constraints
    ) -> CompressionPlan:
        """The plan. Errors as in `Allocator.allocate`."""
        menu = open_menu(units, scores, costs, budget, constraints, always_quantize=self.always_quantize)
        require_nats(menu, self.name)
        require_feasible(menu, budget, constraints)
        ledger = Ledger(menu)
        settle(ledger)
        return write_plan(ledger, self.name, budget, constraints, {"always_quantize": self.always_quantize})
