"""Norm of the weights that make a unit."""

from dataclasses import dataclass
from typing import ClassVar

import numpy as np

from compress.errors import CompressError
from compress.normalization import NormalizedCriterion
from compress.statistics import Statistics


@dataclass(frozen=True)
class MagnitudeCriterion(NormalizedCriterion):
    """L1 or L2 norm of all weights that produce a unit: its filter, in every layer of its coupled group.

    Li, Kadav, Durdanovic, Samet, Graf 2017, "Pruning Filters for Efficient ConvNets" (ICLR, arXiv:1608.08710).

    Attributes:
        p: 1 for the sum of magnitudes, 2 for the Euclidean norm.
    """

    name: ClassVar[str] = "magnitude"
    needs: ClassVar[frozenset[str]] = frozenset({"weights"})

    p: int = 2

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.p not in (1, 2):
            raise CompressError(f"The 'p' parameter of MagnitudeCriterion must be 1 or 2. Got {self.p!r}.")

    def raw(self, statistics: Statistics) -> np.ndarray:
        total = np.zeros(statistics.n_units)
        for rows, values in statistics.slices(statistics.producer_places):
            total += statistics.total(rows, (np.abs(values) ** self.p).sum(axis=1))
        return total ** (1 / self.p)
