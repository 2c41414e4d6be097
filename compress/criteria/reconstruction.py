"""What a channel costs that the channels beside it cannot make up for."""

from dataclasses import dataclass
from typing import ClassVar

import numpy as np

from compress.elimination import elimination_damage, readings
from compress.normalization import NormalizedCriterion
from compress.statistics import Statistics


@dataclass(frozen=True)
class ReconstructionCriterion(NormalizedCriterion):
    """Increase of the reading layers' least-squares error when the unit goes after all that are less important.

    Units of a group are removed backwards one after the other, the weights of those that stay being refitted each time
    (Hassibi and Stork 1992, "Second order derivatives for network pruning: Optimal Brain Surgeon", NIPS, for whole
    channels; Luo, Wu and Lin 2017, "ThiNet", arXiv:1707.06342, for the objective). So of two channels that are alike
    the first to go is cheap and the second is not, and the sum over those removed is the error after the refit that
    follows pruning. Each group's errors are brought to nats by the geometric mean of its units' Fisher damage over that
    of the errors of silencing them.

    Attributes:
        ridge: added to the diagonal of the covariance, as a part of its mean.
    """

    name: ClassVar[str] = "reconstruction"
    needs: ClassVar[frozenset[str]] = frozenset({"gradients", "moments"})

    ridge: float = 1e-3

    @property
    def estimates_damage(self) -> bool:
        return True

    def raw(self, statistics: Statistics) -> np.ndarray:
        return elimination_damage(statistics, readings(statistics), self.ridge)
