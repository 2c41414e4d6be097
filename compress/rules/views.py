"""Operations that move, cut, repeat or rearrange indices without computing anything."""

from typing import Any

import numpy as np
from torch import fx

from compress.dimensions import Value, reshape
from compress.graph import ATEN, argument
from compress.propagation import Propagation, rule

RESHAPES = (ATEN.view.default, ATEN.reshape.default, ATEN.flatten.using_ints, ATEN.unflatten.int,
            ATEN.unsqueeze.default, ATEN.squeeze.dim, ATEN.squeeze.default, ATEN.squeeze.dims,
            ATEN._unsafe_view.default, ATEN.view_as.default, ATEN.reshape_as.default)  # fmt: skip


@rule(*RESHAPES)
def view(p: Propagation, node: fx.Node) -> Value:
    """Splits and merges dimensions."""
    return reshape(p.value(node.args[0]), p.shape(node), p.merge(node))


@rule(ATEN.permute.default)
def permute(p: Propagation, node: fx.Node) -> Value:
    """Reorders dimensions."""
    x = p.value(node.args[0])
    return x.pick([x.axis(d) for d in node.args[1]])


@rule(
    ATEN.transpose.int,
    ATEN.swapaxes.default,
    ATEN.swapdims.default,
    ATEN.t.default,
    ATEN.numpy_T.default,
    ATEN.mT.default,
)
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
    """Repeats dimensions of size one without copying; the copies take the channels of whatever they meet."""
    x, shape = p.value(node.args[0]), p.shape(node)
    like = p.value(node.args[1]) if node.target is ATEN.expand_as.default else None
    batch = list(p.plain(node, shape).batch)
    labels: list[Any] = [None] * len(shape)
    lead = len(shape) - len(x.shape)
    for dim, size in enumerate(shape):
        own = dim - lead
        if own >= 0 and x.shape[own] == size:
            labels[dim] = x.labels[own]
            batch[dim] = x.batch[own] if x.batch[own] is not None else batch[dim]
            continue
        if own >= 0:
            p.block(x.labels[own], f"it is repeated at '{node.name}'")
        if like is not None:
            labels[dim], batch[dim] = like.labels[dim], like.batch[dim]
        elif isinstance(node.args[1][dim], int) and batch[dim] is None:
            labels[dim] = p.atoms.new(size, free=True)
    return Value(shape, tuple(labels), tuple(batch))


@rule(ATEN.repeat.default, ATEN.tile.default)
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
    rest = p.align(node, [v.drop(dim) for v in parts], tuple(s for d, s in enumerate(p.shape(node)) if d != dim))
    return rest.insert(dim, p.shape(node)[dim], labels)


def _fixed(p: Propagation, size: int, node: fx.Node) -> np.ndarray:
    atoms = p.atoms.new(size)
    p.block(atoms, f"it is a fixed part at '{node.name}'")
    return atoms


@rule(ATEN.stack.default)
def stack(p: Propagation, node: fx.Node) -> Value:
    """A new dimension over equal values."""
    parts = [p.value(n) for n in node.args[0]]
    out = p.align(node, parts, parts[0].shape)
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
    if step != 1 or not all(bound is None or isinstance(bound, int) for bound in (start, stop)):
        reason = f"'{node.name}' takes a computed range of it" if step == 1 else f"'{node.name}' takes every {step}th"
        p.block(x.labels[dim], reason)
        return x.replace(dim, p.shape(node)[dim], None)
    bounds = slice(start, stop, step)
    parts = [None if part is None else part[bounds] for part in (x.labels[dim], x.batch[dim])]
    if parts[1] is not None and len(parts[1]) != x.shape[dim]:
        parts[1] = None
    return x.replace(dim, p.shape(node)[dim], *parts)


@rule(ATEN.slice_scatter.default)
def put_range(p: Propagation, node: fx.Node) -> Value:
    """The first input with a range of a dimension replaced by the second."""
    x, new = p.value(node.args[0]), p.value(node.args[1])
    dim = x.axis(argument(node, 2, "dim", 0))
    start, stop, step = (argument(node, i, n, d) for i, n, d in ((3, "start", None), (4, "end", None), (5, "step", 1)))
    rest = p.align(node, [x.drop(dim), new.drop(dim)], x.drop(dim).shape)
    labels = x.labels[dim]
    if labels is None or step != 1 or not all(bound is None or isinstance(bound, int) for bound in (start, stop)):
        p.block(labels, f"'{node.name}' replaces a range of it")
        p.block(new.labels[dim], f"'{node.name}' puts it into a fixed dimension")
        labels = None
    else:
        p.join(labels[start:stop], new.labels[dim], node)
    return rest.insert(dim, x.shape[dim], labels, x.batch[dim])


@rule(ATEN.select_scatter.default)
def put_index(p: Propagation, node: fx.Node) -> Value:
    """The first input with one index of a dimension replaced by the second."""
    x, new = p.value(node.args[0]), p.value(node.args[1])
    dim, number = x.axis(node.args[2]), node.args[3]
    labels = x.labels[dim]
    if labels is not None:
        whole = not isinstance(number, int)
        p.block(labels if whole else labels[number : number + 1 or None], f"'{node.name}' replaces it by its number")
    return p.align(node, [x.drop(dim), new], new.shape).insert(dim, x.shape[dim], labels, x.batch[dim])


@rule(ATEN.narrow.default)
def narrow(p: Propagation, node: fx.Node) -> Value:
    """A range of a dimension that holds no channels."""
    x = p.value(node.args[0])
    dim = x.axis(node.args[1])
    p.block(x.labels[dim], f"'{node.name}' takes a range of it")
    return x.replace(dim, p.shape(node)[dim], None)


@rule(ATEN.unfold.default)
def windows(p: Propagation, node: fx.Node) -> Value:
    """Overlapping windows of a dimension that holds no channels, as a new last dimension."""
    x, shape = p.value(node.args[0]), p.shape(node)
    dim = x.axis(node.args[1])
    p.block(x.labels[dim], f"'{node.name}' takes windows of it")
    return x.replace(dim, shape[dim], None).insert(len(x.shape), shape[-1])


@rule(ATEN.im2col.default)
def patches(p: Propagation, node: fx.Node) -> Value:
    """Every channel becomes one row for each position of a kernel."""
    x, shape = p.value(node.args[0]), p.shape(node)
    labels = x.labels[-3]
    if labels is not None:
        labels = np.repeat(labels, shape[-2] // x.shape[-3])
    return Value(shape, (*x.labels[:-3], labels, None), (*x.batch[:-3], None, None))


@rule(ATEN.grid_sampler.default)
def sample(p: Propagation, node: fx.Node) -> Value:
    """Space is resampled at computed places, every channel alike."""
    x, shape = p.value(node.args[0]), p.shape(node)
    p.block(p.value(node.args[1]), f"'{node.name}' reads it as coordinates")
    return Value(shape, (*x.labels[:2], *(None,) * (len(shape) - 2)), (*x.batch[:2], *(None,) * (len(shape) - 2)))


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


@rule(ATEN.gather.default)
def gather(p: Propagation, node: fx.Node) -> Value:
    """Picks along one dimension by computed numbers, of which there is one for every other index."""
    x, picks, shape = p.value(node.args[0]), p.value(node.args[2]), p.shape(node)
    labels: list[Any] = [None] * len(shape)
    for dim, size in enumerate(shape):
        if dim == x.axis(node.args[1]) or x.shape[dim] != size:
            p.block(x.labels[dim], f"'{node.name}' reads it by computed numbers")
        else:
            labels[dim] = p.join(x.labels[dim], picks.labels[dim], node)
    return Value(shape, tuple(labels), picks.batch)


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
