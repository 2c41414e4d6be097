"""Counts products of two computed values: attention, einsum, matrix products, weights that are computed."""

from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np
from torch import fx

from compress.dimensions import Labels, Value
from compress.graph import ATEN, LAYER_OPS, is_parameter
from compress.structure import Structure

_MATRIX = (
    ATEN.matmul.default, ATEN.mm.default, ATEN.bmm.default, ATEN.addmm.default, ATEN.baddbmm.default,
)  # fmt: skip
_BIASED = (ATEN.addmm.default, ATEN.baddbmm.default)
# Operations that multiply as much as matrix products do, or more, and are not counted.
UNCOUNTED = (
    "gru", "lstm", "rnn_tanh", "rnn_relu", "gru_cell", "lstm_cell", "rnn_tanh_cell", "rnn_relu_cell", "bilinear",
    "tensordot", "addbmm", "mv", "addmv", "dot", "vdot", "inner", "linalg_multi_dot", "chain_matmul", "cdist",
)  # fmt: skip


@dataclass(frozen=True, eq=False)
class Contraction:
    """One sum of products.

    Attributes:
        macs: of one example.
        dimensions: labels of every dimension that it runs over. MACs are proportional to what stays of each.
    """

    macs: float
    dimensions: tuple[Labels, ...]


def is_product(node: fx.Node) -> bool:
    """Whether `contractions` counts this node."""
    if node.op != "call_function":
        return False
    others = (ATEN.scaled_dot_product_attention.default, ATEN.einsum.default)
    return node.target in (*_MATRIX, *others) or computed_weight(node) is not None


def computed_weight(node: fx.Node) -> fx.Node | None:
    """What a conv or linear node multiplies with, if that is no parameter but computed from some (weight norm)."""
    if LAYER_OPS.get(node.target) not in ("conv", "conv_transpose", "linear") or is_parameter(node.args[1]):
        return None
    return node.args[1]


def product_macs(structure: Structure, node: fx.Node) -> float:
    """MACs of one example in a product of two computed values."""
    return sum(found.macs for found in contractions(structure, node))


def contractions(structure: Structure, node: fx.Node) -> list[Contraction]:
    """The sums of products that a node computes: one, two of attention, one for each pair of an einsum's operands."""
    values, examples = structure.values, example_count(structure, node)
    weight = computed_weight(node)
    if weight is not None:
        transposed = LAYER_OPS[node.target] == "conv_transpose"
        shape = structure.traced.shapes
        positions = node.args[0] if transposed else node
        macs = float(np.prod(shape[positions.name]) * np.prod(shape[weight.name][1:]) / examples)
        value = values[weight.name]
        summed = value.labels[0:1] if transposed else value.labels[1:2]
        return [Contraction(macs, (*summed, *values[node.name].labels))]
    if node.target is ATEN.scaled_dot_product_attention.default:
        out, (q, k, v) = values[node.name], (values[n.name] for n in node.args[:3])
        # Queries may be the same for all examples: what is computed has the leading dimensions of the output.
        outer = np.prod(out.shape[:-1]) * k.shape[-2] / examples
        shared = (*out.labels[:-1], k.labels[-2])
        return [Contraction(float(outer * value.shape[-1]), (value.labels[-1], *shared)) for value in (q, v)]
    if node.target is ATEN.einsum.default:
        return list(_einsum(structure, node, examples))
    first, out = values[node.args[1 if node.target in _BIASED else 0].name], values[node.name]
    return [Contraction(float(np.prod(out.shape) * first.shape[-1] / examples), (first.labels[-1], *out.labels))]


def _einsum(structure: Structure, node: fx.Node, examples: int) -> Iterator[Contraction]:
    """Operands are multiplied pair by pair from the left, and what no later one has is then summed over."""
    left, arrow, right = node.args[0].replace(" ", "").partition("->")
    terms, operands = left.split(","), [structure.values[operand.name] for operand in node.args[1]]
    # Dimensions of an ellipsis get names of their own, counted from behind.
    terms = [_without_ellipsis(term, len(operand.shape)) for term, operand in zip(terms, operands, strict=True)]
    every = [letter for term in terms for letter in term]
    sizes, labels = {}, {}
    for term, operand in zip(terms, operands, strict=True):
        for letter, size, own in zip(term, operand.shape, operand.labels, strict=True):
            sizes[letter] = max(size, sizes.get(letter, 1))
            labels[letter] = own if labels.get(letter) is None else labels[letter]
    if arrow:
        output = set(_without_ellipsis(right, len(structure.values[node.name].shape)))
    else:
        output = {letter for letter in every if every.count(letter) == 1 or len(letter) > 1}
    found = set(terms[0])
    for number, term in enumerate(terms[1:], start=2):
        both = sorted(found.union(term))
        macs = float(np.prod([sizes[letter] for letter in both]) / examples)
        yield Contraction(macs, tuple(labels[letter] for letter in both))
        found = output.union(*terms[number:]).intersection(both)


def _without_ellipsis(term: str, n_dims: int) -> list[str]:
    before, ellipsis, after = term.partition("...")
    hidden = n_dims - len(before) - len(after) if ellipsis else 0
    return [*before, *(f"...{hidden - i}" for i in range(hidden)), *after]


def example_count(structure: Structure, node: fx.Node) -> int:
    """How many examples the value of `node` holds (1 where it does not depend on the inputs)."""
    value = structure.values.get(node.name)
    if isinstance(value, Value):
        for labels in value.batch:
            if labels is not None:
                return len(np.unique(labels))
    if not _depends_on_inputs(node):
        return 1
    return next(
        (
            s[0]
            for n in structure.traced.graph.nodes
            if n.op == "placeholder" and (s := structure.traced.shapes[n.name])
        ),
        1,
    )


def _depends_on_inputs(node: fx.Node) -> bool:
    seen, todo = {node}, [node]
    while todo:
        current = todo.pop()
        if current.op == "placeholder":
            return True
        fresh = set(current.all_input_nodes) - seen
        seen |= fresh
        todo += fresh
    return False
