"""The structure of a model: its units, and where each of them lies in parameters and in values."""

from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import torch
from torch import fx, nn
from torch.utils import _pytree as pytree

import compress.rules as _rules  # noqa: F401  (registers the rules)
from compress.dimensions import BatchLayout, Value, batch_layout
from compress.graph import TracedGraph, check_finite, fingerprint, record_shapes, trace
from compress.propagation import MAX_ROUNDS, Producer, Propagation
from compress.units import UnitTable

FIXED = -1


@dataclass(frozen=True, eq=False)
class Site:
    """Where a unit is consumed: `node` sums or normalises over dimension `dim` of its positional `argument`.

    Attributes:
        rows: `(size,)` unit row of each index, -1 where it is fixed.
        batch: where the examples lie in that argument, None if unknown.
    """

    node: fx.Node
    argument: int
    dim: int
    rows: np.ndarray
    batch: BatchLayout | None


@dataclass(frozen=True, eq=False)
class Structure:
    """A traced model with its units.

    Attributes:
        traced: the graph; shares the model's parameters.
        units: the units, channels and heads first, then layers.
        parameters: parameter or buffer name -> per dimension `(size,)` unit rows (-1: fixed).
        values: node name -> the value with unit rows in place of atoms.
        sites: every place where a unit must be silenced to be as if absent.
        producers: the parameter dimensions that make channels, in execution order.
    """

    traced: TracedGraph
    units: UnitTable
    parameters: dict[str, tuple[np.ndarray, ...]]
    values: dict[str, Any]
    sites: tuple[Site, ...]
    producers: tuple[Producer, ...]

    @property
    def n_removable(self) -> int:
        """Number of channels and heads; they are the first rows of `units`."""
        return int(self.units.removable.sum())


# Cuts of reshapes that are tried alone: a propagation of each takes up to a second on large graphs.
_MOST_TRIED = 32
# Nodes of a graph that call nothing.
_PLAIN = ("placeholder", "get_attr", "output")


def find_units(model: nn.Module, example_inputs: Any) -> UnitTable:
    """Coupled channel groups, attention heads and layers of any model that `torch.export` can trace.

    Args:
        model: the network; left as it was.
        example_inputs: a tensor, or a tuple or dict of the forward's inputs, batch first.

    Returns:
        The units. `units.blocked` names what cannot be compressed, with the reason.

    Raises:
        TraceError: if the model cannot be traced. DataError: for empty or non-finite inputs or parameters.
    """
    return analyze(model, example_inputs).units


def analyze(model: nn.Module | Structure, example_inputs: Any = None) -> Structure:
    """The structure of `model`; a structure is returned as it is."""
    if isinstance(model, Structure):
        return model
    traced = trace(model, example_inputs)
    propagation = _propagate(traced)
    return _structure(propagation)


def analyze_changed(module: fx.GraphModule, base: Structure) -> Structure:
    """The structure of what a traced network became: sliced, factorised, trained.

    Its graph is taken as it is, which spares the tracing: that takes longer than all else here. It is for counting:
    where examples lie in a value is not in it as far as only a trace can tell.

    Args:
        module: as `apply_plan` and what follows return it. One that calls more than operations is traced anew.
        base: the structure that it was made from; gives the example inputs.

    Raises:
        TraceError: if one that is traced anew cannot be. DataError: for non-finite parameters.
    """
    traced = base.traced
    if not all(node.op in _PLAIN or isinstance(node.target, torch._ops.OpOverload) for node in module.graph.nodes):
        return analyze(module, traced.args or traced.kwargs)
    check_finite(module)
    shapes = record_shapes(module, traced.args, traced.kwargs)
    return _structure(_propagate(replace(traced, module=module, shapes=shapes, fingerprint=fingerprint(module))))


def _propagate(traced: TracedGraph) -> Propagation:
    """Propagate, cutting ambiguous reshapes at the outermost factor that leaves at least two removable units.

    Where nothing attends over that factor, a longer one is taken instead if it leaves more units in all.
    """
    found, together = _cut(traced, frozenset())
    kept: frozenset[str] = frozenset()
    # What was cut anew beside others may have been right all along: the cut that gives heads is.
    for key in together[:_MOST_TRIED]:
        other, _ = _cut(traced, kept | {key})
        if len(other.atoms.attention) > len(found.atoms.attention):
            found, kept = other, kept | {key}
    return _refine(traced, found)


def _cut(traced: TracedGraph, kept: frozenset[str]) -> tuple[Propagation, list[str]]:
    """The propagation when all reshapes but `kept` leave removable units, and which were cut anew beside others."""
    choices: dict[str, int] = {}
    together: dict[str, None] = {}
    for _ in range(MAX_ROUNDS):
        propagation = Propagation(traced, dict(choices)).run()
        open_keys = [key for key, (sizes, _) in propagation.splits.items()
                     if key not in kept and choices.get(key, 0) + 1 < len(sizes)]  # fmt: skip
        dead = [key for key in open_keys if _live(propagation, propagation.splits[key][1]) < 2]
        for key in dead:
            choices[key] = choices.get(key, 0) + 1
        together |= dict.fromkeys(dead) if len(dead) > 1 else {}
        if not dead:
            break
    return propagation, list(together)


def _refine(traced: TracedGraph, outermost: Propagation) -> Propagation:
    """The propagation with finer cuts where they leave more units, else the one given."""
    attention = set(outermost.atoms.roots(np.array(sorted(outermost.atoms.attention), dtype=np.int64)).tolist())
    finer: dict[str, int] = {}
    for key, (sizes, atoms) in outermost.splits.items():
        current = min(outermost.choices.get(key, 0), len(sizes) - 1)
        longest = int(np.argmax(sizes))
        if sizes[longest] > sizes[current] and not attention & set(outermost.atoms.roots(atoms).tolist()):
            finer[key] = longest
    best, n_best = outermost, _n_units(outermost) if finer else 0
    while finer:
        propagation = Propagation(traced, {**outermost.choices, **finer}).run()
        n_units = _n_units(propagation)
        if n_units > n_best:
            best, n_best = propagation, n_units
        worse = [key for key in finer if key not in propagation.splits
                 or _live(propagation, propagation.splits[key][1])
                 < _live(outermost, outermost.splits[key][1])]  # fmt: skip
        if not worse:
            break
        for key in worse:
            del finer[key]
    return best


def _n_units(p: Propagation) -> int:
    """Number of separate sets that may be removed among all channels that parameters make."""
    labels = [p.parameters[producer.parameter].labels[producer.dim] for producer in p.producers]
    return _live(p, np.concatenate(labels)) if labels else 0


def _live(propagation: Propagation, atoms: np.ndarray) -> int:
    """Number of separate sets among these atoms that may be removed."""
    return sum(propagation.atoms.reason(root) is None for root in np.unique(propagation.atoms.roots(atoms)).tolist())


def _structure(p: Propagation) -> Structure:
    members = _memberships(p)
    groups = _group(p, members)
    while _block_third_sides(p, {root for roots in groups.values() if len(roots) > 1 for root, _, _ in roots}):
        members = _memberships(p)
        groups = _group(p, members)
    attention = set(p.atoms.roots(np.array(sorted(p.atoms.attention), dtype=np.int64)).tolist())
    makers = _makers(p)
    ids, group_of, index_of, kind_of = [], [], [], []
    row_of: dict[int, int] = {}
    lonely: dict[int, str] = {}
    taken: set[str] = set()
    for roots in groups.values():
        producer, indices = roots[0][1], [index for _, _, index in roots]
        if len(roots) < 2:
            lonely[roots[0][0]] = "its group has a single unit"
            continue
        head = roots[0][0] in attention
        name = _unique(_group_name(makers, [root for root, _, _ in roots], producer, head), taken)
        for (root, _, _), index in zip(roots, indices, strict=True):
            row_of[root] = len(ids)
            ids.append(f"{name}[{index}]")
            group_of.append(name)
            index_of.append(index)
            kind_of.append("head" if head else "channel")
    layers = list(dict.fromkeys(layer.name for layer in p.traced.layers()))
    ids += layers
    group_of += layers
    index_of += [0] * len(layers)
    kind_of += ["layer"] * len(layers)
    units = UnitTable(tuple(ids), np.array(group_of, dtype=str), np.array(index_of, dtype=np.int64),
                      np.array(kind_of, dtype=str), _blocked(p, row_of, lonely), p.traced.fingerprint)  # fmt: skip

    row_of_atom = np.full(len(p.atoms), FIXED, dtype=np.int64)
    row_of_atom[np.array(list(row_of), dtype=np.int64)] = np.array(list(row_of.values()), dtype=np.int64)
    row_of_atom = row_of_atom[p.atoms.roots(np.arange(len(p.atoms)))]

    def rows(labels: np.ndarray | None, size: int) -> np.ndarray:
        return np.full(size, FIXED, dtype=np.int64) if labels is None else row_of_atom[labels]

    def with_rows(value: Any) -> Any:
        if not isinstance(value, Value):
            return value
        labels = tuple(None if found is None else row_of_atom[found] for found in value.labels)
        return Value(value.shape, labels, value.batch)

    parameters = {name: tuple(rows(labels, size) for labels, size in zip(value.labels, value.shape, strict=True))
                  for name, value in p.parameters.items()}  # fmt: skip
    values = {name: pytree.tree_map(with_rows, value, is_leaf=lambda leaf: isinstance(leaf, Value))
              for name, value in p.values.items()}  # fmt: skip
    sites = tuple(site for site in (_site(p, use, rows) for use in p.uses) if (site.rows != FIXED).any())
    return Structure(p.traced, units, parameters, values, sites, tuple(p.producers))


def _site(p: Propagation, use: Any, rows: Any) -> Site:
    value = p.value(use.node.args[use.argument])
    return Site(use.node, use.argument, use.dim, rows(use.labels, len(use.labels)), batch_layout(value, p.n_examples))


def _memberships(p: Propagation) -> dict[int, set]:
    """Removable root -> every parameter dimension and every use in which it occurs."""
    members: dict[int, set] = {}
    places = [((name, dim), labels) for name, value in p.parameters.items() for dim, labels in enumerate(value.labels)]
    places += [((use.node.name, use.argument, use.dim, "use"), use.labels) for use in p.uses]
    for place, labels in places:
        for root in np.unique(p.atoms.roots(labels)).tolist():
            if p.atoms.reason(root) is None:
                members.setdefault(root, set()).add(place)
    return members


def _group(p: Propagation, members: dict[int, set]) -> dict[Any, list[tuple[int, Producer, int]]]:
    """First producer, places and values -> its (root, producer, index), in execution order.

    Channels of one layer that take different paths and meet again are in other values between: groups of their own, so
    that none of these paths is left without a channel.
    """
    groups: dict[Any, list[tuple[int, Producer, int]]] = {}
    held = _holders(p, members)
    seen: set[int] = set()
    for producer in p.producers:
        roots = p.atoms.roots(p.parameters[producer.parameter].labels[producer.dim]).tolist()
        for index, root in enumerate(dict.fromkeys(roots)):
            if root in members and root not in seen:
                seen.add(root)
                key = (producer.parameter, frozenset(members[root]), tuple(held.get(root, ())))
                groups.setdefault(key, []).append((root, producer, index))
    return groups


def _holders(p: Propagation, members: dict[int, set]) -> dict[int, list[tuple[int, int]]]:
    """Removable root -> number and dimension of every value that it is in, in execution order."""
    found: dict[int, list[tuple[int, int]]] = {}
    leaves = (leaf for value in p.values.values()
              for leaf in pytree.tree_leaves(value, is_leaf=lambda leaf: isinstance(leaf, Value)))  # fmt: skip
    for number, value in enumerate(leaves):
        for dim, labels in enumerate(value.labels if isinstance(value, Value) else ()):
            if labels is not None:
                for root in np.unique(p.atoms.roots(labels)).tolist():
                    if root in members:
                        found.setdefault(root, []).append((number, dim))
    return found


def _block_third_sides(p: Propagation, roots: set[int]) -> bool:
    """A parameter shrinks on two sides at most, as costs are counted: of more, the shortest stays. Whether any did."""
    blocked = False
    for name, value in p.parameters.items():
        sides = [(len(labels), dim) for dim, labels in enumerate(value.labels)
                 if labels is not None and roots & set(p.atoms.roots(labels).tolist())]  # fmt: skip
        if len(sides) > 2:
            for _, dim in sorted(sides)[:-2]:
                p.block(value.labels[dim], f"{name!r} has two longer sides that can be made smaller")
            blocked = True
    return blocked


def _makers(p: Propagation) -> dict[int, list[str]]:
    """Root -> the parameters that make it, in execution order."""
    makers: dict[int, list[str]] = {}
    for producer in p.producers:
        for root in np.unique(p.atoms.roots(p.parameters[producer.parameter].labels[producer.dim])).tolist():
            makers.setdefault(root, []).append(producer.parameter)
    return makers


def _group_name(makers: dict[int, list[str]], roots: list[int], producer: Producer, head: bool) -> str:
    module = producer.parameter.removesuffix(".weight")
    if not head:
        return f"{module}:out"
    parameters = dict.fromkeys(name for root in roots for name in makers[root])
    paths = [name.removesuffix(".weight").split(".") for name in parameters]
    common = []
    for parts in zip(*paths, strict=False):
        if len(set(parts)) > 1:
            break
        common.append(parts[0])
    if len({tuple(path) for path in paths}) == 1 and len(common) > 1:
        common = common[:-1]
    return f"{'.'.join(common) or module}:head"


def _unique(name: str, taken: set[str]) -> str:
    candidate, count = name, 1
    while candidate in taken:
        count += 1
        candidate = f"{name}/{count}"
    taken.add(candidate)
    return candidate


def _blocked(p: Propagation, row_of: dict[int, int], lonely: dict[int, str]) -> tuple[tuple[str, str], ...]:
    """(layer, reason) of every producer with channels that must stay, and of every operation that is not understood."""
    found: dict[str, str] = {}
    for producer in p.producers:
        roots = p.atoms.roots(p.parameters[producer.parameter].labels[producer.dim]).tolist()
        distinct = list(dict.fromkeys(roots))
        stuck = [root for root in distinct if root not in row_of]
        if stuck:
            reason = p.atoms.reason(stuck[0]) or lonely.get(stuck[0], "nothing consumes it")
            part = "" if len(stuck) == len(distinct) else f"{len(stuck)} of {len(distinct)} channels: "
            found.setdefault(producer.parameter.removesuffix(".weight"), part + reason)
    nodes = {node.name: node for node in p.traced.graph.nodes} if p.unknown else {}
    for node_name, reason in p.unknown.items():
        node = nodes[node_name]
        for argument in node.all_input_nodes:
            if argument.op == "get_attr" and argument.target in p.parameters:
                owner = argument.target.rpartition(".")[0] or argument.target
                found.setdefault(owner, reason)
    return tuple(found.items())
