"""Operations that sum over a dimension of their inputs and make channels: products, convolutions, attention."""

from typing import Any

import numpy as np
from torch import fx

from compress.dimensions import Value
from compress.graph import ATEN, argument, is_parameter
from compress.propagation import Propagation, rule


@rule(ATEN.linear.default)
def linear(p: Propagation, node: fx.Node) -> Value:
    """`x @ weight.T + bias`: the last dimension is summed over, the rows of the weight make channels."""
    x, weight, bias = p.value(node.args[0]), p.value(node.args[1]), p.value(argument(node, 2, "bias"))
    p.use(node, 0, len(x.shape) - 1, p.join(x.labels[-1], weight.labels[1], node))
    out = weight.labels[0]
    if isinstance(bias, Value):
        out = p.join(out, bias.labels[0], node)
    p.produce(node, node.args[1], 0)
    return x.replace(len(x.shape) - 1, weight.shape[0], out)


@rule(ATEN.conv1d.default, ATEN.conv2d.default, ATEN.conv3d.default, ATEN.conv1d.padding, ATEN.conv2d.padding,
      ATEN.conv3d.padding)  # fmt: skip
def convolution(p: Propagation, node: fx.Node) -> Any:
    """Dense, grouped and depthwise convolution."""
    return _convolve(p, node, argument(node, 6, "groups", 1), transposed=False)


@rule(ATEN.conv_transpose1d.default, ATEN.conv_transpose2d.input, ATEN.conv_transpose3d.input)
def transposed_convolution(p: Propagation, node: fx.Node) -> Any:
    """Transposed convolution: the weight is (in, out / groups, ...)."""
    return _convolve(p, node, argument(node, 6, "groups", 1), transposed=True)


def _convolve(p: Propagation, node: fx.Node, groups: int, transposed: bool) -> Any:
    x, weight, bias = p.value(node.args[0]), p.value(node.args[1]), p.value(argument(node, 2, "bias"))
    shape = p.shape(node)
    if len(x.shape) != len(weight.shape):
        return p.unknown_operation(node, "a convolution without a batch dimension")
    for dim in range(2, len(x.shape)):
        p.block(x.labels[dim], f"it is a spatial dimension at '{node.name}'")
    out = x.labels[1]
    if groups == 1:
        inner, outer = (0, 1) if transposed else (1, 0)
        p.use(node, 0, 1, p.join(x.labels[1], weight.labels[inner], node))
        out = weight.labels[outer]
        p.produce(node, node.args[1], outer)
    else:
        out = _convolve_groups(p, node, x, weight, groups, transposed)
    if isinstance(bias, Value):
        out = p.join(out, bias.labels[0], node)
    batch = x.batch[:1] + (None,) * (len(shape) - 1)
    return Value(shape, (x.labels[0], out, *(None,) * (len(shape) - 2)), batch)


def _convolve_groups(p: Propagation, node: fx.Node, x: Value, weight: Value, groups: int, transposed: bool) -> Any:
    """Whole groups go together with their inputs; or, as the second choice, the same index within every group."""
    n_in, n_out = x.shape[1], p.shape(node)[1]
    incoming = x.labels[1]
    rows, inner = (weight.labels[0], weight.labels[1])
    if rows is None or inner is None:
        p.block(incoming, f"it meets a weight that is computed at '{node.name}'")
        p.block(weight, f"it is part of a weight that is computed at '{node.name}'")
        return None
    per_in, per_out = n_in // groups, n_out // groups
    if incoming is None:
        p.block(rows if transposed else inner, f"it meets a fixed dimension at '{node.name}'")
        return _same_in_every_group(p, node, rows, inner, groups, transposed)
    choice = 0
    if per_in > 1:
        choice = p.merge(node, ":groups").choose([groups, per_in], incoming)
    if choice == 0:
        grid = incoming.reshape(groups, per_in)
        p.atoms.join(np.repeat(grid[:, :1], per_in, axis=1), grid)
        p.block(inner, f"it lies within a group of '{node.name}'")
        lead = p.atoms.roots(grid[:, 0])
        p.atoms.join(rows.reshape(groups, -1), np.repeat(lead[:, None], len(rows) // groups, axis=1))
        return np.repeat(lead, per_out)
    grid = incoming.reshape(groups, per_in)
    p.atoms.join(np.repeat(grid[:1], groups, axis=0), grid)
    p.atoms.join(rows.reshape(groups, per_in) if transposed else inner, grid if transposed else grid[0])
    p.use(node, 0, 1, incoming)
    return _same_in_every_group(p, node, rows, inner, groups, transposed)


def _same_in_every_group(
    p: Propagation, node: fx.Node, rows: np.ndarray, inner: np.ndarray, groups: int, transposed: bool
) -> np.ndarray:
    """Outputs of a grouped convolution of which every group loses the same ones."""
    p.produce(node, node.args[1], 1 if transposed else 0)
    if transposed:
        return np.tile(inner, groups)
    columns = rows.reshape(groups, -1)
    p.atoms.join(np.repeat(columns[:1], groups, axis=0), columns)
    return rows


@rule(ATEN._weight_norm.default)
def weight_norm(p: Propagation, node: fx.Node) -> Any:
    """A weight made of directions and lengths: one length for each index of one dimension, of all the others."""
    v, g, kept = p.value(node.args[0]), p.value(node.args[1]), argument(node, 2, "dim", 0)
    for dim, labels in enumerate(v.labels):
        if dim != kept:
            p.block(labels, f"its weight is normalised over it at '{node.name}': fold the parametrization first")
    return v.replace(kept, v.shape[kept], p.join(v.labels[kept], g.labels[kept], node))


@rule(ATEN.embedding.default)
def embedding(p: Propagation, node: fx.Node) -> Value:
    """Rows are looked up by number and must stay; columns are channels."""
    weight, index = p.value(node.args[0]), p.value(node.args[1])
    p.block(weight.labels[0], "its rows are looked up by index")
    p.produce(node, node.args[0], 1)
    return index.insert(len(index.shape), weight.shape[1], weight.labels[1])


@rule(ATEN.matmul.default, ATEN.mm.default, ATEN.bmm.default, ATEN.mv.default, ATEN.dot.default)
def matmul(p: Propagation, node: fx.Node) -> Any:
    """Matrix product over the last dimension of the first and the last but one of the second."""
    a, b = p.value(node.args[0]), p.value(node.args[1])
    if len(a.shape) == 1 or len(b.shape) == 1:
        p.use(node, 0, len(a.shape) - 1, p.join(a.labels[-1], b.labels[-2:][0], node))
        return a.drop(len(a.shape) - 1) if len(b.shape) == 1 else b.drop(len(b.shape) - 2)
    p.use(node, 0, len(a.shape) - 1, p.join(a.labels[-1], b.labels[-2], node))
    both_computed = not is_parameter(node.args[0]) and not is_parameter(node.args[1])
    p.produce(node, node.args[1], len(b.shape) - 1)
    p.produce(node, node.args[0], len(a.shape) - 2)
    shape = p.shape(node)
    outer = p.align(node, [v.pick(range(len(v.shape) - 2)) for v in (a, b)], shape[:-2])
    if both_computed and len(outer.atoms):
        p.atoms.attention.update(outer.atoms.tolist())
    row = a.pick([len(a.shape) - 2])
    column = b.pick([len(b.shape) - 1])
    return Value(shape, (*outer.labels, *row.labels, *column.labels), (*outer.batch, *row.batch, *column.batch))


@rule(ATEN.outer.default)
def outer(p: Propagation, node: fx.Node) -> Value:
    """Every element of one vector times every element of another."""
    a, b = p.value(node.args[0]), p.value(node.args[1])
    return a.insert(1, b.shape[0], b.labels[0], b.batch[0])


@rule(ATEN.addmm.default)
def addmm(p: Propagation, node: fx.Node) -> Value:
    """`bias + a @ b`."""
    bias, a, b = (p.value(n) for n in node.args[:3])
    p.use(node, 1, 1, p.join(a.labels[1], b.labels[0], node))
    p.produce(node, node.args[2], 1)
    product = Value(p.shape(node), (a.labels[0], b.labels[1]), (a.batch[0], b.batch[1]))
    return p.align(node, [product, bias], product.shape)


@rule(ATEN.baddbmm.default)
def baddbmm(p: Propagation, node: fx.Node) -> Value:
    """`bias + a @ b` of batches: scores of attention with a mask, of every head."""
    bias, a, b = (p.value(n) for n in node.args[:3])
    p.use(node, 1, 2, p.join(a.labels[2], b.labels[1], node))
    shape = p.shape(node)
    outer = p.align(node, [v.pick([0]) for v in (a, b)], shape[:1])
    if len(outer.atoms):
        p.atoms.attention.update(outer.atoms.tolist())
    row, column = a.pick([1]), b.pick([2])
    product = Value(shape, (*outer.labels, *row.labels, *column.labels), (*outer.batch, *row.batch, *column.batch))
    return p.align(node, [product, bias], shape)


@rule(ATEN.einsum.default)
def einsum(p: Propagation, node: fx.Node) -> Any:
    """Equal letters are joined; letters that do not come out are summed over."""
    equation = node.args[0].replace(" ", "")
    operands = list(node.args[1])
    left, _, right = equation.partition("->")
    terms = left.split(",")
    if "." in equation or not right or any(len(set(term)) != len(term) for term in terms):
        return p.unknown_operation(node, "an einsum with an ellipsis or a repeated letter")
    labels: dict[str, Any] = {}
    batch: dict[str, Any] = {}
    for term, operand in zip(terms, operands, strict=True):
        value = p.value(operand)
        for dim, letter in enumerate(term):
            labels[letter] = p.join(labels[letter], value.labels[dim], node) if letter in labels else value.labels[dim]
            batch[letter] = value.batch[dim] if batch.get(letter) is None else batch[letter]
        for letter in set(term) & set(right):
            if sum(letter in other for other in terms) == 1:
                p.produce(node, operand, term.index(letter))
    for letter in dict.fromkeys(left.replace(",", "")):
        if letter not in right and labels[letter] is not None:
            _sum_over(p, node, letter, labels[letter], terms)
    if len(operands) == 2 and not any(map(is_parameter, operands)):
        shared = [labels[x] for x in set(terms[0]) & set(terms[1]) & set(right) if labels[x] is not None]
        p.atoms.attention.update(atom for found in shared for atom in found.tolist())
    return Value(p.shape(node), tuple(labels[x] for x in right), tuple(batch[x] for x in right))


def _sum_over(p: Propagation, node: fx.Node, letter: str, labels: np.ndarray, terms: list[str]) -> None:
    """A letter that does not come out: its channels are silenced in the first computed operand that has it."""
    for term, operand in zip(terms, node.args[1], strict=True):
        if letter in term and operand.target is ATEN.alias.default:
            p.use(operand, 0, term.index(letter), labels)
            return
    p.block(labels, f"only parameters are summed over at '{node.name}'")


@rule(ATEN.scaled_dot_product_attention.default)
def attention(p: Propagation, node: fx.Node) -> Any:
    """Heads (and other leading dimensions) go together; the query-key dimension is summed over."""
    q, k, v = (p.value(n) for n in node.args[:3])
    if argument(node, 7, "enable_gqa", False) or k.shape[-3:-2] != q.shape[-3:-2]:
        k, v = (_repeat_heads(value, q.shape[-3] // value.shape[-3]) for value in (k, v))
    p.use(node, 0, len(q.shape) - 1, p.join(q.labels[-1], k.labels[-1], node))
    p.block(p.join(k.labels[-2], v.labels[-2], node), "attention sums over it")
    shape = p.shape(node)
    leading = [value.pick(range(len(value.shape) - 2)) for value in (q, k, v)]
    mask = p.value(argument(node, 3, "attn_mask"))
    if isinstance(mask, Value):
        leading.append(mask.pick(range(len(mask.shape) - 2)))
    outer = p.align(node, leading, shape[:-2])
    p.atoms.attention.update(outer.atoms.tolist())
    return Value(shape, (*outer.labels, q.labels[-2], v.labels[-1]), (*outer.batch, q.batch[-2], v.batch[-1]))


def _repeat_heads(value: Value, times: int) -> Value:
    dim = len(value.shape) - 3
    if value.shape[dim] == 1:
        return value  # the one head of multi-query attention is broadcast
    labels = None if value.labels[dim] is None else np.repeat(value.labels[dim], times)
    return value.replace(dim, value.shape[dim] * times, labels, value.batch[dim])
