"""The raw table of a front: what other budgets would cost in predicted damage."""

from dataclasses import dataclass

FRONT_FILE = "front.csv"
ON_FRONT = "front"


@dataclass(frozen=True)
class FrontRow:
    """One plan: of the front along one bound of the budget, or the run's own.

    Attributes:
        bound: that falls along the front while the budget's others hold; empty for the run's plan.
        plan: `"front"`, or the method that made the run's plan.
        fraction: of the dense model's cost that was allowed; None for the run's plan.
        predicted_damage: sum of the damages that are predicted for its single choices, in the task's loss unit; None
            where the run's plan makes a choice that was not labelled.
        solved_damage: the same with choices that seem to help counted as 0: what was made least.
        lower_bound: no plan within these bounds has less `solved_damage`; None where nothing was proven.
        gap: `1 - lower_bound / solved_damage`.
        macs, weight_bytes, coded_bytes, bit_operations, latency_ms: predicted; None for what is not bounded.
        units_removed: channels and heads.
        mean_bits: of a weight that stays, over all layers.
    """

    bound: str
    plan: str
    fraction: float | None
    predicted_damage: float | None
    solved_damage: float | None
    lower_bound: float | None
    gap: float | None
    macs: float | None
    weight_bytes: float | None
    coded_bytes: float | None
    bit_operations: float | None
    latency_ms: float | None
    units_removed: int
    mean_bits: float
