"""Scale that batch norm gives a channel."""

import warnings
from dataclasses import dataclass
from typing import ClassVar

import numpy as np

from compress.normalization import NormalizedCriterion
from compress.statistics import Statistics


@dataclass(frozen=True)
class BatchNormScaleCriterion(NormalizedCriterion):
    """|gamma| of the batch norm behind a channel, averaged over the batch norms of a coupled group.

    Liu, Li, Shen, Huang, Yan, Zhang 2017, "Learning Efficient Convolutional Networks through Network Slimming" (ICCV,
    arXiv:1708.06519). A unit without a batch norm gets its weight norm relative to its group's mean, times the mean
    scale of the units that have one (1 if none has): the scale it would have if its group were normalised. That warns.
    """

    name: ClassVar[str] = "bn_scale"
    needs: ClassVar[frozenset[str]] = frozenset({"weights"})

    def raw(self, statistics: Statistics) -> np.ndarray:
        scale = statistics.bn_scale
        lacking = np.isnan(scale)
        if not lacking.any():
            return scale
        warnings.warn(
            f"{int(lacking.sum())} of {len(scale)} units have no batch norm; criterion 'bn_scale' uses the relative "
            "norm of their weights instead.",
            UserWarning,
            stacklevel=3,
        )
        norms = np.zeros(statistics.n_units)
        for rows, values in statistics.slices(statistics.producer_places):
            norms += statistics.total(rows, (values**2).sum(axis=1))
        norms = np.sqrt(norms)
        typical = 1.0 if lacking.all() else float(scale[~lacking].mean())
        filled = scale.copy()
        for rows in statistics.group_rows.values():
            missing = rows[lacking[rows]]
            mean = norms[rows].mean()
            filled[missing] = typical * norms[missing] / mean if mean > 0 else 0.0
        return filled
