"""A graph run node for node over all batches at once, so that a layer can be mended when it is reached."""

from collections.abc import Iterator, Sequence
from typing import Any

import numpy as np
import torch
from torch import Tensor, fx

from compress.attributes import only_user
from compress.dimensions import Value
from compress.errors import PlanError
from compress.structure import Structure
from compress.task import running_on


class Walk:
    """Runs one graph over all batches, node by node, keeping only values that are still needed.

    One walk costs one forward, however many layers are changed on the way: parameters are read anew at every node, so a
    change made at a node is seen by all nodes after it. What is alive of all batches is in memory together.

    Args:
        module: a traced module in evaluation mode.
        batches: flat inputs of the forward, for each batch.
    """

    def __init__(self, module: fx.GraphModule, batches: Sequence[tuple[Any, ...]]) -> None:
        self.module = module
        self.values: list[dict[str, Any]] = [
            dict(zip((n.name for n in module.graph.nodes if n.op == "placeholder"), batch, strict=True))
            for batch in batches
        ]
        self._doomed: dict[str, list[str]] = {}
        for name, last in _last_uses(module.graph).items():
            self._doomed.setdefault(last, []).append(name)

    def nodes(self) -> Iterator[fx.Node]:
        """Every call of the graph, each after its values have been computed."""
        for node in self.module.graph.nodes:
            if node.op in ("call_function", "call_module"):
                self.run(node)
                yield node
            self.forget(node)

    def run(self, node: fx.Node) -> None:
        """Compute the values of a call (again)."""
        for values in self.values:

            def look_up(argument: fx.Node, values: dict[str, Any] = values) -> Any:
                return _read(self.module, argument) if argument.op == "get_attr" else values[argument.name]

            args, kwargs = fx.map_arg((node.args, node.kwargs), look_up)
            call = self.module.get_submodule(node.target) if node.op == "call_module" else node.target
            with running_on(args):
                values[node.name] = call(*args, **kwargs)

    def forget(self, node: fx.Node) -> None:
        """Drop the values that nobody needs after `node`."""
        for name in self._doomed.get(node.name, ()):
            for values in self.values:
                values.pop(name, None)


class Lockstep:
    """The small and the dense graph side by side.

    Args:
        structure: the dense model.
        removed: `(n_units,)` bool, the units that `small` lacks.
        small: sliced from this structure, and perhaps divided; its nodes have the names of the dense graph.
        batches: flat inputs of the forward, for each batch.

    Raises:
        PlanError: if `small` is no slice of the dense model.
    """

    def __init__(
        self, structure: Structure, removed: np.ndarray, small: fx.GraphModule, batches: Sequence[tuple[Any, ...]]
    ) -> None:
        self.structure, self.removed = structure, removed
        self._dense_nodes = {node.name: node for node in structure.traced.graph.nodes}
        own, first = _computed(small), first_parts(small, structure)
        odd = (set(own) ^ set(_computed(structure.traced.module))) - first
        if odd:
            raise PlanError(
                f"The small model is not a slice of this dense model: node {min(odd)!r} is in one of them only. "
                f"Recover it with the model that it was sliced from, before it is quantised."
            )
        self.small = Walk(small, batches)
        self.dense = Walk(structure.traced.module, batches)

    def nodes(self) -> Iterator[fx.Node]:
        """Every call of both graphs, each after its values have been computed in both."""
        for node in self.small.module.graph.nodes:
            twin = self._dense_nodes.get(node.name)
            if node.op == "call_function":
                self.small.run(node)
                if twin is not None:
                    self.dense.run(twin)
                    yield node
            self.small.forget(node)
            if twin is not None:
                self.dense.forget(twin)

    def target(self, name: str, number: int) -> Tensor:
        """The dense value of node `name` on batch `number`, without the indices that the small model lacks."""
        value, labelled = self.dense.values[number][name], self.structure.values.get(name)
        if not isinstance(labelled, Value):
            return value
        for dim, rows in enumerate(labelled.labels):
            if rows is not None and (gone := (rows >= 0) & self.removed[rows]).any():
                value = value.index_select(dim, torch.from_numpy(np.flatnonzero(~gone)).to(value.device))
        return value


def first_parts(small: fx.GraphModule, structure: Structure) -> set[str]:
    """Names of the nodes that the dense graph lacks: the first of two layers in the place of one."""
    dense = {node.name: node for node in structure.traced.graph.nodes}
    found = set()
    for node in small.graph.nodes:
        second = only_user(node) if node.op == "call_function" and node.name not in dense else None
        twin = dense.get(second.name) if second is not None else None
        if twin is not None and twin.target is node.target is second.target and second.args[0] is node:
            found.add(node.name)
    return found


def _computed(module: fx.GraphModule) -> list[str]:
    """Names of the nodes that are no parameters or buffers."""
    return [node.name for node in module.graph.nodes if node.op != "get_attr"]


def _read(module: fx.GraphModule, node: fx.Node) -> Any:
    """The attribute that a `get_attr` node reads."""
    owner, _, leaf = node.target.rpartition(".")
    return getattr(module.get_submodule(owner), leaf)


def _last_uses(graph: fx.Graph) -> dict[str, str]:
    """Name of each value -> name of the node after which nobody needs it."""
    last = {}
    for node in graph.nodes:
        last[node.name] = node.name
        for source in node.all_input_nodes:
            last[source.name] = node.name
    return last
