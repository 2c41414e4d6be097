"""Whole output channels."""

from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import Tensor


@dataclass(frozen=True)
class ChannelPattern:
    """All weights of one output, as a mask: the shapes stay. Of an embedding an output is one feature.

    Wen, Wu, Wang, Chen, Li 2016, "Learning Structured Sparsity in Deep Neural Networks" (NIPS, arXiv:1608.03665).
    """

    name: ClassVar[str] = "channel"
    text: ClassVar[str] = "channel"
    least_density: ClassVar[float] = 0.0

    def cells(self, weight: Tensor) -> Tensor:
        rows = torch.arange(weight.shape[0]).reshape(-1, *[1] * (weight.dim() - 1))
        return rows.expand(weight.shape)

    def held(self, scores: Tensor) -> Tensor:
        return torch.zeros(scores.shape, dtype=torch.bool)
