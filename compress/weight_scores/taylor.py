"""First-order change of the loss when a weight becomes zero."""

from dataclasses import dataclass
from typing import ClassVar

from torch import Tensor

from compress.weight_statistics import WeightStatistics


@dataclass(frozen=True)
class TaylorWeightScore:
    """|w g|, g the derivative of the mean loss.

    Molchanov, Mallya, Tyree, Frosio, Kautz 2019, "Importance Estimation for Neural Network Pruning" (CVPR,
    arXiv:1906.10771); on an untrained net it is SNIP (Lee, Ajanthan, Torr 2019, arXiv:1810.02340).
    """

    name: ClassVar[str] = "taylor"
    needs: ClassVar[frozenset[str]] = frozenset({"gradients"})

    def score(self, statistics: WeightStatistics) -> Tensor:
        return (statistics.weight * statistics.need("gradient")).abs()
