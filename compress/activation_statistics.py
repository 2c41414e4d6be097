"""Moments of the values that units are consumed from, added up in one pass over the calibration data."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import Tensor, fx

from compress.dimensions import BatchLayout
from compress.second_moments import MomentSums, SecondMoments
from compress.structure import Site, Structure
from compress.task import Batch, Task

_SUMS = ("sum", "abs", "square", "zero", "count")


@dataclass(frozen=True, eq=False)
class ActivationStatistics:
    """Moments of each unit where it is consumed, over examples and positions (space, time), each `(n_units,)` float64.

    A unit that lies at several indices (a head, a flattened channel) or is consumed at several places is averaged
    over all of them.

    Attributes:
        mean, mean_abs, mean_square: moments of the values.
        maximum: largest magnitude of a value.
        zero_fraction: fraction of values that are exactly zero (APoZ, Hu et al. 2016).
        pooled: `(n_examples, n_units)` float32, mean over positions for each example.
        positions: values per example at one place, 1 for a linear layer's neuron.
    """

    mean: np.ndarray
    mean_abs: np.ndarray
    mean_square: np.ndarray
    maximum: np.ndarray
    zero_fraction: np.ndarray
    pooled: np.ndarray
    positions: np.ndarray


def collect_activations(
    structure: Structure, task: Task, batches: Sequence[Batch], moments: bool = False
) -> tuple[ActivationStatistics, tuple[SecondMoments, ...]]:
    """Activation statistics and, if `moments`, the second moments between the units of every consuming place.

    One forward pass in evaluation mode; sums over the positions of one example are float32, all others float64.
    """
    reader = _SiteReader(structure, len(batches) if moments else None)
    module = structure.traced.module
    was_training = module.training
    module.eval()
    try:
        with torch.no_grad():
            for batch in batches:
                inputs = task.inputs(batch)
                reader.begin(inputs[0])
                reader.run(*inputs)
    finally:
        module.train(was_training)
    return reader.statistics(), tuple(sums.moments() for sums in reader.moment_sums.values())


class _SiteReader(fx.Interpreter):
    """Runs the graph and adds up what every consuming call reads, before it may be overwritten in place."""

    def __init__(self, structure: Structure, moment_batches: int | None) -> None:
        super().__init__(structure.traced.module)
        n = structure.n_removable
        self._totals = {name: np.zeros(n) for name in _SUMS}
        self._maximum = np.zeros(n)
        self._places = np.zeros(n)
        self._pooled: list[Tensor] = []
        self._pooled_weight = np.zeros(n)
        self._n_examples = 0
        self._sites: dict[str, list[Site]] = {}
        self.moment_sums: dict[tuple[str, int], MomentSums] = {}
        seen: set[tuple[str, int]] = set()
        for site in structure.sites:
            key = (site.node.args[site.argument].name, site.dim)
            if moment_batches is not None:
                sums = self.moment_sums.setdefault(key, MomentSums(site, moment_batches))
                sums.consumers.append(site.node)
            if key in seen:
                continue
            seen.add(key)
            self._sites.setdefault(site.node.name, []).append(site)
            rows = site.rows[site.rows >= 0]
            self._places[rows] += 1
            if site.batch is not None:
                np.add.at(self._pooled_weight, rows, 1)

    def begin(self, inputs: Tensor) -> None:
        """Make room for the examples of the next batch."""
        n = len(self._maximum)
        self._pooled.append(torch.zeros(inputs.shape[0], n, device=inputs.device))
        self._n_examples += inputs.shape[0]

    def run_node(self, node: fx.Node) -> Any:
        for site in self._sites.get(node.name, ()):
            value = self.env[site.node.args[site.argument]]
            self._read(site, value)
            sums = self.moment_sums.get((site.node.args[site.argument].name, site.dim))
            if sums is not None:
                sums.add(value)
        return super().run_node(node)

    def _read(self, site: Site, x: Tensor) -> None:
        dim = site.dim % x.dim()
        magnitude = x.abs()
        sums = {"sum": reduce_positions(x, dim, site.batch), "abs": reduce_positions(magnitude, dim, site.batch),
                "square": reduce_positions(x.square(), dim, site.batch)}  # fmt: skip
        maximum = magnitude.amax([d for d in range(x.dim()) if d != dim])
        nonzero = reduce_positions(magnitude.sign(), dim, site.batch)
        n_values = x.numel() // x.shape[dim]
        used = np.flatnonzero(site.rows >= 0)
        rows = site.rows[used]
        for name, values in sums.items():
            self._add(name, rows, values.double().sum(0).cpu().numpy()[used])
        self._add("zero", rows, n_values - nonzero.double().sum(0).cpu().numpy()[used])
        self._add("count", rows, np.full(len(rows), float(n_values)))
        np.maximum.at(self._maximum, rows, maximum.cpu().numpy()[used])
        if site.batch is not None:
            pooled = self._pooled[-1]
            means = sums["sum"] * (pooled.shape[0] / n_values)
            index = torch.from_numpy(rows).to(x.device)
            pooled.index_add_(1, index, means[:, torch.from_numpy(used).to(x.device)].to(pooled.dtype))

    def _add(self, name: str, rows: np.ndarray, values: np.ndarray) -> None:
        self._totals[name] += np.bincount(rows, weights=values, minlength=len(self._maximum))

    def statistics(self) -> ActivationStatistics:
        """What was added up."""
        count = np.maximum(self._totals["count"], 1)
        pooled = torch.cat(self._pooled).cpu().numpy() / np.maximum(self._pooled_weight, 1)
        return ActivationStatistics(
            mean=self._totals["sum"] / count, mean_abs=self._totals["abs"] / count,
            mean_square=self._totals["square"] / count, maximum=self._maximum,
            zero_fraction=self._totals["zero"] / count, pooled=pooled.astype(np.float32),
            positions=self._totals["count"] / np.maximum(self._places, 1) / max(self._n_examples, 1),
        )  # fmt: skip


def reduce_positions(x: Tensor, dim: int, batch: BatchLayout | None) -> Tensor:
    """`(n_examples, size)` sums of `x` over everything but examples and dimension `dim`; one row if `batch` is None."""
    others = [d for d in range(x.dim()) if d != dim and (batch is None or d != batch.dim)]
    sums = x.sum(others) if others else x
    if batch is None:
        return sums[None]
    if batch.dim > dim:
        sums = sums.t()
    if batch.outer == 1 and batch.inner == 1:
        return sums
    return sums.reshape(batch.outer, -1, batch.inner, sums.shape[-1]).sum((0, 2))
