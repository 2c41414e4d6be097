"""Distance of a unit's weights to those of its group."""

from dataclasses import dataclass
from typing import ClassVar

import numpy as np

from compress.normalization import NormalizedCriterion
from compress.statistics import Statistics


@dataclass(frozen=True)
class GeometricMedianCriterion(NormalizedCriterion):
    """Sum of Euclidean distances from a unit's producing weights to those of all others of its group.

    Units near the geometric median are the most replaceable: FPGM, He, Liu, Wang, Hu, Yang 2019, "Filter Pruning via
    Geometric Median for Deep Convolutional Neural Networks Acceleration" (CVPR, arXiv:1811.00250).
    """

    name: ClassVar[str] = "geometric_median"
    needs: ClassVar[frozenset[str]] = frozenset({"weights"})

    def raw(self, statistics: Statistics) -> np.ndarray:
        out = np.zeros(statistics.n_units)
        for name, vectors in statistics.producers.items():
            gram = vectors @ vectors.T
            squares = gram.diagonal()
            distances = np.sqrt(np.maximum(squares[:, None] + squares[None, :] - 2 * gram, 0.0))
            np.fill_diagonal(distances, 0.0)
            out[statistics.group_rows[name]] = distances.sum(axis=1)
        return out
