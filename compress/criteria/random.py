"""Chance: the floor that every criterion must beat."""

from dataclasses import dataclass
from typing import ClassVar

import numpy as np

from compress.errors import CompressError
from compress.normalization import NormalizedCriterion
from compress.statistics import Statistics


@dataclass(frozen=True)
class RandomCriterion(NormalizedCriterion):
    """Uniform numbers in [0, 1).

    With fine-tuning or a refit a serious baseline: Mittal, Bhardwaj, Khapra, Ravindran 2018, "Recovering from Random
    Pruning: On the Plasticity of Deep Convolutional Neural Networks" (arXiv:1801.10447).

    Attributes:
        seed: of the numbers; the same seed and model give the same scores.
    """

    name: ClassVar[str] = "random"
    needs: ClassVar[frozenset[str]] = frozenset()

    seed: int = 0

    def __post_init__(self) -> None:
        super().__post_init__()
        if isinstance(self.seed, bool) or not isinstance(self.seed, int) or self.seed < 0:
            raise CompressError(f"The 'seed' parameter of RandomCriterion must be an int >= 0. Got {self.seed!r}.")

    def raw(self, statistics: Statistics) -> np.ndarray:
        return np.random.default_rng(self.seed).random(statistics.n_units)
