"""Everything at once."""

from dataclasses import dataclass
from typing import ClassVar

from compress.sparsity_schedule import check_moment, step_of


@dataclass(frozen=True)
class OneShotSchedule:
    """The final sparsity at one moment, after which the masks are only held.

    Han, Pool, Tran, Dally 2015, "Learning both Weights and Connections for Efficient Neural Networks" (NIPS,
    arXiv:1506.02626), one round of it.

    Attributes:
        at: a fraction of the training (float) or a step (int); 0.0 is before the first step.
    """

    name: ClassVar[str] = "one_shot"

    at: float = 0.0

    def __post_init__(self) -> None:
        check_moment("OneShotSchedule", "at", self.at)

    def sparsity(self, step: int, total_steps: int, final: float) -> float:
        return final if step >= step_of(self.at, total_steps) else 0.0
