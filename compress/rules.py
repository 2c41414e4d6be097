"""How dimensions pass through each operation: one rule per kind of operation, none per architecture."""

import operator
from typing import Any

import numpy as np
from torch import fx

from compress.dimensions import Value, reshape
from compress.graph import ATEN, is_parameter
from compress.propagation import Propagation, rule


def argument(node: fx.Node, position: int, name: str, default: Any = None) -> Any:
    """An argument of a call, given by position or by name."""
    return node.args[position] if len(node.args) > position else node.kwargs.get(name, default)


# -- elementwise and pass-through ------------------------------------------------------------------------------------


@rule("pointwise", ATEN.where.self, ATEN.masked_fill.Scalar, ATEN.masked_fill.Tensor)
def broadcast(p: Propagation, node: fx.Node) -> Any:
    """Elementwise: dimensions are aligned from the right; equal sizes are joined."""
    shape = p.shape(node)
    if not isinstance(shape, tuple):
        return None
    inputs = [value for value in map(p.value, node.all_input_nodes) if isinstance(value, Value)]
    return align(p, node, inputs, shape)


def align(p: Propagation, node: fx.Node, inputs: list[Value], shape: tuple[int, ...]) -> Value:
    """Broadcast values to `shape`, joining the labels that meet."""
    labels: list[Any] = [None] * len(shape)
    batch: list[Any] = [None] * len(shape)
    for back in range(1, len(shape) + 1):
        full = [v for v in inputs if len(v.shape) >= back and v.shape[-back] == shape[-back]]
        for value in inputs:
            if value not in full and len(value.shape) >= back:
                p.block(value.labels[-back], f"it is broadcast at '{node.name}'")
        if full:
            merged = full[0].labels[-back]
            for value in full[1:]:
                merged = p.join(merged, value.labels[-back], node)
            labels[-back] = merged
            batch[-back] = next((v.batch[-back] for v in full if v.batch[-back] is not None), None)
    return Value(tuple(shape), tuple(labels), tuple(batch))


@rule(ATEN.dropout.default, ATEN.feature_dropout.default, ATEN.alpha_dropout.default, ATEN.contiguous.default,
      ATEN.clone.default, ATEN.alias.default, ATEN.detach.default, ATEN.detach_.default, ATEN.to.dtype,
      ATEN.to.dtype_layout, ATEN.to.device, ATEN.to.other, ATEN._to_copy.default, ATEN.type_as.default,
      ATEN.lift_fresh_copy.default, ATEN.zeros_like.default, ATEN.ones_like.default, ATEN.full_like.default,
      ATEN.empty_like.default)  # fmt: skip
def keep(p: Propagation, node: fx.Node) -> Any:
    """The first input's dimensions."""
    return p.value(node.args[0])


@rule(operator.getitem)
def item(p: Propagation, node: fx.Node) -> Any:
    """One of several outputs."""
    value = p.value(node.args[0])
    return value[node.args[1]] if isinstance(value, (tuple, list)) else None


@rule(ATEN.prelu.default)
def prelu(p: Propagation, node: fx.Node) -> Value:
    """One slope per channel (dim 1), or one for all."""
    x, weight = p.value(node.args[0]), p.value(node.args[1])
    if weight is None or weight.shape[0] == 1:
        return x
    return x.replace(1, x.shape[1], p.join(x.labels[1], weight.labels[0], node), x.batch[1])


# -- contractions ----------------------------------------------------------------------------------------------------


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
    if incoming is None:
        p.block(weight, f"it meets a fixed dimension at '{node.name}'")
        return None
    per_in, per_out = n_in // groups, n_out // groups
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
    same_in, same_out = (rows, inner) if transposed else (inner, rows)
    if transposed:
        p.atoms.join(same_in.reshape(groups, per_in), grid)
        out = np.tile(same_out, groups)
        p.produce(node, node.args[1], 1)
    else:
        p.atoms.join(same_in, grid[0])
        columns = same_out.reshape(groups, per_out)
        p.atoms.join(np.repeat(columns[:1], groups, axis=0), columns)
        out = same_out
        p.produce(node, node.args[1], 0)
    p.use(node, 0, 1, incoming)
    return out


@rule(ATEN.embedding.default)
def embedding(p: Propagation, node: fx.Node) -> Value:
    """Rows are looked up by number and must stay; columns are channels."""
    weight, index = p.value(node.args[0]), p.value(node.args[1])
    p.block(weight.labels[0], "its rows are looked up by index")
    p.produce(node, node.args[0], 1)
    return index.insert(len(index.shape), weight.shape[1], weight.labels[1])


@rule(ATEN.matmul.default, ATEN.mm.default, ATEN.bmm.default)
def matmul(p: Propagation, node: fx.Node) -> Any:
    """Matrix product over the last dimension of the first and the last but one of the second."""
    a, b = p.value(node.args[0]), p.value(node.args[1])
    if len(a.shape) < 2 or len(b.shape) < 2:
        return p.unknown_operation(node, "a product with a vector")
    p.use(node, 0, len(a.shape) - 1, p.join(a.labels[-1], b.labels[-2], node))
    both_computed = not is_parameter(node.args[0]) and not is_parameter(node.args[1])
    p.produce(node, node.args[1], len(b.shape) - 1)
    p.produce(node, node.args[0], len(a.shape) - 2)
    shape = p.shape(node)
    outer = align(p, node, [v.pick(range(len(v.shape) - 2)) for v in (a, b)], shape[:-2])
    if both_computed and len(outer.atoms):
        p.atoms.attention.update(outer.atoms.tolist())
    row = a.pick([len(a.shape) - 2])
    column = b.pick([len(b.shape) - 1])
    return Value(shape, (*outer.labels, *row.labels, *column.labels), (*outer.batch, *row.batch, *column.batch))


@rule(ATEN.addmm.default)
def addmm(p: Propagation, node: fx.Node) -> Value:
    """`bias + a @ b`."""
    bias, a, b = (p.value(n) for n in node.args[:3])
    p.use(node, 1, 1, p.join(a.labels[1], b.labels[0], node))
    p.produce(node, node.args[2], 1)
    product = Value(p.shape(node), (a.labels[0], b.labels[1]), (a.batch[0], b.batch[1]))
    return align(p, node, [product, bias], product.shape)


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
            p.block(labels[letter], "it is summed over in an einsum")
    if len(operands) == 2 and not any(map(is_parameter, operands)):
        shared = [labels[x] for x in set(terms[0]) & set(terms[1]) & set(right) if labels[x] is not None]
        p.atoms.attention.update(atom for found in shared for atom in found.tolist())
    return Value(p.shape(node), tuple(labels[x] for x in right), tuple(batch[x] for x in right))


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
    outer = align(p, node, leading, shape[:-2])
    p.atoms.attention.update(outer.atoms.tolist())
    return Value(shape, (*outer.labels, q.labels[-2], v.labels[-1]), (*outer.batch, q.batch[-2], v.batch[-1]))


def _repeat_heads(value: Value, times: int) -> Value:
    dim = len(value.shape) - 3
    labels = None if value.labels[dim] is None else np.repeat(value.labels[dim], times)
    return value.replace(dim, value.shape[dim] * times, labels, value.batch[dim])


# -- normalisation and reduction -------------------------------------------------------------------------------------


@rule(ATEN.batch_norm.default, ATEN.instance_norm.default)
def batch_norm(p: Propagation, node: fx.Node) -> Value:
    """Each channel (dim 1) is normalised by itself, with its own entry of each parameter."""
    x = p.value(node.args[0])
    labels = x.labels[1]
    for parameter in node.args[1:5]:
        if isinstance(p.value(parameter), Value):
            labels = p.join(labels, p.value(parameter).labels[0], node)
    return x.replace(1, x.shape[1], labels, x.batch[1])


@rule(ATEN.layer_norm.default, ATEN.rms_norm.default)
def layer_norm(p: Propagation, node: fx.Node) -> Value:
    """The last dimensions are normalised together: removed channels must not count."""
    x = p.value(node.args[0])
    n_dims = len(node.args[1])
    labels = list(x.labels)
    for parameter in node.args[2:4]:
        if isinstance(p.value(parameter), Value):
            for back in range(1, n_dims + 1):
                labels[-back] = p.join(labels[-back], p.value(parameter).labels[-back], node)
    for dim in range(len(x.shape) - n_dims, len(x.shape)):
        p.use(node, 0, dim, labels[dim])
    return Value(x.shape, tuple(labels), x.batch)


@rule(ATEN.group_norm.default)
def group_norm(p: Propagation, node: fx.Node) -> Value:
    """Groups of channels are normalised together: whole groups go, or the same index within every group."""
    x, groups = p.value(node.args[0]), node.args[1]
    labels = x.labels[1]
    for parameter in node.args[2:4]:
        if isinstance(p.value(parameter), Value):
            labels = p.join(labels, p.value(parameter).labels[0], node)
    size = x.shape[1] // groups
    if labels is not None and size > 1:
        if groups > 1:
            grid = labels.reshape(groups, size)
            whole = p.merge(node, ":groups").choose([groups, size], labels) == 0
            lead = np.repeat(grid[:, :1], size, axis=1) if whole else np.repeat(grid[:1], groups, axis=0)
            p.atoms.join(lead, grid)
        p.use(node, 0, 1, labels)
    return x.replace(1, x.shape[1], labels, x.batch[1])


REDUCTIONS = (ATEN.mean.dim, ATEN.sum.dim_IntList, ATEN.amax.default, ATEN.amin.default, ATEN.mean.default,
              ATEN.sum.default, ATEN.linalg_vector_norm.default)  # fmt: skip
PLAIN_REDUCTIONS = (ATEN.max.dim, ATEN.min.dim, ATEN.argmax.default, ATEN.prod.dim_int, ATEN.var.correction,
                    ATEN.std.correction, ATEN.any.dim, ATEN.all.dim, ATEN.logsumexp.default, ATEN.var.dim,
                    ATEN.std.dim)  # fmt: skip


@rule(*REDUCTIONS, *PLAIN_REDUCTIONS)
def reduction(p: Propagation, node: fx.Node) -> Any:
    """Sums, means and maxima over some dimensions."""
    x = p.value(node.args[0])
    position = 2 if node.target is ATEN.linalg_vector_norm.default else 1
    dims = argument(node, position, "dim")
    dims = range(len(x.shape)) if dims is None or dims == [] else [dims] if isinstance(dims, int) else dims
    dims = [x.axis(d) for d in dims]
    labelled = [d for d in dims if x.labels[d] is not None]
    if labelled and node.target in PLAIN_REDUCTIONS:
        return p.unknown_operation(node, f"'{node.target.__name__}' reduces over it")
    for dim in labelled:
        p.use(node, 0, dim, x.labels[dim])

    def reduced(shape: tuple[int, ...]) -> Value:
        kept = x
        if len(shape) == len(x.shape):
            for dim in dims:
                kept = kept.replace(dim, 1, None)
            return kept
        return x.pick([d for d in range(len(x.shape)) if d not in dims])

    shape = p.shape(node)
    several = bool(shape) and isinstance(shape[0], tuple)
    return tuple(reduced(s) for s in shape) if several else reduced(shape)


@rule(ATEN.softmax.int, ATEN.log_softmax.int, ATEN._softmax.default, ATEN._log_softmax.default)
def softmax(p: Propagation, node: fx.Node) -> Any:
    """Normalises over one dimension: removed channels must not take part."""
    x = p.value(node.args[0])
    p.use(node, 0, x.axis(node.args[1]), x.labels[node.args[1]])
    return x


@rule(ATEN.cumsum.default, ATEN.sort.default, ATEN.triu.default, ATEN.tril.default, ATEN.flip.default)
def along_one_dimension(p: Propagation, node: fx.Node) -> Any:
    """Shape-preserving operations that mix positions: fine where those are no channels."""
    x = p.value(node.args[0])
    dims = argument(node, 1, "dim", -1) if node.target in (ATEN.cumsum.default, ATEN.flip.default) else None
    dims = [dims] if isinstance(dims, int) else dims if dims is not None else range(len(x.shape))
    if any(x.labels[d] is not None for d in dims):
        return p.unknown_operation(node)
    return x if isinstance(p.shape(node), tuple) and p.shape(node) == x.shape else p.plain(node, p.shape(node))


def _keeps_leading(n_spatial: int) -> Any:
    def spatial(p: Propagation, node: fx.Node) -> Any:
        """Pooling and resizing act on space only."""
        x = p.value(node.args[0])
        for dim in range(len(x.shape) - n_spatial, len(x.shape)):
            p.block(x.labels[dim], f"it is a spatial dimension at '{node.name}'")

        def out(shape: tuple[int, ...]) -> Value:
            lead = len(shape) - n_spatial
            return Value(shape, x.labels[:lead] + (None,) * n_spatial, x.batch[:lead] + (None,) * n_spatial)

        shape = p.shape(node)
        return tuple(out(s) for s in shape) if isinstance(shape[0], tuple) else out(shape)

    return spatial


for _n in (1, 2, 3):
    for _name in ("max_pool{}d", "avg_pool{}d", "adaptive_avg_pool{}d", "adaptive_max_pool{}d", "max_pool{}d_with_indices",
                  "upsample_nearest{}d", "reflection_pad{}d", "replication_pad{}d", "upsample_linear{}d",
                  "_adaptive_avg_pool{}d", "upsample_bilinear{}d", "upsample_bicubic{}d", "_upsample_nearest_exact{}d",
                  "upsample_trilinear{}d", "lp_pool{}d"):  # fmt: skip
        _packet = getattr(ATEN, _name.format(_n), None)
        if _packet is not None:
            rule(*(getattr(_packet, overload) for overload in _packet.overloads()))(_keeps_leading(_n))


# -- views -----------------------------------------------------------------------------------------------------------

RESHAPES = (ATEN.view.default, ATEN.reshape.default, ATEN.flatten.using_ints, ATEN.unflatten.int,
            ATEN.unsqueeze.default, ATEN.squeeze.dim, ATEN.squeeze.default, ATEN.squeeze.dims, ATEN._unsafe_view.default,
            ATEN.view_as.default, ATEN.reshape_as.default)  # fmt: skip


@rule(*RESHAPES)
def view(p: Propagation, node: fx.Node) -> Value:
    """Splits and merges dimensions."""
    return reshape(p.value(node.args[0]), p.shape(node), p.merge(node))


@rule(ATEN.permute.default)
def permute(p: Propagation, node: fx.Node) -> Value:
    """Reorders dimensions."""
    x = p.value(node.args[0])
    return x.pick([x.axis(d) for d in node.args[1]])


@rule(ATEN.transpose.int, ATEN.swapaxes.default, ATEN.t.default, ATEN.numpy_T.default, ATEN.mT.default)
def transpose(p: Propagation, node: fx.Node) -> Value:
    """Swaps two dimensions."""
    x = p.value(node.args[0])
    order = list(range(len(x.shape)))
    a, b = (x.axis(d) for d in node.args[1:3]) if len(node.args) > 2 else (len(order) - 2, len(order) - 1)
    order[a], order[b] = order[b], order[a]
    return x.pick(order)


@rule(ATEN.movedim.int)
def movedim(p: Propagation, node: fx.Node) -> Value:
    """Moves one dimension."""
    x = p.value(node.args[0])
    order = [d for d in range(len(x.shape)) if d != x.axis(node.args[1])]
    order.insert(x.axis(node.args[2]), x.axis(node.args[1]))
    return x.pick(order)


@rule(ATEN.expand.default, ATEN.expand_as.default)
def expand(p: Propagation, node: fx.Node) -> Value:
    """Repeats dimensions of size one without copying."""
    x, shape = p.value(node.args[0]), p.shape(node)
    lead = len(shape) - len(x.shape)
    labels: list[Any] = [None] * lead
    batch: list[Any] = [None] * lead
    for dim, size in enumerate(shape[lead:]):
        same = x.shape[dim] == size
        if not same:
            p.block(x.labels[dim], f"it is repeated at '{node.name}'")
        labels.append(x.labels[dim] if same else None)
        batch.append(x.batch[dim] if same else None)
    value = Value(shape, tuple(labels), tuple(batch))
    batched = p.plain(node, shape)
    if all(b is None for b in value.batch) and any(b is not None for b in batched.batch):
        return Value(shape, value.labels, batched.batch)
    return value


@rule(ATEN.repeat.default)
def repeat(p: Propagation, node: fx.Node) -> Value:
    """Tiles dimensions."""
    x, shape = p.value(node.args[0]), p.shape(node)
    lead = len(shape) - len(x.shape)
    labels: list[Any] = [None] * lead
    for dim, size in enumerate(shape[lead:]):
        found = x.labels[dim]
        labels.append(None if found is None else np.tile(found, size // x.shape[dim]))
    batch = p.plain(node, shape).batch
    return Value(shape, tuple(labels), batch)


@rule(ATEN.repeat_interleave.self_int)
def repeat_interleave(p: Propagation, node: fx.Node) -> Value:
    """Repeats each index of one dimension."""
    x, times = p.value(node.args[0]), node.args[1]
    dim = x.axis(argument(node, 2, "dim", 0))
    again = [None if part is None else np.repeat(part, times) for part in (x.labels[dim], x.batch[dim])]
    return x.replace(dim, x.shape[dim] * times, *again)


@rule(ATEN.cat.default, ATEN.concat.default)
def concatenate(p: Propagation, node: fx.Node) -> Value:
    """Puts dimensions behind each other; the other dimensions are joined."""
    parts = [p.value(n) for n in node.args[0]]
    parts = [v for v in parts if len(v.shape) == len(p.shape(node))]
    dim = parts[0].axis(argument(node, 1, "dim", 0))
    labels = None
    if any(v.labels[dim] is not None for v in parts):
        labels = np.concatenate(
            [_fixed(p, v.shape[dim], node) if v.labels[dim] is None else v.labels[dim] for v in parts]
        )
    rest = align(p, node, [v.drop(dim) for v in parts], tuple(s for d, s in enumerate(p.shape(node)) if d != dim))
    return rest.insert(dim, p.shape(node)[dim], labels)


def _fixed(p: Propagation, size: int, node: fx.Node) -> np.ndarray:
    atoms = p.atoms.new(size)
    p.block(atoms, f"it is a fixed part at '{node.name}'")
    return atoms


@rule(ATEN.stack.default)
def stack(p: Propagation, node: fx.Node) -> Value:
    """A new dimension over equal values."""
    parts = [p.value(n) for n in node.args[0]]
    out = align(p, node, parts, parts[0].shape)
    dim = argument(node, 1, "dim", 0) % len(p.shape(node))
    return out.insert(dim, len(parts))


@rule(
    ATEN.chunk.default, ATEN.split.Tensor, ATEN.split_with_sizes.default, ATEN.split.sizes, ATEN.tensor_split.sections
)
def split(p: Propagation, node: fx.Node) -> tuple[Value, ...]:
    """Cuts one dimension into pieces."""
    x = p.value(node.args[0])
    dim = x.axis(argument(node, 2, "dim", 0))
    pieces, start = [], 0
    for shape in p.shape(node):
        stop = start + shape[dim]
        parts = [None if part is None else part[start:stop] for part in (x.labels[dim], x.batch[dim])]
        pieces.append(x.replace(dim, shape[dim], *parts))
        start = stop
    return tuple(pieces)


@rule(ATEN.glu.default)
def glu(p: Propagation, node: fx.Node) -> Value:
    """The first half times the gate of the second half."""
    x = p.value(node.args[0])
    dim = x.axis(argument(node, 1, "dim", -1))
    half = x.shape[dim] // 2
    labels = x.labels[dim]
    if labels is not None:
        p.atoms.join(labels[:half], labels[half:])
        labels = labels[:half]
    return x.replace(dim, half, labels)


@rule(ATEN.unbind.int)
def unbind(p: Propagation, node: fx.Node) -> tuple[Value, ...]:
    """Every index of a dimension by itself."""
    x = p.value(node.args[0])
    dim = x.axis(argument(node, 1, "dim", 0))
    p.block(x.labels[dim], f"'{node.name}' reads it by its number")
    return tuple(x.drop(dim) for _ in p.shape(node))


@rule(ATEN.select.int)
def select(p: Propagation, node: fx.Node) -> Value:
    """One index of a dimension."""
    x = p.value(node.args[0])
    dim = x.axis(node.args[1])
    if x.labels[dim] is not None and isinstance(node.args[2], int):
        p.block(x.labels[dim][node.args[2] : node.args[2] + 1 or None], f"'{node.name}' reads it by its number")
    return x.drop(dim)


@rule(ATEN.slice.Tensor)
def cut(p: Propagation, node: fx.Node) -> Any:
    """A range of a dimension."""
    x = p.value(node.args[0])
    dim = x.axis(argument(node, 1, "dim", 0))
    start, stop, step = (argument(node, i, n, d) for i, n, d in ((2, "start", None), (3, "end", None), (4, "step", 1)))
    if x.labels[dim] is None and x.batch[dim] is None:
        return x.replace(dim, p.shape(node)[dim], None)
    if not all(bound is None or isinstance(bound, int) for bound in (start, stop, step)):
        return p.unknown_operation(node, "it is sliced by a computed range")
    bounds = slice(start, stop, step)
    parts = [None if part is None else part[bounds] for part in (x.labels[dim], x.batch[dim])]
    if parts[1] is not None and len(parts[1]) != x.shape[dim]:
        parts[1] = None
    return x.replace(dim, p.shape(node)[dim], *parts)


@rule(ATEN.index.Tensor)
def index(p: Propagation, node: fx.Node) -> Any:
    """Picks by computed numbers: indexed dimensions must be no channels."""
    x, picks = p.value(node.args[0]), node.args[1]
    indexed = [d for d, pick in enumerate(picks) if pick is not None]
    for dim in indexed:
        p.block(x.labels[dim], f"'{node.name}' reads it by computed numbers")
    contiguous = indexed == list(range(indexed[0], indexed[-1] + 1))
    if not contiguous:
        return p.unknown_operation(node)
    n_new = len(p.shape(node)) - (len(x.shape) - len(indexed))
    out = x.pick([d for d in range(len(x.shape)) if d not in indexed])
    for offset in range(n_new):
        dim = indexed[0] + offset
        out = out.insert(dim, p.shape(node)[dim])
    batched = p.plain(node, p.shape(node))
    return out if any(b is not None for b in out.batch) else Value(out.shape, out.labels, batched.batch)


@rule(ATEN.pixel_shuffle.default)
def pixel_shuffle(p: Propagation, node: fx.Node) -> Value:
    """Moves r x r channels of every pixel into space."""
    x, r = p.value(node.args[0]), node.args[1]
    b, c, h, w = x.shape
    split_up = reshape(x, (b, c // r**2, r, r, h, w), p.merge(node))
    return reshape(split_up.pick([0, 1, 4, 2, 5, 3]), p.shape(node), p.merge(node))


@rule(ATEN.pixel_unshuffle.default)
def pixel_unshuffle(p: Propagation, node: fx.Node) -> Value:
    """Moves r x r pixels into channels."""
    x, r = p.value(node.args[0]), node.args[1]
    b, c, h, w = x.shape
    split_up = reshape(x, (b, c, h // r, r, w // r, r), p.merge(node))
    return reshape(split_up.pick([0, 1, 3, 5, 2, 4]), p.shape(node), p.merge(node))


@rule(ATEN.channel_shuffle.default)
def channel_shuffle(p: Propagation, node: fx.Node) -> Value:
    """Interleaves the channels of the groups."""
    x, groups = p.value(node.args[0]), node.args[1]
    b, c, *space = x.shape
    split_up = reshape(x, (b, groups, c // groups, *space), p.merge(node))
    order = [0, 2, 1, *range(3, 3 + len(space))]
    return reshape(split_up.pick(order), x.shape, p.merge(node))


@rule(ATEN.pad.default, ATEN.constant_pad_nd.default)
def pad(p: Propagation, node: fx.Node) -> Any:
    """Pads dimensions; padded channels belong to whatever they are added to."""
    x, amounts = p.value(node.args[0]), node.args[1]
    out = x
    for k in range(len(amounts) // 2):
        dim = len(x.shape) - 1 - k
        before, after = amounts[2 * k], amounts[2 * k + 1]
        if before == 0 and after == 0:
            continue
        labels = x.labels[dim]
        constant = argument(node, 2, "mode", "constant") == "constant" or node.target is ATEN.constant_pad_nd.default
        if labels is None or not constant or before < 0 or after < 0:
            p.block(labels, f"it is padded at '{node.name}'")
            labels = None
        else:
            labels = np.concatenate([p.atoms.new(before), labels, p.atoms.new(after)])
        out = out.replace(dim, p.shape(node)[dim], labels)
    return out


@rule(ATEN.zeros.default, ATEN.ones.default, ATEN.full.default, ATEN.empty.memory_format, ATEN.new_zeros.default,
      ATEN.new_ones.default, ATEN.new_full.default)  # fmt: skip
def create(p: Propagation, node: fx.Node) -> Any:
    """Constants take the channels of whatever they meet."""
    shape = p.shape(node)
    value = p.plain(node, shape)
    sizes = node.args[1] if "new" in node.target.__name__ else node.args[0]
    for dim, size in enumerate(sizes):
        if isinstance(size, int) and size > 1 and value.batch[dim] is None:
            value = value.replace(dim, size, p.atoms.new(size))
    return value


@rule(ATEN.gru.input, ATEN.lstm.input, ATEN.rnn_tanh.input, ATEN.rnn_relu.input)
def recurrent(p: Propagation, node: fx.Node) -> Any:
    """Recurrent layers keep all of their channels."""
    return p.unknown_operation(node, "it belongs to a recurrent layer")


@rule(ATEN.sym_size.int, ATEN.sym_numel.default)
def size(p: Propagation, node: fx.Node) -> None:
    """A number, not a tensor."""
