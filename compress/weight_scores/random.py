"""Chance: the floor that every score must beat."""

import zlib
from dataclasses import dataclass
from typing import ClassVar

import numpy as np
import torch
from torch import Tensor

from compress.errors import CompressError
from compress.weight_statistics import WeightStatistics


@dataclass(frozen=True)
class RandomWeightScore:
    """Uniform numbers in [0, 1), the same for the same seed, layer name and shape.

    A serious baseline after training: Gale, Elsen, Hooker 2019, "The State of Sparsity in Deep Neural Networks"
    (arXiv:1902.09574).

    Attributes:
        seed: of the numbers.
    """

    name: ClassVar[str] = "random"
    needs: ClassVar[frozenset[str]] = frozenset()

    seed: int = 0

    def __post_init__(self) -> None:
        if isinstance(self.seed, bool) or not isinstance(self.seed, int) or self.seed < 0:
            raise CompressError(f"The 'seed' parameter of RandomWeightScore must be an int >= 0. Got {self.seed!r}.")

    def score(self, statistics: WeightStatistics) -> Tensor:
        generator = np.random.default_rng([self.seed, zlib.crc32(statistics.name.encode())])
        return torch.from_numpy(generator.random(tuple(statistics.weight.shape)))
