"""Size of the weight."""

from dataclasses import dataclass
from typing import ClassVar

from torch import Tensor

from compress.weight_statistics import WeightStatistics


@dataclass(frozen=True)
class MagnitudeWeightScore:
    """|w|.

    Han, Pool, Tran, Dally 2015, "Learning both Weights and Connections for Efficient Neural Networks" (NIPS,
    arXiv:1506.02626).
    """

    name: ClassVar[str] = "magnitude"
    needs: ClassVar[frozenset[str]] = frozenset()

    def score(self, statistics: WeightStatistics) -> Tensor:
        return statistics.weight.abs()
