"""Second-order change of the loss, its Hessian replaced by the diagonal Fisher information."""

from dataclasses import dataclass
from typing import ClassVar

from torch import Tensor

from compress.weight_statistics import WeightStatistics


@dataclass(frozen=True)
class FisherWeightScore:
    """w^2 E[g^2], g the derivative of one example's loss.

    Theis, Korshunova, Tejani, Huszar 2018, "Faster gaze prediction with dense networks and Fisher pruning"
    (arXiv:1801.05787); with the Hessian's own diagonal it is Optimal Brain Damage (LeCun, Denker, Solla 1989, NIPS).
    """

    name: ClassVar[str] = "fisher"
    needs: ClassVar[frozenset[str]] = frozenset({"squared_gradients"})

    def score(self, statistics: WeightStatistics) -> Tensor:
        return statistics.weight.square() * statistics.need("squared_gradient")
