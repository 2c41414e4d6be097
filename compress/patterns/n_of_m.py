"""N weights of every M along the inputs."""

from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import Tensor
from torch.nn import functional as F

from compress.errors import CompressError


@dataclass(frozen=True)
class NOfMPattern:
    """The best N of every M consecutive input channels stay, for each output and kernel position.

    Weights beyond the best N go as the density asks, the least important first; at the density N / M all are gone and
    the pattern is whole. A last group of fewer than M inputs keeps N too, so layers with few inputs stay denser (with N
    or fewer inputs, such as depthwise convs, whole). 2:4 is what NVIDIA's sparse tensor cores read: Mishra et al. 2021,
    "Accelerating Sparse Deep Neural Networks" (arXiv:2104.08378).

    Attributes:
        n: weights that stay in each group.
        m: size of a group.
    """

    name: ClassVar[str] = "n_of_m"

    n: int = 2
    m: int = 4

    def __post_init__(self) -> None:
        whole = all(isinstance(value, int) and not isinstance(value, bool) for value in (self.n, self.m))
        if not whole or not 1 <= self.n <= self.m:
            raise CompressError(f"NOfMPattern must have ints 1 <= n <= m. Got n={self.n!r}, m={self.m!r}.")

    @property
    def text(self) -> str:
        """`"2:4"`."""
        return f"{self.n}:{self.m}"

    @property
    def least_density(self) -> float:
        """N / M."""
        return self.n / self.m

    def cells(self, weight: Tensor) -> Tensor:
        return torch.arange(weight.numel()).reshape(weight.shape)

    def held(self, scores: Tensor) -> Tensor:
        moved = scores.movedim(1, -1)
        n_inputs = moved.shape[-1]
        groups = F.pad(moved, (0, -n_inputs % self.m), value=-torch.inf).unflatten(-1, (-1, self.m))
        best = groups.argsort(dim=-1, descending=True, stable=True)[..., : self.n]
        held = torch.zeros(groups.shape, dtype=torch.bool).scatter_(-1, best, True)
        return held.flatten(-2)[..., :n_inputs].movedim(-1, 1)
