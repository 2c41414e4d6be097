"""Size of the weight beside those of its layer that are larger."""

from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import Tensor

from compress.weight_statistics import WeightStatistics


@dataclass(frozen=True)
class LampWeightScore:
    """w^2 over the sum of the squares of all weights of the layer that are not smaller.

    What a removal adds to the relative distance of the layer from what is left of it, so that one threshold for all
    layers leaves small layers denser. The largest weight of every layer has score 1. (Lee, Park, Mo, Ahn, Shin 2021,
    "Layer-adaptive Sparsity for the Magnitude-based Pruning", ICLR, arXiv:2010.07611.)
    """

    name: ClassVar[str] = "lamp"
    needs: ClassVar[frozenset[str]] = frozenset()

    def score(self, statistics: WeightStatistics) -> Tensor:
        squares = statistics.weight.flatten() ** 2
        ordered, order = squares.sort(stable=True)
        larger = ordered.flip(0).cumsum(0).flip(0)
        # A layer that is all zeros has nothing to divide by.
        scores = torch.empty_like(squares)
        scores[order] = ordered / larger.clamp(min=torch.finfo(larger.dtype).tiny)
        return scores.reshape(statistics.weight.shape)
