"""Consumers' weights times the size of what they read."""

from dataclasses import dataclass
from typing import ClassVar

import numpy as np

from compress.normalization import NormalizedCriterion
from compress.statistics import Statistics


@dataclass(frozen=True)
class WandaCriterion(NormalizedCriterion):
    """Sum over the consumers' weights of |W| x root mean square of the unit's activation.

    Sun, Liu, Bair, Kolter 2024, "A Simple and Effective Pruning Approach for Large Language Models" (ICLR,
    arXiv:2306.11695), whose score of a single weight |W_ij| ||X_j|| is summed over the column j that a unit owns. A
    unit that no layer's weight reads directly gets its root mean square alone.
    """

    name: ClassVar[str] = "wanda"
    needs: ClassVar[frozenset[str]] = frozenset({"weights", "activations"})

    def raw(self, statistics: Statistics) -> np.ndarray:
        total, read = np.zeros(statistics.n_units), np.zeros(statistics.n_units, dtype=bool)
        for rows, values in statistics.slices(statistics.consumer_places):
            total += statistics.total(rows, np.abs(values).sum(axis=1))
            read[rows] = True
        return np.where(read, total, 1.0) * np.sqrt(statistics.need_activations().mean_square)
