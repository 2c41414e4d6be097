"""Tracks dimensions through a traced graph: which indices of which parameters can only be removed together."""

from collections.abc import Callable
from dataclasses import dataclass, field
from functools import cached_property
from typing import Any

import numpy as np
import torch
from torch import Tensor, fx
from torch.utils import _pytree as pytree

from compress.atoms import Atoms
from compress.dimensions import Merge, Value
from compress.graph import TracedGraph, is_parameter

Rule = Callable[["Propagation", fx.Node], Any]
RULES: dict[Any, Rule] = {}
MAX_ROUNDS = 6


def rule(*targets: Any) -> Callable[[Rule], Rule]:
    """Register how dimensions pass through these operations."""

    def register(function: Rule) -> Rule:
        for target in targets:
            RULES[target] = function
        return function

    return register


@dataclass(frozen=True)
class Use:
    """A place that sums over (or normalises over) labelled indices: where a removed unit must be as if absent.

    Attributes:
        node: the consuming call.
        argument: which positional argument is consumed.
        dim: the dimension of that argument.
        labels: `(size,)` atoms.
    """

    node: fx.Node
    argument: int
    dim: int
    labels: np.ndarray


@dataclass(frozen=True)
class Producer:
    """A parameter dimension that makes channels: the rows of a conv, linear or embedding weight."""

    parameter: str
    dim: int
    node: fx.Node


@dataclass
class Propagation:
    """One pass over the graph. `choices` says along which factor each ambiguous reshape may be cut."""

    traced: TracedGraph
    choices: dict[str, int] = field(default_factory=dict)
    atoms: Atoms = field(default_factory=Atoms)
    values: dict[str, Any] = field(default_factory=dict)
    parameters: dict[str, Value] = field(default_factory=dict)
    uses: list[Use] = field(default_factory=list)
    producers: list[Producer] = field(default_factory=list)
    splits: dict[str, tuple[tuple[int, ...], np.ndarray]] = field(default_factory=dict)
    unknown: dict[str, str] = field(default_factory=dict)
    n_examples: int = 1

    def run(self) -> "Propagation":
        """Propagate through every node; returns itself."""
        self.n_examples = next(
            (leaf.shape[0] for leaf in pytree.tree_leaves((self.traced.args, self.traced.kwargs))
             if isinstance(leaf, Tensor) and leaf.dim() > 0), 1)  # fmt: skip
        for node in self.traced.graph.nodes:
            if node.op == "placeholder":
                self.values[node.name] = self._input(node)
            elif node.op == "get_attr":
                self.values[node.name] = self._parameter(node)
            elif node.op == "output":
                for leaf in pytree.tree_leaves(pytree.tree_map(self.value, node.args[0])):
                    self.block(leaf, "it is an output of the model")
            else:
                self.values[node.name] = self._call(node)
        return self

    # -- values ------------------------------------------------------------------------------------------------------

    def value(self, node: Any) -> Any:
        """The labelled value of a node; None for anything that is no tensor."""
        return self.values.get(node.name) if isinstance(node, fx.Node) else None

    def shape(self, node: fx.Node) -> Any:
        """Shape of a node's value on the example inputs."""
        return self.traced.shapes[node.name]

    def _input(self, node: fx.Node) -> Value | None:
        shape = self.traced.shapes[node.name]
        if not isinstance(shape, tuple):
            return None
        value = Value.plain(shape)
        if shape and shape[0] == self.n_examples:
            return value.replace(0, shape[0], None, np.arange(shape[0]))
        return value

    def _parameter(self, node: fx.Node) -> Value | None:
        if not is_parameter(node) or not _is_shape(self.traced.shapes.get(node.name)):
            return None
        if node.target not in self.parameters:
            shape = self.traced.shapes[node.name]
            labels = tuple(self.atoms.new(size) for size in shape)
            self.parameters[node.target] = Value(shape, labels, (None,) * len(shape))
        return self.parameters[node.target]

    def _call(self, node: fx.Node) -> Any:
        known = RULES["pointwise"] if node.target not in RULES and pointwise(node) else RULES.get(node.target)
        if known is None:
            return self.unknown_operation(node)
        try:
            return known(self, node)
        except (AttributeError, TypeError, IndexError, ValueError):
            # A form of the operation that its rule was not written for: one more thing that must stay.
            return self.unknown_operation(node, f"'{node.name}' is used in a form that is not understood")

    def unknown_operation(self, node: fx.Node, reason: str | None = None) -> Any:
        """An operation that nothing is known of: what enters it must stay, what leaves it is fixed."""
        shape = self.traced.shapes.get(node.name)
        name = getattr(node.target, "__name__", str(node.target)).split(".")[0]
        if name == "wrap_with_autocast":
            reason = "it runs under torch.autocast within the forward: put autocast around the call instead"
        for argument in node.all_input_nodes:
            value = self.value(argument)
            for leaf in pytree.tree_leaves(value):
                if isinstance(leaf, Value) and len(leaf.atoms):
                    self.unknown.setdefault(node.name, reason or f"operation '{name}' is not understood")
                    self.block(leaf, reason or f"it enters '{name}', which is not understood")
        return self.plain(node, shape)

    def plain(self, node: fx.Node, shape: Any) -> Any:
        """Values without channels, whose batch is read off the symbolic shape of the trace."""
        if _is_shape(shape):
            value = Value.plain(shape)
            meta = node.meta.get("val")
            symbols = [str(size) for size in meta.shape] if isinstance(meta, Tensor) else []
            for dim, symbol in enumerate(symbols[: len(shape)]):
                if symbol in self._batch_symbols and shape[dim] == self.n_examples:
                    return value.replace(dim, shape[dim], None, np.arange(shape[dim]))
            return value
        return tuple(self.plain(node, item) for item in shape) if isinstance(shape, (tuple, list)) else None

    @cached_property
    def _batch_symbols(self) -> set[str]:
        """Names of the free sizes of the inputs' first dimensions."""
        inputs = (n.meta.get("val") for n in self.traced.graph.nodes if n.op == "placeholder")
        symbols = {str(value.shape[0]) for value in inputs if isinstance(value, Tensor) and value.dim()}
        return {symbol for symbol in symbols if not symbol.isdigit()}

    # -- atoms -------------------------------------------------------------------------------------------------------

    def block(self, value: Value | np.ndarray | None, reason: str) -> None:
        """All atoms of a value or label array must stay."""
        atoms = value.atoms if isinstance(value, Value) else value
        if atoms is not None and len(atoms):
            self.atoms.block(atoms, reason)

    def join(self, left: np.ndarray | None, right: np.ndarray | None, node: fx.Node) -> np.ndarray | None:
        """Labels of a dimension where two meet: joined, or blocked where one of them is fixed."""
        if left is None and right is None:
            return None
        if left is None or right is None:
            self.block(right if left is None else left, f"it meets a fixed dimension at '{node.name}'")
            return None
        self.atoms.join(left, right)
        return left

    def align(self, node: fx.Node, inputs: list[Value], shape: tuple[int, ...]) -> Value:
        """Broadcast values to `shape`, joining the labels that meet."""
        labels: list[Any] = [None] * len(shape)
        batch: list[Any] = [None] * len(shape)
        for back in range(1, len(shape) + 1):
            full = [v for v in inputs if len(v.shape) >= back and v.shape[-back] == shape[-back]]
            for value in inputs:
                if value not in full and len(value.shape) >= back:
                    self.block(value.labels[-back], f"it is broadcast at '{node.name}'")
            if full:
                merged = full[0].labels[-back]
                for value in full[1:]:
                    merged = self.join(merged, value.labels[-back], node)
                labels[-back] = merged
                batch[-back] = next((v.batch[-back] for v in full if v.batch[-back] is not None), None)
        return Value(tuple(shape), tuple(labels), tuple(batch))

    def use(self, node: fx.Node, argument: int, dim: int, labels: np.ndarray | None) -> None:
        """Note that `node` sums over this dimension of its argument."""
        if labels is not None:
            self.uses.append(Use(node, argument, dim, labels))

    def produce(self, node: fx.Node, parameter: Any, dim: int) -> None:
        """Note that `node` makes channels with this dimension of a parameter, or of one that it is computed from."""
        if is_parameter(parameter):
            self.producers.append(Producer(parameter.target, dim, node))
            return
        value = self.value(parameter)
        if not isinstance(value, Value) or value.labels[dim] is None or any(part is not None for part in value.batch):
            return
        wanted, seen, todo, found = self.atoms.roots(value.labels[dim]), set(), [parameter], []
        while todo:
            for source in set(todo.pop().all_input_nodes) - seen:
                seen.add(source)
                known = self.value(source)
                if not is_parameter(source):
                    todo.append(source)
                elif isinstance(known, Value):
                    roots = [None if labels is None else self.atoms.roots(labels) for labels in known.labels]
                    # A part of a weight may make them: packed projections of attention are cut into q, k and v.
                    whole = [own is not None and np.isin(wanted, own).all() for own in roots]
                    found += [(np.array_equal(roots[d], wanted), np.prod(known.shape), source.target, d)
                              for d in np.flatnonzero(whole).tolist()]  # fmt: skip
        if found:
            # The weight itself is larger than what it is scaled by.
            _, _, name, d = max(found)
            self.producers.append(Producer(name, d, node))

    def merge(self, node: fx.Node, key: str = "") -> Merge:
        """How reshapes at `node` may treat atoms."""

        def choose(sizes: list[int], atoms: np.ndarray) -> int:
            self.splits[node.name + key] = (tuple(sizes), atoms.ravel().copy())
            return min(self.choices.get(node.name + key, 0), len(sizes) - 1)

        return Merge(self.atoms, choose)


def pointwise(node: fx.Node) -> bool:
    """Whether torch declares this operation elementwise."""
    return torch.Tag.pointwise in getattr(node.target, "tags", ())


def _is_shape(shape: Any) -> bool:
    return isinstance(shape, tuple) and all(isinstance(size, int) for size in shape)
