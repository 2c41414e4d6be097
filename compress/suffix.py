"""The part of a network's graph that a change reaches: what has to be computed again."""

from dataclasses import dataclass

from torch import fx

from compress.graph import ATEN
from compress.structure import Site


@dataclass(frozen=True, eq=False)
class Suffix:
    """The part of a graph that a change reaches.

    Attributes:
        module: the (gated) graph module that holds attributes.
        order: nodes to compute again, in order.
        frontier: names of the dense values they read.
        output: the graph's output node.
        done: node name -> names of values that nothing later reads; freeing them lets memory be used again.
        local: unit row -> column of this suffix's gates.
        direct: consumer name -> site, for linear consumers of untouched inputs: the removed share is subtracted.
        macs: MACs of one example when one unit is removed.
        call_bytes: bytes of the largest value of one example.
        single: whether batches must be tried one by one, because it is unknown where the examples lie (recurrent
            layers).
    """

    module: fx.GraphModule
    order: tuple[fx.Node, ...]
    frontier: tuple[str, ...]
    output: fx.Node
    done: dict[str, tuple[str, ...]]
    local: dict[int, int]
    direct: dict[str, Site]
    macs: float
    call_bytes: int
    single: bool


def counts_examples(graph: fx.Graph, name: str) -> bool:
    """Whether the value of this name is made with the number of examples (zeros for each of them, say)."""
    left = [node for node in graph.nodes if node.name == name]
    seen = set(left)
    while left:
        node = left.pop()
        if node.target is ATEN.sym_size.int and node.args[1] == 0:
            return True
        new = set(node.all_input_nodes) - seen
        seen |= new
        left += new
    return False
