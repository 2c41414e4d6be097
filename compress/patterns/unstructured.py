"""Single weights."""

from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import Tensor


@dataclass(frozen=True)
class UnstructuredPattern:
    """Every weight by itself.

    Han, Pool, Tran, Dally 2015, "Learning both Weights and Connections for Efficient Neural Networks" (NIPS,
    arXiv:1506.02626).
    """

    name: ClassVar[str] = "unstructured"
    text: ClassVar[str] = "unstructured"
    least_density: ClassVar[float] = 0.0

    def cells(self, weight: Tensor) -> Tensor:
        return torch.arange(weight.numel()).reshape(weight.shape)

    def held(self, scores: Tensor) -> Tensor:
        return torch.zeros(scores.shape, dtype=torch.bool)
