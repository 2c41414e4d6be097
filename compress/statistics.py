"""What criteria and features are made of: one pass over the calibration data per kind of statistic."""

from collections.abc import Collection, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Any

import numpy as np
import torch
from torch import Tensor, fx

from compress.errors import DataError
from compress.gates import gated_module
from compress.graph import ATEN
from compress.structure import Structure
from compress.task import Batch, Task
from compress.units import UnitTable

KINDS = ("weights", "activations", "gradients")


@dataclass(frozen=True, eq=False)
class ActivationStatistics:
    """Moments of each unit where it is consumed, over examples and positions (space, time), each `(n_units,)` float64.

    Attributes:
        mean, mean_abs, mean_square: moments of the values.
        zero_fraction: fraction of values that are exactly zero (APoZ, Hu et al. 2016).
        pooled: `(n_examples, n_units)` float32, mean over positions for each example.
        positions: values per example, 1 for a linear layer's neuron.
    """

    mean: np.ndarray
    mean_abs: np.ndarray
    mean_square: np.ndarray
    zero_fraction: np.ndarray
    pooled: np.ndarray
    positions: np.ndarray


@dataclass(frozen=True, eq=False)
class Statistics:
    """Statistics of the removable units of one model.

    Attributes:
        structure: the model.
        activations: moments where units are consumed, None if not collected.
        gate_gradients: `(n_examples, n_units)` float32: derivative of each example's loss by the unit's gate, which is
            the sum of activation x gradient over its positions and consumers. None if not collected.
        forward_macs: MACs spent on collecting (a backward pass counts as two forward passes).
    """

    structure: Structure
    activations: ActivationStatistics | None = None
    gate_gradients: np.ndarray | None = None
    forward_macs: float = 0.0

    @property
    def units(self) -> UnitTable:
        """All units of the model; the first `n_units` are the removable ones that statistics speak of."""
        return self.structure.units

    @property
    def n_units(self) -> int:
        """Number of removable units."""
        return self.structure.n_removable

    @cached_property
    def group_rows(self) -> dict[str, np.ndarray]:
        """Group name -> rows of its units."""
        groups = self.units.group[: self.n_units]
        return {name: np.flatnonzero(groups == name) for name in self.units.groups}

    @cached_property
    def producers(self) -> dict[str, np.ndarray]:
        """Group name -> `(n_group_units, n_values)` float64: weights that make each unit, flattened."""
        places = [(producer.parameter, producer.dim) for producer in self.structure.producers]
        return self._vectors(list(dict.fromkeys(places)))

    @cached_property
    def consumers(self) -> dict[str, np.ndarray]:
        """Group name -> `(n_group_units, n_values)` float64: weights of the layers that read each unit, flattened."""
        made = {(producer.parameter, producer.dim) for producer in self.structure.producers}
        layers = {layer.weight: layer for layer in self.structure.traced.layers()}
        places = []
        for name, layer in layers.items():
            dim = {"conv": 1, "linear": 1, "conv_transpose": 0, "embedding": 1}[layer.kind]
            if (name, dim) not in made:
                places.append((name, dim))
        return self._vectors(places)

    @cached_property
    def bn_scale(self) -> np.ndarray:
        """`(n_units,)` mean |gamma| of the batch norms on each unit; NaN where there is none."""
        total, count = np.zeros(self.n_units), np.zeros(self.n_units)
        seen = set()
        for node in self.structure.traced.graph.nodes:
            scale = node.args[1] if node.op == "call_function" and node.target is ATEN.batch_norm.default else None
            if not isinstance(scale, fx.Node) or scale.target in seen:
                continue
            seen.add(scale.target)
            rows = self.structure.parameters[scale.target][0]
            gamma = self._parameter(scale.target).abs().numpy()
            np.add.at(total, rows[rows >= 0], gamma[rows >= 0])
            np.add.at(count, rows[rows >= 0], 1)
        return np.where(count > 0, total / np.maximum(count, 1), np.nan)

    def _parameter(self, name: str) -> Tensor:
        owner, _, leaf = name.rpartition(".")
        return getattr(self.structure.traced.module.get_submodule(owner), leaf).detach().double().cpu()

    def _vectors(self, places: Sequence[tuple[str, int]]) -> dict[str, np.ndarray]:
        parts: dict[str, list[np.ndarray]] = {name: [] for name in self.group_rows}
        groups = self.units.group
        for parameter, dim in places:
            rows = self.structure.parameters[parameter][dim]
            weight = self._parameter(parameter).movedim(dim, 0).flatten(1).numpy()
            for name in dict.fromkeys(groups[rows[rows >= 0]].tolist()):
                members = self.group_rows[name]
                parts[name].append(_stack(weight, rows, members))
        return {name: np.concatenate(found, axis=1) if found else np.zeros((len(self.group_rows[name]), 0))
                for name, found in parts.items()}  # fmt: skip


def _stack(weight: np.ndarray, rows: np.ndarray, members: np.ndarray) -> np.ndarray:
    """`(len(members), n)`: the slices of each member side by side, zeros where a member has fewer."""
    order = np.argsort(rows, kind="stable")
    starts = np.searchsorted(rows[order], members, side="left")
    stops = np.searchsorted(rows[order], members, side="right")
    most = int((stops - starts).max())
    out = np.zeros((len(members), most, weight.shape[1]))
    for i, (start, stop) in enumerate(zip(starts, stops, strict=True)):
        out[i, : stop - start] = weight[order[start:stop]]
    return out.reshape(len(members), -1)


def collect_statistics(
    structure: Structure, task: Task, batches: Sequence[Batch], needs: Collection[str] = KINDS
) -> Statistics:
    """Statistics of every removable unit, in evaluation mode; model, gradients and RNG stay as they are.

    Args:
        structure: the analysed model.
        task: reads batches and gives the per-example loss.
        batches: calibration batches.
        needs: kinds of statistics to collect; one pass over `batches` for activations, one for gradients.

    Raises:
        DataError: for an empty or wrongly shaped calibration set, or a loss that is not finite.
    """
    batches = list(batches)
    if not batches and set(needs) - {"weights"}:
        raise DataError(
            "The 'batches' parameter of collect_statistics must hold at least one calibration batch. Got none."
        )
    check_batches(structure, task, batches)
    from compress.counting import count_macs

    n_examples = sum(task.inputs(batch)[0].shape[0] for batch in batches)
    macs = count_macs(structure) * n_examples
    activations = _activations(structure, task, batches) if "activations" in needs else None
    gradients = _gate_gradients(structure, task, batches) if "gradients" in needs else None
    spent = macs * (("activations" in needs) + 3 * ("gradients" in needs))
    return Statistics(structure, activations, gradients, spent)


def check_batches(structure: Structure, task: Task, batches: Sequence[Batch]) -> None:
    """Raises DataError if a batch is empty, not finite, or does not fit the model's inputs."""
    placeholders = [n for n in structure.traced.graph.nodes if n.op == "placeholder"]
    for number, batch in enumerate(batches):
        inputs = [x for x in task.inputs(batch) if isinstance(x, Tensor)]
        for x, node in zip(inputs, placeholders, strict=False):
            expected = structure.traced.shapes[node.name]
            if x.shape[0] == 0:
                raise DataError(f"Batch {number} is empty. Every batch must hold at least one example.")
            fixed = expected[1:] if x.is_floating_point() else expected[2:]
            if x.dim() != len(expected) or tuple(x.shape[x.dim() - len(fixed) :]) != tuple(fixed):
                raise DataError(f"Batch {number} has shape {tuple(x.shape)}, but the model was traced with {expected}.")
            if x.is_floating_point() and not torch.isfinite(x).all():
                raise DataError(f"Batch {number} holds NaN or infinite values. Clean the calibration data.")


class _SiteReader(fx.Interpreter):
    """Runs the graph and adds up moments of the values that units are consumed from."""

    def __init__(self, structure: Structure, totals: dict[str, np.ndarray]) -> None:
        super().__init__(structure.traced.module)
        self._n_units = structure.n_removable
        self._totals = totals
        self._sites: dict[str, list[Any]] = {}
        seen = set()
        for site in structure.sites:
            source = site.node.args[site.argument]
            key = (source.name, site.dim)
            if key not in seen:
                seen.add(key)
                self._sites.setdefault(source.name, []).append(site)
        self.pooled: Tensor | None = None

    def run_node(self, node: fx.Node) -> Any:
        value = super().run_node(node)
        for site in self._sites.get(node.name, ()):
            self._read(site, value.detach())
        return value

    def _read(self, site: Any, value: Tensor) -> None:
        used = np.flatnonzero(site.rows >= 0)
        rows = site.rows[used]
        x = value.movedim(site.dim, -1)[..., torch.from_numpy(used)]
        flat = x.reshape(-1, len(used)).double()
        sums = {
            "sum": flat.sum(0),
            "abs": flat.abs().sum(0),
            "square": flat.square().sum(0),
            "zero": (flat == 0).sum(0),
        }
        for name, total in sums.items():
            np.add.at(self._totals[name], rows, total.cpu().numpy())
        np.add.at(self._totals["count"], rows, float(flat.shape[0]))
        if site.batch is not None and self.pooled is not None:
            dim = site.batch.dim if site.batch.dim < site.dim else site.batch.dim - 1
            per = x.movedim(dim, 0).reshape(site.batch.outer, -1, site.batch.inner, *_rest(x, dim)).movedim(1, 0)
            means = per.reshape(per.shape[0], -1, len(used)).float().mean(1)
            self.pooled.index_add_(1, torch.from_numpy(rows).to(value.device), means)


def _rest(x: Tensor, dim: int) -> list[int]:
    return [size for d, size in enumerate(x.shape) if d != dim]


def _activations(structure: Structure, task: Task, batches: Sequence[Batch]) -> ActivationStatistics:
    n = structure.n_removable
    totals = {name: np.zeros(n) for name in ("sum", "abs", "square", "zero", "count")}
    module = structure.traced.module
    was_training = module.training
    module.eval()
    pooled, n_examples = [], 0
    try:
        with torch.no_grad():
            for batch in batches:
                inputs = task.inputs(batch)
                reader = _SiteReader(structure, totals)
                reader.pooled = torch.zeros(inputs[0].shape[0], n, device=inputs[0].device)
                reader.run(*inputs)
                pooled.append(reader.pooled.cpu().numpy())
                n_examples += inputs[0].shape[0]
    finally:
        module.train(was_training)
    count = np.maximum(totals["count"], 1)
    return ActivationStatistics(
        mean=totals["sum"] / count, mean_abs=totals["abs"] / count, mean_square=totals["square"] / count,
        zero_fraction=totals["zero"] / count, pooled=np.concatenate(pooled), positions=totals["count"] / n_examples,
    )  # fmt: skip


def _gate_gradients(structure: Structure, task: Task, batches: Sequence[Batch]) -> np.ndarray:
    module = gated_module(structure)
    module.eval()
    known = all(site.batch is not None for site in structure.sites)
    out = []
    for batch in batches:
        inputs = task.inputs(batch)
        n_examples = inputs[0].shape[0]
        dtype = next((p.dtype for p in module.parameters()), torch.float32)
        device = inputs[0].device
        gates = torch.ones(
            n_examples if known else 1, structure.n_removable, dtype=dtype, device=device, requires_grad=True
        )
        module.gates = gates
        with torch.enable_grad():
            losses = task.loss(module(*inputs), batch)
            if not torch.isfinite(losses).all():
                raise DataError(
                    "The task's loss is not finite on the calibration data. Check model, labels and inputs."
                )
            if known:
                (gradient,) = torch.autograd.grad(losses.sum(), gates)
            else:
                rows = [torch.autograd.grad(loss, gates, retain_graph=True)[0] for loss in losses]
                gradient = torch.cat(rows)
        out.append(gradient.detach().float().cpu().numpy())
    return np.concatenate(out)
