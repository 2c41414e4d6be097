"""Gradual pruning: often and much at first, then less and less."""

from dataclasses import dataclass
from typing import ClassVar

from compress.errors import CompressError
from compress.sparsity_schedule import check_count, check_initial, check_moments, decayed, step_of


@dataclass(frozen=True)
class PolynomialSchedule:
    """`s_f + (s_i - s_f) (1 - (t - begin) / (end - begin))^power` at every `frequency`-th step from `begin`.

    The parameters are those of PolynomialDecay in the TensorFlow Model Optimization Toolkit, after Zhu and Gupta 2017,
    "To prune, or not to prune" (arXiv:1710.01878). Unlike there the final sparsity is reached at `end` also when
    `frequency` does not divide the span.

    Attributes:
        initial_sparsity: at `begin`; before it nothing is gone.
        begin, end: each a fraction of the training (float) or a step (int).
        power: of the decay.
        frequency: steps from one removal to the next.
    """

    name: ClassVar[str] = "polynomial"

    initial_sparsity: float = 0.0
    begin: float = 0.0
    end: float = 0.75
    power: float = 3.0
    frequency: int = 100

    def __post_init__(self) -> None:
        check_moments("PolynomialSchedule", self.begin, self.end)
        check_count("PolynomialSchedule", "frequency", self.frequency)
        check_initial("PolynomialSchedule", self.initial_sparsity)
        if not self.power > 0:
            raise CompressError(f"The 'power' parameter of PolynomialSchedule must be above 0. Got {self.power!r}.")

    def sparsity(self, step: int, total_steps: int, final: float) -> float:
        begin, end = step_of(self.begin, total_steps), step_of(self.end, total_steps)
        if step >= end:
            return final
        if step < begin:
            return 0.0
        stair = (step - begin) // self.frequency * self.frequency
        return decayed(self.initial_sparsity, final, stair / (end - begin), self.power)
