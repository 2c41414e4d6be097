"""Automated gradual pruning: a number of removals along a cubic."""

from dataclasses import dataclass
from typing import ClassVar

from compress.sparsity_schedule import check_count, check_initial, check_moments, decayed, step_of


@dataclass(frozen=True)
class AgpSchedule:
    """`s_f + (s_i - s_f) (1 - k / n)^3` after removal k of n, evenly spaced from `begin` to `end`.

    Zhu and Gupta 2017, "To prune, or not to prune: exploring the efficacy of pruning for model compression"
    (arXiv:1710.01878), equation 1. The same law as the polynomial schedule, told by the number of removals.

    Attributes:
        initial_sparsity: at `begin`.
        begin, end: each a fraction of the training (float) or a step (int).
        removals: n.
    """

    name: ClassVar[str] = "agp"

    initial_sparsity: float = 0.0
    begin: float = 0.0
    end: float = 0.75
    removals: int = 20

    def __post_init__(self) -> None:
        check_moments("AgpSchedule", self.begin, self.end)
        check_count("AgpSchedule", "removals", self.removals)
        check_initial("AgpSchedule", self.initial_sparsity)

    def sparsity(self, step: int, total_steps: int, final: float) -> float:
        begin, end = step_of(self.begin, total_steps), step_of(self.end, total_steps)
        if step >= end:
            return final
        if step < begin:
            return 0.0
        done = (step - begin) * self.removals // (end - begin)
        return decayed(self.initial_sparsity, final, done / self.removals, 3.0)
