"""Whether other units could take over."""

from collections.abc import Mapping
from typing import ClassVar

import numpy as np

from autolabel.feature import log_size, ratio
from compress.normalization import normalize_groups
from compress.statistics import Statistics


class RedundancyFeatures:
    """Nearest similar unit, regression on the others, and the error that a refit leaves in the consumers."""

    name: ClassVar[str] = "redundancy"
    choice: ClassVar[str] = "removed"
    columns: ClassVar[Mapping[str, str]] = {
        "twin_weight_cosine": "largest |cosine| between the producing weights and those of another unit of the group",
        "mean_weight_cosine": "mean |cosine| to the producing weights of the others",
        "twin_distance": "smallest distance of the producing weights to another unit's, over their norm, at most 10",
        "twin_consumer_cosine": "largest |cosine| between the reading weights and those of another unit",
        "twin_correlation": "largest |correlation| over examples (mean over positions) with another unit of the group",
        "mean_correlation": "mean |correlation| over examples with the others",
        "unexplained": "part of the variance that a ridge regression on all channels read with it cannot explain",
        "unexplained_log": "log10 of that part",
        "unexplained_rank": "its rank in the group, 0 to 1",
        "error_silenced_log": "log10 of the consumers' relative output error when the unit is zero",
        "error_averaged_log": "log10 of it when the unit is replaced by its mean",
        "error_refitted_log": "log10 of it when the other weights are refitted by least squares",
        "refit_gain_log": "log10 of refitted over silenced error: how much a refit repairs",
        "error_refitted_share": "refitted error as a part of the group's sum",
        "error_refitted_rank": "rank of the refitted error in the group, 0 to 1",
        "error_silenced_share": "silenced error as a part of the group's sum",
    }

    def compute(self, statistics: Statistics) -> np.ndarray:
        n, groups = statistics.n_units, statistics.group_rows
        own = np.zeros((6, n))
        pooled = statistics.need_activations().pooled
        for name, rows in groups.items():
            made = statistics.producers[name]
            own[0, rows], own[1, rows] = _similarity(made)
            own[2, rows] = _distance(made)
            own[3, rows] = _similarity(statistics.consumers[name])[0]
            values = pooled[:, rows].T.astype(np.float64)
            own[4, rows], own[5, rows] = _similarity(values - values.mean(axis=1, keepdims=True), 1e-5 * _size(values))
        found = statistics.redundancy
        silenced, averaged, refitted = (log_size(e) for e in (found.silenced, found.averaged, found.refitted))
        shares = np.zeros((2, n))
        for rows in groups.values():
            shares[0, rows] = ratio(found.refitted[rows], found.refitted[rows].sum())
            shares[1, rows] = ratio(found.silenced[rows], found.silenced[rows].sum())
        return np.column_stack([
            *own, found.residual, log_size(found.residual, 1e-6), normalize_groups(found.residual, groups, "rank"),
            silenced, averaged, refitted, refitted - silenced, shares[0],
            normalize_groups(found.refitted, groups, "rank"), shares[1],
        ])  # fmt: skip


def _size(vectors: np.ndarray) -> np.ndarray:
    return np.sqrt((vectors**2).sum(axis=1))


def _similarity(vectors: np.ndarray, floor: np.ndarray | float = 1e-15) -> tuple[np.ndarray, np.ndarray]:
    """Largest and mean |cosine| of each row with another row; 0 for rows no longer than `floor`."""
    size = _size(vectors)
    alive = size > floor
    unit = np.where(alive[:, None], vectors / np.where(alive, size, 1.0)[:, None], 0.0)
    cosine = np.minimum(np.abs(unit @ unit.T), 1.0)
    np.fill_diagonal(cosine, 0.0)
    return cosine.max(axis=1), cosine.sum(axis=1) / max(len(vectors) - 1, 1)


def _distance(vectors: np.ndarray) -> np.ndarray:
    """Distance to the nearest other row, over the row's own length; 10 at most, and for a row of zeros."""
    gram = vectors @ vectors.T
    squares = gram.diagonal().copy()
    distance = squares[:, None] + squares[None, :] - 2 * gram
    np.fill_diagonal(distance, np.inf)
    nearest = np.sqrt(np.maximum(distance.min(axis=1), 0.0))
    return np.where(squares > 0, np.minimum(ratio(nearest, np.sqrt(squares)), 10.0), 10.0)
