"""What criteria and features are made of: one pass over the calibration data per kind of statistic."""

from collections.abc import Collection, Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Any

import numpy as np
import torch
from torch import Tensor, fx

from compress.activation_statistics import ActivationStatistics, collect_activations
from compress.attributes import value_of
from compress.counting import count_macs
from compress.errors import CompressError, DataError
from compress.gate_gradients import collect_gate_gradients
from compress.graph import ATEN, Layer, argument, flat_inputs
from compress.layer_moments import visit_readers, weight_readers
from compress.second_moments import Redundancy, SecondMoments, measure_redundancy
from compress.structure import Structure
from compress.task import Batch, Task
from compress.units import UnitTable

# What is collected unless more is asked for, and the kind that takes longer than all the others.
USUAL_KINDS = ("weights", "activations", "gradients", "moments")
KINDS = (*USUAL_KINDS, "layer_moments")
# Beyond this many inputs (channels times kernel offsets) the second moment of a layer is not worth its memory.
_MOST_INPUTS = 6144
_MOST_ROWS = 50_000
_INPUT_DIM = {"conv": 1, "linear": 1, "conv_transpose": 0, "embedding": 1}


@dataclass(frozen=True, eq=False)
class Statistics:
    """Statistics of the removable units of one model.

    Attributes:
        structure: the model.
        activations: moments where units are consumed, None if not collected.
        gate_gradients: `(n_examples, n_units)` float32: derivative of each example's loss by the unit's gate, which is
            the sum of activation x gradient over its positions and consumers. None if not collected.
        moments: covariances between the channels read at every place, None if not collected.
        forward_macs: MACs spent on collecting (a backward pass over activations counts as one forward pass, products
            for covariances with their own number).
        layer_moments: name of a weight -> `(n_inputs, n_inputs)` float64 E[x x^T] of what it is multiplied with, where
            `n_inputs` counts channels times kernel offsets; of convs without groups and linear layers that have at most
            6144. None if not collected.
    """

    structure: Structure
    activations: ActivationStatistics | None = None
    gate_gradients: np.ndarray | None = None
    moments: tuple[SecondMoments, ...] | None = None
    forward_macs: float = 0.0
    layer_moments: Mapping[str, np.ndarray] | None = None

    @property
    def units(self) -> UnitTable:
        """All units of the model; the first `n_units` are the removable ones that statistics speak of."""
        return self.structure.units

    @property
    def n_units(self) -> int:
        """Number of removable units."""
        return self.structure.n_removable

    def need_activations(self) -> ActivationStatistics:
        """The activation statistics. Raises CompressError if they were not collected."""
        if self.activations is None:
            raise _missing("activations")
        return self.activations

    def need_gradients(self) -> np.ndarray:
        """`(n_examples, n_units)` float64 gate gradients. Raises CompressError if they were not collected."""
        if self.gate_gradients is None:
            raise _missing("gradients")
        return self.gate_gradients.astype(np.float64)

    def need_moments(self) -> tuple[SecondMoments, ...]:
        """The covariances of every place. Raises CompressError if they were not collected."""
        if self.moments is None:
            raise _missing("moments")
        return self.moments

    def need_layer_moments(self) -> Mapping[str, np.ndarray]:
        """The moments of layers. Raises CompressError if they were not collected."""
        if self.layer_moments is None:
            raise _missing("layer_moments")
        return self.layer_moments

    @cached_property
    def group_rows(self) -> dict[str, np.ndarray]:
        """Group name -> rows of its units."""
        groups = self.units.group[: self.n_units]
        order = np.argsort(groups, kind="stable")
        names, starts = np.unique(groups[order], return_index=True)
        parts = dict(zip(names.tolist(), np.split(order, starts)[1:], strict=True))
        return {name: parts[name] for name in self.units.groups}

    @cached_property
    def producer_places(self) -> tuple[tuple[str, int], ...]:
        """(weight, dimension) whose indices are made by a layer, in execution order."""
        return tuple(dict.fromkeys((producer.parameter, producer.dim) for producer in self.structure.producers))

    @cached_property
    def consumer_places(self) -> tuple[tuple[str, int], ...]:
        """(weight, dimension) whose indices are read by a layer."""
        layers = {layer.weight: layer for layer in self.structure.traced.layers()}
        places = [(name, _INPUT_DIM[layer.kind]) for name, layer in layers.items()]
        return tuple(place for place in places if place not in self.producer_places)

    def slices(self, places: Sequence[tuple[str, int]]) -> Iterator[tuple[np.ndarray, np.ndarray]]:
        """`(rows (n,), values (n, m))` of each place: the weights of every index that belongs to a removable unit."""
        for parameter, dim in places:
            rows = self.structure.parameters[parameter][dim]
            used = np.flatnonzero((rows >= 0) & (rows < self.n_units))
            if len(used):
                yield rows[used], self.parameter(parameter).movedim(dim, 0).flatten(1).numpy()[used]

    def total(self, rows: np.ndarray, values: np.ndarray) -> np.ndarray:
        """`(n_units,)` sums of the values of each row."""
        return np.bincount(rows, weights=values, minlength=self.n_units)

    @cached_property
    def producers(self) -> dict[str, np.ndarray]:
        """Group name -> `(n_group_units, n_values)` float64: weights that make each unit, flattened."""
        return self._vectors(self.producer_places)

    @cached_property
    def consumers(self) -> dict[str, np.ndarray]:
        """Group name -> `(n_group_units, n_values)` float64: weights of the layers that read each unit, flattened."""
        return self._vectors(self.consumer_places)

    @cached_property
    def bn_scale(self) -> np.ndarray:
        """`(n_units,)` mean |gamma| of the batch norms on each unit; NaN where there is none."""
        return self._batch_norms(1)

    @cached_property
    def bn_shift(self) -> np.ndarray:
        """`(n_units,)` mean beta of the batch norms on each unit; NaN where there is none."""
        return self._batch_norms(2)

    def _batch_norms(self, position: int) -> np.ndarray:
        total, count = np.zeros(self.n_units), np.zeros(self.n_units)
        seen = set()
        for node in self.structure.traced.graph.nodes:
            found = (
                node.args[position] if node.op == "call_function" and node.target is ATEN.batch_norm.default else None
            )
            if not isinstance(found, fx.Node) or found.target in seen:
                continue
            seen.add(found.target)
            rows = self.structure.parameters[found.target][0]
            values = self.parameter(found.target).numpy()
            total += self.total(rows[rows >= 0], (np.abs(values) if position == 1 else values)[rows >= 0])
            count += self.total(rows[rows >= 0], np.ones((rows >= 0).sum()))
        return np.where(count > 0, total / np.maximum(count, 1), np.nan)

    @cached_property
    def redundancy(self) -> Redundancy:
        """How well other channels replace each unit. Raises CompressError if moments were not collected."""
        moments = self.need_moments()
        layers = {layer.node.name: layer for layer in self.structure.traced.layers()}
        weights = []
        for place in moments:
            readers = [layers[node.name] for node in place.consumers if node.name in layers]
            found = [self.weights_by_input(layer, len(place.rows)) for layer in readers]
            weights.append([weight.reshape(len(weight), -1) for weight in found if weight is not None])
        return measure_redundancy(moments, weights, self.n_units)

    def weights_by_input(self, layer: Layer, n_inputs: int) -> np.ndarray | None:
        """`(n_inputs, n_outputs, n_offsets)` weights of a layer, None for a grouped convolution.

        A grouped one does not mix all channels: it has fewer input columns, or says so (transposed).
        """
        weight = self.parameter(layer.weight).movedim(_INPUT_DIM[layer.kind], 0)
        grouped = layer.kind == "conv_transpose" and argument(layer.node, 6, "groups", 1) != 1
        return None if grouped or len(weight) != n_inputs else weight.reshape(*weight.shape[:2], -1).numpy()

    def parameter(self, name: str) -> Tensor:
        """A parameter or buffer of the model in float64, detached."""
        owner, _, leaf = name.rpartition(".")
        return getattr(self.structure.traced.module.get_submodule(owner), leaf).detach().double().cpu()

    def _vectors(self, places: Sequence[tuple[str, int]]) -> dict[str, np.ndarray]:
        parts: dict[str, list[np.ndarray]] = {name: [] for name in self.group_rows}
        for rows, values in self.slices(places):
            for name in dict.fromkeys(self.units.group[rows].tolist()):
                parts[name].append(_stack(values, rows, self.group_rows[name]))
        return {name: np.concatenate(found, axis=1) if found else np.zeros((len(self.group_rows[name]), 0))
                for name, found in parts.items()}  # fmt: skip


def _stack(values: np.ndarray, rows: np.ndarray, members: np.ndarray) -> np.ndarray:
    """`(len(members), n)`: the slices of each member side by side, zeros where a member has fewer."""
    order = np.argsort(rows, kind="stable")
    starts = np.searchsorted(rows[order], members, side="left")
    counts = np.searchsorted(rows[order], members, side="right") - starts
    out = np.zeros((len(members), int(counts.max()), values.shape[1]))
    for place in range(out.shape[1]):
        have = np.flatnonzero(counts > place)
        out[have, place] = values[order[starts[have] + place]]
    return out.reshape(len(members), -1)


def _missing(kind: str) -> CompressError:
    return CompressError(f"These statistics lack {kind!r}. Call collect_statistics with {kind!r} among its 'needs'.")


def collect_statistics(
    structure: Structure, task: Task, batches: Sequence[Batch], needs: Collection[str] = USUAL_KINDS
) -> Statistics:
    """Statistics of every removable unit, in evaluation mode; model, gradients and RNG stay as they are.

    Args:
        structure: the analysed model.
        task: reads batches and gives the per-example loss.
        batches: calibration batches.
        needs: kinds of statistics to collect: a forward pass over `batches` for activations (and moments), a forward
            and a backward pass for gradients, a forward pass for moments of layers, none for weights.

    Raises:
        DataError: for an empty or wrongly shaped calibration set, a loss that is not finite, or parameters in half
            precision.
    """
    unknown = sorted(set(needs) - set(KINDS))
    if unknown:
        raise CompressError(f"The 'needs' parameter of collect_statistics must be among {KINDS}. Got {unknown[0]!r}.")
    batches = list(batches)
    if not batches and set(needs) - {"weights"}:
        raise DataError(
            "The 'batches' parameter of collect_statistics must hold at least one calibration batch. Got none."
        )
    for name, value in structure.traced.module.named_parameters():
        if value.dtype in (torch.bfloat16, torch.float16):
            kind = str(value.dtype).removeprefix("torch.")
            raise DataError(
                f"Parameter {name!r} is of {kind}. Labels, repair and bytes are those of float32. Pass model.float()."
            )
    check_batches(structure, task, batches)
    activations, moments, gradients, passes = None, None, None, 0
    if {"activations", "moments"} & set(needs):
        activations, found = collect_activations(structure, task, batches, "moments" in needs)
        moments = found if "moments" in needs else None
        passes += 1
    if "gradients" in needs:
        gradients = collect_gate_gradients(structure, task, batches)
        passes += 2
    n_examples = sum(task.inputs(batch)[0].shape[0] for batch in batches)
    layers, products = None, 0.0
    if "layer_moments" in needs:
        layers, products = _layer_moments(structure, [tuple(task.inputs(batch)) for batch in batches], n_examples)
        passes += 1
    macs = passes * n_examples * count_macs(structure) if passes else 0.0
    macs += float(sum(place.count * len(place.rows) ** 2 for place in moments or ()))
    return Statistics(structure, activations, gradients, moments, macs + products, layers)


def _layer_moments(
    structure: Structure, batches: Sequence[tuple[Any, ...]], n_examples: int
) -> tuple[dict[str, np.ndarray], float]:
    """`(layer_moments, MACs of their products)`."""
    module, found, macs = structure.traced.module, {}, 0.0
    weights = {reader: reader.rows(value_of(module, reader.parameter)) for reader in weight_readers(module)}
    readers = [reader for reader, rows in weights.items() if reader.map.groups == 1 and rows.shape[2] <= _MOST_INPUTS]
    for reader, moment in visit_readers(module, batches, readers, max_rows=_MOST_ROWS):
        found[reader.parameter] = moment[0].cpu().numpy()
        positions = reader.map.positions(torch.Size(structure.traced.shapes[reader.node.name]))
        macs += float(min(n_examples * positions, _MOST_ROWS)) * moment.shape[1] ** 2
    return found, macs


def check_batches(structure: Structure, task: Task, batches: Sequence[Batch]) -> None:
    """Raises DataError if a batch is empty, not finite, or does not fit the model's inputs."""
    traced = structure.traced
    placeholders = [n for n in traced.graph.nodes if n.op == "placeholder"]
    examples = flat_inputs(traced.module, traced.args, traced.kwargs)
    for number, batch in enumerate(batches):
        given = tuple(task.inputs(batch))
        if not given or not isinstance(given[0], Tensor):
            kind = type(given[0]).__name__ if given else "nothing"
            raise DataError(
                f"The task's inputs must begin with a tensor, examples first. Got {kind}: give tensors one by one, "
                "to a model whose forward takes them so."
            )
        inputs = [x for x in given if isinstance(x, Tensor)]
        for x, node, example in zip(inputs, placeholders, examples, strict=False):
            expected = structure.traced.shapes[node.name]
            if x.dim() == 0 or x.shape[0] == 0:
                raise DataError(f"Batch {number} is empty. Every batch must hold at least one example.")
            fixed = expected[1:] if x.is_floating_point() else expected[2:]
            if x.dim() != len(expected) or tuple(x.shape[x.dim() - len(fixed) :]) != tuple(fixed):
                raise DataError(f"Batch {number} has shape {tuple(x.shape)}, but the model was traced with {expected}.")
            if x.dtype != example.dtype and (x.is_floating_point() or example.is_floating_point()):
                raise DataError(
                    f"Batch {number} is of {_dtype(x)}, but the model was traced with {_dtype(example)}. Convert the "
                    f"batch, or give example inputs of its type."
                )
            if x.is_floating_point() and not torch.isfinite(x).all():
                raise DataError(f"Batch {number} holds NaN or infinite values. Clean the calibration data.")


def _dtype(x: Tensor) -> str:
    return str(x.dtype).removeprefix("torch.")
