"""The seam of allocators: spend a budget over scores and costs, write a plan."""

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Protocol, runtime_checkable

from compress.budget import Budget
from compress.costs import CostTable
from compress.plan import CompressionPlan
from compress.scores import Scores
from compress.units import UnitTable


@dataclass(frozen=True)
class Constraints:
    """What an allocator must respect besides the budget.

    Attributes:
        floor: fraction of each group that stays at least, in [0, 1]; with 1 all of it, and never less than one unit.
        floors: name of a group -> its own such fraction, in the place of `floor`.
        round_to: the number of kept units of a group is a multiple of this (or all of the group stays).
        pinned: names of groups, layers or units (an id, or a prefix ending in a dot) that must stay as they are.
        max_bits_only: layers (by name) that keep all weights in one layer, in 8 bits or more.
    """

    floor: float = 0.1
    round_to: int = 1
    pinned: tuple[str, ...] = ()
    max_bits_only: tuple[str, ...] = field(default_factory=tuple)
    floors: Mapping[str, float] = field(default_factory=dict)

    def floor_of(self, group: str) -> float:
        """The fraction of this group that stays at least."""
        return self.floors.get(group, self.floor)


@runtime_checkable
class Allocator(Protocol):
    """Writes a plan whose cost is within the budget, or raises BudgetError with the closest feasible budget."""

    name: str

    def allocate(
        self, units: UnitTable, scores: Scores, costs: CostTable, budget: Budget, constraints: Constraints
    ) -> CompressionPlan:
        """The plan.

        Damages are assumed to add over choices; the report holds predicted against realised damage.

        Raises:
            BudgetError: if no plan meets the budget under the constraints; the message gives the closest feasible one.
            CompressError: if it adds scores and their scale is `"order"`.
        """
