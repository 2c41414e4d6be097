"""Fisher information of a unit's gate."""

from dataclasses import dataclass
from typing import ClassVar

import numpy as np

from compress.normalization import NormalizedCriterion
from compress.statistics import Statistics


@dataclass(frozen=True)
class FisherCriterion(NormalizedCriterion):
    """0.5 E[t^2]: the second-order term of the loss at a minimum, its Hessian replaced by the empirical Fisher.

    `t` is an example's sum of activation x gradient over the unit. Theis, Korshunova, Tejani, Huszar 2018, "Faster gaze
    prediction with dense networks and Fisher pruning" (arXiv:1801.05787), equation 7.

    Attributes:
        half: keep the factor 0.5, which makes it an estimate of damage in nats; without it E[t^2] is an order.
    """

    name: ClassVar[str] = "fisher"
    needs: ClassVar[frozenset[str]] = frozenset({"gradients"})

    half: bool = True

    @property
    def estimates_damage(self) -> bool:
        return self.half

    def raw(self, statistics: Statistics) -> np.ndarray:
        return (0.5 if self.half else 1.0) * (statistics.need_gradients() ** 2).mean(axis=0)
