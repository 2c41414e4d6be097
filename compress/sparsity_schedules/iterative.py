"""Rounds that each remove the same part of what is left."""

from dataclasses import dataclass
from typing import ClassVar

from compress.sparsity_schedule import check_count, check_moments, step_of


@dataclass(frozen=True)
class IterativeSchedule:
    """After round k of n the density is (final density)^(k / n); each round is followed by equally many steps.

    Round k comes at `begin + (k - 1) (end - begin) / n`, so the last is followed by training too. Iterative pruning of
    Han et al. 2015 (NIPS, arXiv:1506.02626) with the geometric rates of Frankle and Carbin 2019, "The Lottery Ticket
    Hypothesis" (ICLR, arXiv:1803.03635), within one training.

    Attributes:
        rounds: how many.
        begin, end: of the rounds, each a fraction of the training (float) or a step (int).
    """

    name: ClassVar[str] = "iterative"

    rounds: int = 5
    begin: float = 0.0
    end: float = 1.0

    def __post_init__(self) -> None:
        check_count("IterativeSchedule", "rounds", self.rounds)
        check_moments("IterativeSchedule", self.begin, self.end)

    def sparsity(self, step: int, total_steps: int, final: float) -> float:
        begin, end = step_of(self.begin, total_steps), step_of(self.end, total_steps)
        done = sum(step >= begin + k * max(end - begin, 0) // self.rounds for k in range(self.rounds))
        return final if done == self.rounds else 1.0 - (1.0 - final) ** (done / self.rounds)
