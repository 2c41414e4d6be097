"""Second moments between the channels that a layer reads: what a refit of that layer could make up for."""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor, fx

from compress.structure import Site

# Beyond this many channels at one place a covariance is not worth its memory.
_MOST_COLUMNS = 4096
# Rows that suffice for a stable covariance (times the columns), and the multiply-adds worth spending on more.
_ROWS_PER_COLUMN = 4
_WORK = 2e9


@dataclass(frozen=True, eq=False)
class SecondMoments:
    """Mean and covariance of the values read at one place.

    Attributes:
        rows: `(n_columns,)` unit row of every column, -1 for one that belongs to no removable unit.
        mean: `(n_columns,)` float64.
        covariance: `(n_columns, n_columns)` float64.
        count: rows (examples times positions) that were seen; a regular subset of them where there are many.
        consumers: the calls that read the place.
    """

    rows: np.ndarray
    mean: np.ndarray
    covariance: np.ndarray
    count: int
    consumers: tuple[fx.Node, ...]


class MomentSums:
    """Running sums of one place. Places with more than 4096 columns are not followed."""

    def __init__(self, site: Site, n_batches: int) -> None:
        self._site = site
        self._n_batches = n_batches
        self._shift: Tensor | None = None
        size = len(site.rows) if len(site.rows) <= _MOST_COLUMNS else 0
        self._sum = np.zeros(size)
        self._square = np.zeros((size, size))
        self._count = 0
        self.consumers: list[fx.Node] = []

    def add(self, x: Tensor) -> None:
        """Add one batch of the values at this place."""
        size = len(self._sum)
        if not size:
            return
        dim = self._site.dim % x.dim()
        wanted = max(_ROWS_PER_COLUMN * size, int(_WORK / size**2)) // self._n_batches
        x = _thin(x, dim, max(wanted, 1), None if self._site.batch is None else self._site.batch.dim)
        rows = x.movedim(dim, -1).reshape(-1, size).float()
        if self._shift is None:
            # Around a typical value float32 sums lose nothing to cancellation.
            self._shift = rows.mean(0)
        rows = rows - self._shift
        self._sum += rows.sum(0).double().cpu().numpy()
        self._square += (rows.t() @ rows).double().cpu().numpy()
        self._count += len(rows)

    def moments(self) -> SecondMoments:
        """Mean and covariance of what was added."""
        count = max(self._count, 1)
        mean = self._sum / count
        shift = np.zeros(len(mean)) if self._shift is None else self._shift.double().cpu().numpy()
        covariance = self._square / count - np.outer(mean, mean)
        rows = self._site.rows if len(mean) else np.zeros(0, dtype=np.int64)
        return SecondMoments(rows, mean + shift, covariance, self._count, tuple(self.consumers))


def _thin(x: Tensor, dim: int, wanted: int, batch_dim: int | None) -> Tensor:
    """A regular subset of about `wanted` rows: first fewer positions of each example, then fewer examples."""
    others = [d for d in range(x.dim()) if d not in (dim, batch_dim)]
    order: Sequence[int] = sorted(others, key=lambda d: -x.shape[d])
    for d in (*order, *order, batch_dim):
        excess = x.numel() // x.shape[dim] // wanted
        if d is None or excess < 2:
            continue
        step = min(excess, max(x.shape[d] // 4, 1)) if d != batch_dim else excess
        x = x[(slice(None),) * d + (slice(None, None, step),)]
    return x


@dataclass(frozen=True, eq=False)
class Redundancy:
    """How well the channels beside a unit replace it, each `(n_units,)` float64.

    Attributes:
        residual: part of the unit's variance that a ridge regression on all other channels read with it leaves
            unexplained, in [0, 1]; a constant unit has 0.
        silenced, averaged, refitted: squared error in the outputs of the reading layers, as a part of these outputs'
            energy: when the unit is zero, when it is replaced by its mean, and when the other weights are refitted by
            least squares (Optimal Brain Surgeon, Hassibi and Stork 1992, for a whole channel). Convolutions count every
            kernel offset by itself. 0 where no conv or linear layer reads the unit.
    """

    residual: np.ndarray
    silenced: np.ndarray
    averaged: np.ndarray
    refitted: np.ndarray


def measure_redundancy(
    moments: Sequence[SecondMoments], weights: Sequence[Sequence[np.ndarray]], n_units: int, ridge: float = 1e-3
) -> Redundancy:
    """Redundancy of all units, from the moments of every place.

    Args:
        moments: of all places.
        weights: per place, for each reading layer its `(n_columns, n_outputs)` weights.
        n_units: number of removable units.
        ridge: added to the diagonal, as a part of its mean.
    """
    left, variance = np.zeros(n_units), np.zeros(n_units)
    errors = np.zeros((3, n_units))
    for place, layers in zip(moments, weights, strict=True):
        if not len(place.rows):
            continue
        covariance = torch.from_numpy(place.covariance)
        second = covariance + torch.outer(*[torch.from_numpy(place.mean)] * 2)
        strength = ridge * max(float(covariance.diagonal().mean()), 1e-12)
        inverse = torch.linalg.inv(covariance + strength * torch.eye(len(covariance), dtype=torch.float64))
        total = [max(float(_energy(second[None], torch.from_numpy(w)[None])), 1e-30) for w in layers]
        for units, columns in _columns_by_unit(place.rows):
            block = _blocks(covariance, columns)
            rest = torch.linalg.inv(_blocks(inverse, columns)) - strength * torch.eye(columns.shape[1])
            # The regression cannot explain less than nothing, nor more than all.
            own = block.diagonal(dim1=1, dim2=2).sum(1)
            unexplained = rest.diagonal(dim1=1, dim2=2).sum(1).clamp_min(0.0).minimum(own.clamp_min(0.0))
            left[units] += unexplained.numpy()
            variance[units] += own.clamp_min(0.0).numpy()
            for w, energy in zip(layers, total, strict=True):
                part = torch.from_numpy(w)[columns]
                for i, matrix in enumerate((_blocks(second, columns), block, rest)):
                    errors[i, units] += (_energy(matrix, part).clamp_min(0.0) / energy).numpy()
    tiny = 1e-12 * max(float(variance.max(initial=0.0)), 1e-30)
    return Redundancy(np.where(variance > tiny, left / np.maximum(variance, tiny), 0.0), *errors)


def _columns_by_unit(rows: np.ndarray) -> list[tuple[np.ndarray, torch.Tensor]]:
    """`(units (n,), columns (n, m))` for every number m of columns that a unit has at this place."""
    order = np.argsort(rows, kind="stable")
    order = order[rows[order] >= 0]
    units, starts, counts = np.unique(rows[order], return_index=True, return_counts=True)
    found = []
    for m in np.unique(counts):
        chosen = counts == m
        columns = order[starts[chosen][:, None] + np.arange(m)]
        found.append((units[chosen], torch.from_numpy(columns)))
    return found


def _blocks(matrix: Tensor, columns: Tensor) -> Tensor:
    """`(n, m, m)` blocks of each unit's own columns."""
    return matrix[columns[:, :, None], columns[:, None, :]]


def _energy(matrix: Tensor, weights: Tensor) -> Tensor:
    """`(n,)` trace(W^T M W) for `(n, m, m)` and `(n, m, n_outputs)`: expected squared length of what M makes of W."""
    return ((matrix @ weights) * weights).sum((1, 2))
