"""Size of the weight times size of what it multiplies."""

from dataclasses import dataclass
from typing import ClassVar

from torch import Tensor

from compress.weight_statistics import WeightStatistics


@dataclass(frozen=True)
class WandaWeightScore:
    """|w_ij| times the root mean square of input j; a conv counts every kernel position as an input.

    Sun, Liu, Bair, Kolter 2024, "A Simple and Effective Pruning Approach for Large Language Models" (ICLR,
    arXiv:2306.11695), who compare within each output.
    """

    name: ClassVar[str] = "wanda"
    needs: ClassVar[frozenset[str]] = frozenset({"inputs"})

    def score(self, statistics: WeightStatistics) -> Tensor:
        how, weight = statistics.need("layout"), statistics.weight
        size = statistics.need("input_square").sqrt()
        return how.weight(how.matrix(weight).abs() * size[:, :, None], weight.shape)
