"""Second-order change of the loss when a unit's gate closes."""

from dataclasses import dataclass
from typing import ClassVar

import numpy as np

from compress.normalization import NormalizedCriterion
from compress.statistics import Statistics


@dataclass(frozen=True)
class SecondOrderCriterion(NormalizedCriterion):
    """-E[t] + 0.5 E[t^2]: expected damage in nats of closing a gate, Hessian replaced by the empirical Fisher.

    `t` is an example's sum of activation x gradient over the unit. The expansion of Optimal Brain Damage (LeCun,
    Denker, Solla 1989, NIPS) with its first-order term kept, as a trained network is no minimum on calibration data.
    Negative where removal helps.
    """

    name: ClassVar[str] = "second_order"
    needs: ClassVar[frozenset[str]] = frozenset({"gradients"})

    @property
    def estimates_damage(self) -> bool:
        return True

    def raw(self, statistics: Statistics) -> np.ndarray:
        t = statistics.need_gradients()
        return -t.mean(axis=0) + 0.5 * (t**2).mean(axis=0)
