"""Backward elimination: which channel the others replace best, then which of those that are left, and so on."""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from compress.layer_moments import weight_readers
from compress.statistics import Statistics

_FLOOR = 1e-6


@dataclass(frozen=True, eq=False)
class Reading:
    """What one layer reads at one place.

    Attributes:
        rows: `(n_columns,)` unit row of each column, -1 for none.
        covariance: `(n_columns, n_columns)` float64; or second moments, for errors measured from zero.
        weight: `(n_columns, n_outputs)` float64.
        mean: `(n_columns,)` float64.
        call: name of the layer's node.
        n_outputs: output channels; a conv's weight has several columns for each of them, one after another.
    """

    rows: np.ndarray
    covariance: np.ndarray
    weight: np.ndarray
    mean: np.ndarray
    call: str = ""
    n_outputs: int = 0


def readings(statistics: Statistics) -> list[Reading]:
    """Every conv and linear layer with the moments of what it reads. A conv counts every kernel offset by itself.

    Raises:
        CompressError: if moments were not collected.
    """
    layers = {layer.node.name: layer for layer in statistics.structure.traced.layers()}
    found = []
    for place in statistics.need_moments():
        for node in place.consumers:
            layer = layers.get(node.name)
            if layer is None or layer.kind == "embedding" or not len(place.rows):
                continue
            weight = statistics.weights_by_input(layer, len(place.rows))
            if weight is not None:
                n_outputs = weight.shape[1]
                weight = weight.reshape(len(weight), -1)
                found.append(Reading(place.rows, place.covariance, weight, place.mean, node.name, n_outputs))
    return found


def joint_readings(statistics: Statistics) -> list[Reading]:
    """Every conv and linear layer with the second moments of all that it multiplies: kernel offsets are columns too.

    Layers without a moment (see `Statistics.layer_moments`) are left out.

    Raises:
        CompressError: if moments of layers were not collected.
    """
    moments = statistics.need_layer_moments()
    readers = {reader.node: reader for reader in weight_readers(statistics.structure.traced.module)}
    found = []
    for site in statistics.structure.sites:
        reader = readers.get(site.node)
        if reader is None or site.argument != 0 or reader.parameter not in moments:
            continue
        rows = np.repeat(site.rows, int(np.prod(reader.map.kernel)))
        weight = reader.map.matrix(statistics.parameter(reader.parameter))[0].numpy()
        found.append(Reading(rows, moments[reader.parameter], weight, np.zeros(len(rows)), reader.node.name))
    return found


def elimination_damage(statistics: Statistics, places: Sequence[Reading], ridge: float) -> np.ndarray:
    """`(n_units,)` float64 what each removal adds in the order of `eliminate`, brought to nats group by group.

    Args:
        statistics: with gradients, for the level: the geometric mean of a group's Fisher damages over that of the
            errors of silencing its units.
        places, ridge: see `eliminate`.
    """
    fisher = 0.5 * (statistics.need_gradients() ** 2).mean(axis=0)
    scores = np.zeros(statistics.n_units)
    for units in statistics.group_rows.values():
        order, increases = eliminate(places, units, ridge)
        level = _mean_log(fisher[units]) - _mean_log(silencing_errors(places, units))
        scores[order] = np.maximum.accumulate(increases) * np.exp(level)
    return scores


def _mean_log(values: np.ndarray) -> float:
    """Mean logarithm, dead units counted as a millionth of the largest; that of 1 where all are dead."""
    largest = float(values.max(initial=0.0))
    return float(np.log(np.maximum(values, _FLOOR * largest)).mean()) if largest > 0 else 0.0


def eliminate(places: Sequence[Reading], units: np.ndarray, ridge: float = 1e-3) -> tuple[np.ndarray, np.ndarray]:
    """The order in which units are best removed, and what each removal adds to the error, if weights are refitted.

    At each step the unit goes whose removal increases the least-squares error least, and the weights of all that stay
    take over what they can of it (Optimal Brain Surgeon, Hassibi and Stork 1992, for whole channels; the objective is
    that of ThiNet, Luo, Wu and Lin 2017). Errors are parts of the variance of each layer's outputs, summed over layers.

    Args:
        places: what the layers read.
        units: `(n,)` unit rows to be ordered, of one group.
        ridge: added to the diagonal of the covariance, as a part of its mean.

    Returns:
        `(order, increases)`, each `(n,)`: unit rows, least important first, and float64 increases >= 0.
    """
    surgeons = [_Surgeon(place, units, ridge) for place in places if np.isin(place.rows, units).any()]
    left = np.ones(len(units), dtype=bool)
    order, increases = [], []
    for _ in range(len(units)):
        cost = sum((surgeon.costs() for surgeon in surgeons), np.zeros(len(units)))
        chosen = int(np.where(left, cost, np.inf).argmin())
        left[chosen] = False
        order.append(units[chosen])
        increases.append(max(float(cost[chosen]), 0.0))
        for surgeon in surgeons:
            surgeon.remove(chosen)
    return np.array(order, dtype=np.int64), np.array(increases)


def silencing_errors(places: Sequence[Reading], units: np.ndarray) -> np.ndarray:
    """`(n,)` increase of the same error when each unit alone is replaced by its mean and nothing is refitted."""
    total = np.zeros(len(units))
    for place in places:
        energy = _energy(place)
        for i, unit in enumerate(units):
            columns = np.flatnonzero(place.rows == unit)
            weight = place.weight[columns]
            total[i] += float(((place.covariance[np.ix_(columns, columns)] @ weight) * weight).sum()) / energy
    return total


def _energy(place: Reading) -> float:
    return max(float(((place.covariance @ place.weight) * place.weight).sum()), 1e-300)


class _Surgeon:
    """The inverse covariance and the refitted weights of one reading layer, kept up to date."""

    def __init__(self, place: Reading, units: np.ndarray, ridge: float) -> None:
        covariance = torch.from_numpy(place.covariance)
        n = len(covariance)
        strength = max(ridge * float(covariance.diagonal().mean()), 1e-12)
        self.inverse = torch.linalg.inv(covariance + strength * torch.eye(n, dtype=torch.float64))
        self.weight = torch.from_numpy(place.weight / _energy(place) ** 0.5)
        self.columns = [torch.from_numpy(np.flatnonzero(place.rows == unit)) for unit in units]
        self.single = all(len(columns) == 1 for columns in self.columns)
        self.gone = np.zeros(len(units), dtype=bool)
        # Of units with one row each: the row of every unit.
        self._alone = torch.cat(self.columns)
        self._idle = 0

    def costs(self) -> np.ndarray:
        """`(n_units,)` increase of the error for each unit that is left."""
        cost = np.zeros(len(self.columns))
        left = np.flatnonzero(~self.gone)
        if self.single:
            columns = self._alone[left]
            diagonal = self.inverse.diagonal()[columns].clamp_min(1e-300)
            cost[left] = (self.weight[columns].square().sum(1) / diagonal).numpy()
            return cost
        for unit in left:
            columns = self.columns[unit]
            if len(columns):
                weight = self.weight[columns]
                cost[unit] = float((weight * self._solve(columns, weight)).sum())
        return cost

    def remove(self, unit: int) -> None:
        self.gone[unit] = True
        columns = self.columns[unit]
        if not len(columns):
            return
        share = self._solve(columns, self.inverse[columns]).T
        self.weight.addmm_(share, self.weight[columns], alpha=-1)
        self.inverse.addmm_(share, self.inverse[columns], alpha=-1)
        self._idle += len(columns)
        if self._idle * 8 > len(self.inverse):
            self._shrink()

    def _shrink(self) -> None:
        """Drop the rows of removed units, which are zero: wide layers are as much work as what is left of them."""
        stays = torch.ones(len(self.inverse), dtype=torch.bool)
        for unit in np.flatnonzero(self.gone):
            stays[self.columns[unit]] = False
        place = stays.cumsum(0) - 1
        self.inverse, self.weight = self.inverse[stays][:, stays].contiguous(), self.weight[stays]
        nothing = torch.zeros(0, dtype=torch.int64)
        self.columns = [nothing if gone else place[own] for own, gone in zip(self.columns, self.gone, strict=True)]
        self._alone = place[self._alone]
        self._idle = 0

    def _solve(self, columns: Tensor, right: Tensor) -> Tensor:
        return torch.linalg.solve(self.inverse[columns][:, columns], right)
