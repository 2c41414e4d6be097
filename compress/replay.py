"""Runs only what a change can reach: values before it are kept from one dense pass, the rest is computed again."""

from collections.abc import Sequence
from dataclasses import replace
from typing import Any

import numpy as np
import torch
from torch import Tensor, fx
from torch.utils import _pytree as pytree

from compress.attributes import value_of
from compress.counting import node_macs
from compress.dimensions import BatchLayout, Value, batch_layout
from compress.errors import CompressError, DataError
from compress.gates import gated_module
from compress.graph import ATEN, argument, is_parameter
from compress.structure import Site, Structure
from compress.suffix import Suffix, counts_examples
from compress.task import Batch, Task, losses_of

CONVS = (ATEN.conv1d.default, ATEN.conv2d.default, ATEN.conv3d.default, ATEN.conv1d.padding, ATEN.conv2d.padding,
         ATEN.conv3d.padding)  # fmt: skip
# Several batches are tried in one call as long as their values stay in the processor's cache.
_CALL_BYTES = 8 << 20
_CACHE_BYTES = 3 << 30


class Replay:
    """Measures losses under many small changes of one model.

    Args:
        structure: the model.
        task: reads batches and gives per-example losses.
        batches: examples to measure on.
        cache_bytes: most memory for dense values; above it they are computed again for every group.
        dense: per batch `(batch,)` losses of the unchanged model, if they are known; computed otherwise.

    Attributes:
        dense: per batch `(batch,)` float64 losses of the unchanged model.
        forward_macs: MACs spent so far. naive_macs: what a full forward for every change would have cost.
    """

    def __init__(
        self,
        structure: Structure,
        task: Task,
        batches: Sequence[Batch],
        cache_bytes: int = _CACHE_BYTES,
        dense: Sequence[np.ndarray] | None = None,
    ) -> None:
        if not batches:
            raise DataError("The 'batches' parameter of Replay must hold at least one batch. Got none.")
        self.structure, self.task, self.batches = structure, task, list(batches)
        self.cache_bytes = cache_bytes
        self.sizes = [task.inputs(batch)[0].shape[0] for batch in self.batches]
        self._macs = node_macs(structure)
        self.full_macs = sum(self._macs.values())
        self.forward_macs = self.naive_macs = 0.0
        self._cache: list[dict[str, Any]] = [{} for _ in self.batches]
        self._cached: set[str] = set()
        self.dense = self._dense_losses() if dense is None else list(dense)

    @property
    def n_examples(self) -> int:
        """Number of examples in all batches."""
        return sum(self.sizes)

    # -- suffixes ----------------------------------------------------------------------------------------------------

    def group_suffix(self, group: str) -> Suffix:
        """What removing units of a group reaches."""
        rows = np.flatnonzero((self.structure.units.group == group) & self.structure.units.removable)
        local = {int(row): i for i, row in enumerate(rows)}
        sites = []
        for site in self.structure.sites:
            own = np.array([local.get(int(row), -1) for row in site.rows])
            if (own >= 0).any():
                sites.append(replace(site, rows=own))
        module = gated_module(replace(self.structure, sites=tuple(sites)), torch.ones(1, len(rows)))
        module.eval()
        return self._suffix(module, {"gates"}, local, sites)

    def layer_suffix(self, layer: str) -> Suffix:
        """What another weight of a layer reaches; pass that weight to `losses`."""
        weights = {found.weight for found in self.structure.traced.layers() if found.name == layer}
        if not weights:
            raise CompressError(f"Unknown layer {layer!r}.")
        targets = _same_tensor(self.structure, weights)
        starts = {n.name for n in self.structure.traced.graph.nodes if n.op == "get_attr" and n.target in targets}
        return self._suffix(self.structure.traced.module, starts, {}, [])

    def _suffix(self, module: fx.GraphModule, starts: set[str], local: dict[int, int], sites: list[Site]) -> Suffix:
        touched = set(starts)
        for node in module.graph.nodes:
            if any(source.name in touched for source in node.all_input_nodes):
                touched.add(node.name)
        direct = self._direct(module, touched, sites)
        needed, frontier, output = self._needed(module, touched - starts, direct)
        order = tuple(n for n in module.graph.nodes if n.name in needed and n.name not in starts)
        macs = 0.0
        for node in order:
            own = self._macs.get(node.name, 0.0)
            if node.name in direct:
                rows = direct[node.name].rows
                own *= (rows >= 0).sum() / max(len(local), 1) / len(rows)
            macs += own
        shapes = [
            v for n in order if isinstance(v := self.structure.traced.shapes.get(n.name.removesuffix("_gated")), tuple)
        ]
        largest = max((4 * int(np.prod(s)) for s in shapes if all(isinstance(i, int) for i in s)), default=4)
        done = _last_reads(order, output)
        largest = largest // self._traced_examples() + 1
        unknown = any(isinstance(self.structure.traced.shapes.get(name), tuple)
                      and not isinstance(self.structure.values.get(name), Value) for name in frontier)  # fmt: skip
        graph = self.structure.traced.graph
        unknown |= any(_layout(self.structure, name) is None and counts_examples(graph, name) for name in frontier)
        fixed = self.structure.traced.fixed_batch is not None
        single = fixed or unknown or any(site.batch is None for site in sites)
        return Suffix(module, order, tuple(frontier), output, done, local, direct, macs, largest, single)

    def _traced_examples(self) -> int:
        first = next(n for n in self.structure.traced.graph.nodes if n.op == "placeholder")
        return self.structure.traced.shapes[first.name][0]

    def _direct(self, module: fx.GraphModule, touched: set[str], sites: list[Site]) -> dict[str, Site]:
        """Linear layers and dense convs whose own input the change has not reached."""
        direct = {}
        # A norm or a mean that takes gates has another name in the gated graph: what is gone from it was reached.
        untouched = {node.name for node in module.graph.nodes} - touched
        for site in sites:
            node = site.node
            dense_conv = node.target in CONVS and argument(node, 6, "groups", 1) == 1
            if not (dense_conv or node.target is ATEN.linear.default) or site.argument != 0 or site.batch is None:
                continue
            value = self.structure.values.get(node.name)
            alone = sum(other.node is node for other in sites) == 1
            weight_free = is_parameter(node.args[1])
            if alone and weight_free and node.args[0].name in untouched and isinstance(value, Value):
                direct[node.name] = site
        return direct

    def _needed(
        self, module: fx.GraphModule, touched: set[str], direct: dict[str, Site]
    ) -> tuple[set[str], list[str], Any]:
        """Names to compute, dense values to keep, and the output node."""
        output = next(n for n in module.graph.nodes if n.op == "output")
        needed: set[str] = set()
        frontier: dict[str, None] = {}
        stack = list(output.all_input_nodes)
        while stack:
            node = stack.pop()
            if node.name in needed or node.name in frontier:
                continue
            if node.name in direct:
                needed.add(node.name)
                frontier[node.name] = None
                frontier[direct[node.name].node.args[0].name] = None
                continue
            number = node.op == "call_function" and node.name in self.structure.traced.shapes and isinstance(
                self.structure.traced.shapes[node.name], (int, float))  # fmt: skip
            if node.op == "get_attr" or node.name in touched or number:
                needed.add(node.name)
                stack.extend(node.all_input_nodes)
            else:
                frontier[node.name] = None
        return needed, list(frontier), output

    # -- dense values ------------------------------------------------------------------------------------------------

    def _dense_losses(self) -> list[np.ndarray]:
        out = []
        module = self.structure.traced.module
        was_training = module.training
        module.eval()
        try:
            with torch.no_grad():
                for batch in self.batches:
                    losses = losses_of(self.task, module(*self.task.inputs(batch)), batch).double()
                    if not torch.isfinite(losses).all():
                        raise DataError("The dense model's loss is not finite. Check model, labels and inputs.")
                    out.append(losses.cpu().numpy())
        finally:
            module.train(was_training)
        self.forward_macs += self.full_macs * self.n_examples
        return out

    def keep(self, suffixes: Sequence[Suffix]) -> bool:
        """Keep the dense values of these suffixes if they fit in memory; returns whether they do."""
        names = {name for suffix in suffixes for name in suffix.frontier}
        per_example = sum(self._bytes(name) for name in names)
        if per_example * self.n_examples > self.cache_bytes:
            return False
        self._fill(names)
        return True

    def _bytes(self, name: str) -> float:
        leaves = pytree.tree_leaves(self.structure.traced.shapes.get(name), is_leaf=lambda s: isinstance(s, tuple))
        return sum(4.0 * np.prod(s) for s in leaves if isinstance(s, tuple)) / self._traced_examples()

    def _fill(self, names: set[str]) -> None:
        missing = names - self._cached
        if not missing:
            return
        for number, batch in enumerate(self.batches):
            self._cache[number].update(self._values(batch, missing))
        self._cached |= missing
        self.forward_macs += self.full_macs * self.n_examples

    def forget(self) -> None:
        """Drop all dense values."""
        self._cache = [{} for _ in self.batches]
        self._cached = set()

    def _values(self, batch: Batch, names: set[str]) -> dict[str, Any]:
        module = self.structure.traced.module
        was_training = module.training
        module.eval()
        try:
            with torch.no_grad():
                keeper = _Keeper(module, names)
                keeper.run(*self.task.inputs(batch))
        finally:
            module.train(was_training)
        return keeper.kept

    # -- losses ------------------------------------------------------------------------------------------------------

    def calls(self, suffix: Suffix, numbers: Sequence[int]) -> list[list[int]]:
        """These batches in order, divided into what one call takes: of one shape, and small enough for the cache."""
        self._fill(set(suffix.frontier))
        found: list[list[int]] = []
        for number in numbers:
            most = max(1, int(_CALL_BYTES // (suffix.call_bytes * self.sizes[number])))
            if found and not suffix.single and len(found[-1]) < most and self._alike(suffix, found[-1][-1], number):
                found[-1].append(number)
            else:
                found.append([number])
        return found

    def _alike(self, suffix: Suffix, first: int, second: int) -> bool:
        """Whether two batches are of the same shapes, and what is kept of them differs only from example to example."""
        leaves = [pytree.tree_leaves(self.batches[number]) for number in (first, second)]
        shapes = [[leaf.shape if isinstance(leaf, Tensor) else leaf for leaf in own] for own in leaves]
        if shapes[0] != shapes[1]:
            return False
        for name in suffix.frontier:
            one, other = self._cache[first][name], self._cache[second][name]
            if not isinstance(one, Tensor):
                if one != other:
                    return False
            elif _layout(self.structure, name) is None and not torch.equal(one, other):
                return False
        return True

    def removal_losses(self, suffix: Suffix, trials: Sequence[tuple[int, int]]) -> list[np.ndarray]:
        """Losses with one unit removed, for each trial `(row of the unit, number of the batch)`: `(batch,)` float64.

        The batches of several trials must be such as `calls` puts together, or one.
        """
        self._fill(set(suffix.frontier))
        if suffix.single and len(trials) > 1:
            return [self.removal_losses(suffix, [trial])[0] for trial in trials]
        columns = [suffix.local[int(row)] for row, _ in trials]
        numbers = [number for _, number in trials]
        k, size = len(trials), self.sizes[numbers[0]]
        gates = torch.ones(k, len(suffix.local), dtype=self._dtype())
        gates[range(k), columns] = 0
        env: dict[str, Any] = {"gates": gates if suffix.single else gates.repeat_interleave(size, dim=0)}
        for name in suffix.frontier:
            if name not in suffix.direct:
                env[name] = self._joined(name, [self._cache[number][name] for number in numbers])
        self.forward_macs += suffix.macs * k * size
        self.naive_macs += self.full_macs * k * size
        return self._run(suffix, env, columns, numbers)

    def layer_losses(self, suffix: Suffix, weight: Tensor, number: int) -> np.ndarray:
        """`(batch,)` float64 losses of batch `number` with another weight in the layer of `suffix`."""
        self._fill(set(suffix.frontier))
        dense = self._cache[number]
        starts = {source.name for node in suffix.order for source in node.all_input_nodes} - {
            n.name for n in suffix.order
        }
        env = {name: dense[name] for name in suffix.frontier}
        env.update({name: weight for name in starts - set(suffix.frontier)})
        self.forward_macs += suffix.macs * self.sizes[number]
        self.naive_macs += self.full_macs * self.sizes[number]
        return self._run(suffix, env, [0], [number])[0]

    def _dtype(self) -> torch.dtype:
        return next((p.dtype for p in self.structure.traced.module.parameters()), torch.float32)

    def _run(self, suffix: Suffix, env: dict[str, Any], columns: list[int], numbers: list[int]) -> list[np.ndarray]:
        size = self.sizes[numbers[0]]
        with torch.no_grad():
            for node in suffix.order:
                if node.name in suffix.direct:
                    env[node.name] = self._without(suffix.direct[node.name], columns, numbers)
                elif node.op == "get_attr":
                    # Always in evaluation mode, whatever mode the model is in: its running statistics stay as they are.
                    env[node.name] = node.target != "training" and value_of(suffix.module, node.target)
                else:
                    args = fx.node.map_arg(node.args, lambda n: env[n.name])
                    kwargs = fx.node.map_arg(node.kwargs, lambda n: env[n.name])
                    env[node.name] = node.target(*args, **kwargs)
                    del args, kwargs
                for name in suffix.done.get(node.name, ()):
                    env.pop(name, None)
            flat = fx.node.map_arg(suffix.output.args[0], lambda n: env[n.name])
            out = []
            for i, number in enumerate(numbers):
                own = pytree.tree_map(
                    lambda leaf, i=i: leaf[i * size : (i + 1) * size] if isinstance(leaf, Tensor) else leaf, flat
                )
                outputs = suffix.module.graph.process_outputs(own)
                out.append(self.task.loss(outputs, self.batches[number]).double().cpu().numpy())
        return out

    def _without(self, site: Site, columns: list[int], numbers: list[int]) -> Tensor:
        """The consumer's dense output minus the share of the unit, one trial after the other along the batch."""
        node = site.node
        weight = value_of(self.structure.traced.module, node.args[1].target).detach()
        layout = _out_layout(self.structure, node)
        parts = []
        for column, number in zip(columns, numbers, strict=True):
            x, y = self._cache[number][node.args[0].name], self._cache[number][node.name]
            index = torch.from_numpy(np.flatnonzero(site.rows == column)).to(x.device)
            picked = x.index_select(site.dim, index)
            if node.target is ATEN.linear.default:
                share = torch.nn.functional.linear(picked, weight.index_select(1, index))
            else:
                share = node.target(picked, weight.index_select(1, index), None, *node.args[3:6])
            parts.append(y - share)
        return parts[0] if len(parts) == 1 else _stack(parts, layout)

    def _joined(self, name: str, values: list[Any]) -> Any:
        """Values of several batches behind each other; one of them where they have no examples."""
        if len(values) == 1 or not isinstance(values[0], Tensor):
            return values[0]
        layout = _layout(self.structure, name)
        return values[0] if layout is None else _stack(values, layout)


class _Keeper(fx.Interpreter):
    def __init__(self, module: fx.GraphModule, names: set[str]) -> None:
        super().__init__(module)
        self.names = names
        self.kept: dict[str, Any] = {}

    def run_node(self, node: fx.Node) -> Any:
        value = super().run_node(node)
        if node.name in self.names:
            self.kept[node.name] = value
        return value


def _last_reads(order: Sequence[fx.Node], output: fx.Node) -> dict[str, tuple[str, ...]]:
    """Node name -> names of the values it is the last to read."""
    kept = {node.name for node in output.all_input_nodes}
    last: dict[str, str] = {}
    for node in order:
        last.update({source.name: node.name for source in node.all_input_nodes if source.name not in kept})
    done: dict[str, list[str]] = {}
    for name, reader in last.items():
        done.setdefault(reader, []).append(name)
    return {reader: tuple(names) for reader, names in done.items()}


def _same_tensor(structure: Structure, names: set[str]) -> set[str]:
    """These parameters and all that are tied to them."""
    module = structure.traced.module
    wanted = {id(value_of(module, name)) for name in names}
    return {name for name, p in module.named_parameters(remove_duplicate=False) if id(p) in wanted}


def _layout(structure: Structure, name: str) -> BatchLayout | None:
    value = structure.values.get(name)
    if not isinstance(value, Value):
        return None
    n = next((int(labels.max()) + 1 for labels in value.batch if labels is not None), 0)
    return batch_layout(value, n) if n else None


def _out_layout(structure: Structure, node: fx.Node) -> BatchLayout:
    layout = _layout(structure, node.name)
    if layout is None:
        raise CompressError(f"The batch of '{node.name}' is unknown. Measure it with full forwards.")
    return layout


def _stack(parts: list[Tensor], layout: BatchLayout) -> Tensor:
    """Values of several trials behind each other along the examples."""
    if layout.outer == 1:
        return torch.cat(parts, dim=layout.dim)
    split = [p.unflatten(layout.dim, (layout.outer, -1)) for p in parts]
    return torch.cat(split, dim=layout.dim + 1).flatten(layout.dim, layout.dim + 1)
