"""Graphs of ten thousand nodes take seconds."""

import time

import torch
from torch import fx, nn

from compress.atoms import Atoms
from compress.graph import ATEN, TracedGraph
from compress.structure import _propagate, _structure

N_BLOCKS, WIDTH = 1700, 8


def residual_chain() -> TracedGraph:
    """The graph of a deep residual network, written down without tracing: 6 nodes a block."""
    root, graph, shapes = nn.Module(), fx.Graph(), {}
    value = (2, WIDTH, 4)

    def note(node: fx.Node, shape: tuple[int, ...]) -> fx.Node:
        shapes[node.name] = shape
        return node

    x = note(graph.placeholder("x"), value)
    for i in range(N_BLOCKS):
        block = nn.Module()
        block.a, block.b = nn.Module(), nn.Module()
        weights = []
        for name in ("a", "b"):
            getattr(block, name).weight = nn.Parameter(torch.zeros(WIDTH, WIDTH, 1))
            weights.append(note(graph.create_node("get_attr", f"block{i}.{name}.weight"), (WIDTH, WIDTH, 1)))
        root.add_module(f"block{i}", block)
        y = note(graph.call_function(ATEN.conv1d.default, (x, weights[0])), value)
        y = note(graph.call_function(ATEN.relu.default, (y,)), value)
        y = note(graph.call_function(ATEN.conv1d.default, (y, weights[1])), value)
        x = note(graph.call_function(ATEN.add.Tensor, (x, y)), value) if i else y
    graph.output(note(graph.call_function(ATEN.mean.dim, (x, [1, 2])), (2,)))
    return TracedGraph(fx.GraphModule(root, graph), (torch.zeros(*value),), {}, shapes, "")


def test_ten_thousand_nodes() -> None:
    traced = residual_chain()
    assert len(traced.graph.nodes) > 10_000
    start = time.process_time()
    structure = _structure(_propagate(traced))
    seconds = time.process_time() - start
    # One group within each block and the stream that all of them write.
    assert len(structure.units.groups) == N_BLOCKS + 1
    assert structure.n_removable == (N_BLOCKS + 1) * WIDTH
    # About two seconds where this was written; a step in the square of the number of nodes takes minutes.
    assert seconds < 30


def test_joins_take_linear_time() -> None:
    """A chain joined from its far end, the worst order for a union-find without short cuts."""
    atoms = Atoms()
    labels = atoms.new(200_000)
    start = time.process_time()
    for first in range(len(labels) - 1000, 0, -1000):
        atoms.join(labels[first - 1 : first + 999], labels[first : first + 1000])
    assert time.process_time() - start < 10
    assert len(set(atoms.roots(labels[999:]).tolist())) == 1
