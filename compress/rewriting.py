"""Sizes that a traced graph has hard-coded, rewritten for the units that stay."""

from collections.abc import Callable
from typing import Any

import numpy as np
from torch import fx

from compress.dimensions import Value
from compress.errors import PlanError
from compress.graph import ATEN, argument
from compress.structure import Structure


class Kept:
    """How many indices of each dimension of each value stay."""

    def __init__(self, structure: Structure, removed: np.ndarray) -> None:
        self.values = structure.values
        self.stays = np.append(~removed, True)  # the last for the row -1 of a fixed index

    def value(self, node: Any) -> Any:
        """The labelled value of a node of the dense graph, by name."""
        return self.values.get(node.name) if isinstance(node, fx.Node) else None

    def mask(self, value: Value, dim: int) -> np.ndarray:
        """`(size,)` bool of the indices that stay."""
        rows = value.labels[dim]
        return np.ones(value.shape[dim], bool) if rows is None else self.stays[rows]

    def size(self, value: Value, dim: int) -> int:
        """Number of indices that stay."""
        return int(self.mask(value, dim).sum())

    def changed(self, value: Value, dim: int) -> bool:
        """Whether any index of this dimension goes."""
        return not self.mask(value, dim).all()


Rewrite = Callable[[fx.Node, Kept, Value], None]
REWRITES: dict[Any, Rewrite] = {}


def rewrite(node: fx.Node, kept: Kept) -> None:
    """Rewrite the sizes among the arguments of `node`, in place."""
    change = REWRITES.get(node.target)
    x = kept.value(node.args[0]) if node.args else None
    if change is not None:
        change(node, kept, x)


def _rewrites(*targets: Any) -> Callable[[Rewrite], Rewrite]:
    def register(function: Rewrite) -> Rewrite:
        REWRITES.update(dict.fromkeys(targets, function))
        return function

    return register


def _set(node: fx.Node, position: int, name: str, value: Any) -> None:
    if len(node.args) > position or name not in node.kwargs:
        filled = list(node.args)
        if len(filled) > position:
            filled[position] = value
            node.args = tuple(filled)
            return
    node.kwargs = {**node.kwargs, name: value}


def _sizes(node: fx.Node, kept: Kept, sizes: list[Any], first: int = 0) -> list[Any]:
    """Static sizes by what stays; a computed size that holds removed indices is left to be inferred."""
    out = kept.value(node)
    new = []
    for offset, size in enumerate(sizes):
        dim = first + offset
        if isinstance(size, fx.Node):
            new.append(-1 if kept.changed(out, dim) else size)
        else:
            new.append(size if size == -1 else kept.size(out, dim))
    if sum(isinstance(size, int) and size == -1 for size in new) > 1:
        raise PlanError(f"The sizes of '{node.name}' cannot be rewritten: two of them are computed. Pin its groups.")
    return new


@_rewrites(ATEN.view.default, ATEN.reshape.default, ATEN._unsafe_view.default)
def _view(node: fx.Node, kept: Kept, x: Value) -> None:
    # A kept subset of a transposed value may no longer be viewable, a reshape always works.
    node.target = ATEN.reshape.default
    node.update_arg(1, _sizes(node, kept, list(node.args[1])))


@_rewrites(ATEN.unflatten.int)
def _unflatten(node: fx.Node, kept: Kept, x: Value) -> None:
    node.update_arg(2, _sizes(node, kept, list(node.args[2]), x.axis(node.args[1])))


@_rewrites(ATEN.expand.default)
def _expand(node: fx.Node, kept: Kept, x: Value) -> None:
    out = kept.value(node)
    sizes = [kept.size(out, d) if isinstance(s, int) and s != -1 else s for d, s in enumerate(node.args[1])]
    node.update_arg(1, sizes)


@_rewrites(ATEN.zeros.default, ATEN.ones.default, ATEN.full.default, ATEN.empty.memory_format)
def _create(node: fx.Node, kept: Kept, x: Value) -> None:
    out = kept.value(node)
    node.update_arg(0, [kept.size(out, d) if isinstance(s, int) else s for d, s in enumerate(node.args[0])])


@_rewrites(ATEN.new_zeros.default, ATEN.new_ones.default, ATEN.new_full.default)
def _create_like(node: fx.Node, kept: Kept, x: Value) -> None:
    out = kept.value(node)
    node.update_arg(1, [kept.size(out, d) if isinstance(s, int) else s for d, s in enumerate(node.args[1])])


@_rewrites(ATEN.layer_norm.default, ATEN.rms_norm.default)
def _layer_norm(node: fx.Node, kept: Kept, x: Value) -> None:
    n_dims = len(node.args[1])
    node.update_arg(1, [kept.size(kept.value(node), len(x.shape) - n_dims + d) for d in range(n_dims)])


@_rewrites(ATEN.group_norm.default)
def _group_norm(node: fx.Node, kept: Kept, x: Value) -> None:
    mask = kept.mask(kept.value(node), 1).reshape(node.args[1], -1)
    node.update_arg(1, int(mask.any(axis=1).sum()))


@_rewrites(ATEN.conv1d.default, ATEN.conv2d.default, ATEN.conv3d.default, ATEN.conv1d.padding, ATEN.conv2d.padding,
           ATEN.conv3d.padding, ATEN.conv_transpose1d.default, ATEN.conv_transpose2d.input,
           ATEN.conv_transpose3d.input)  # fmt: skip
def _groups(node: fx.Node, kept: Kept, x: Value) -> None:
    groups = argument(node, 6, "groups", 1)
    # A number of groups that is computed, one for each example, is no size of the model.
    if isinstance(groups, int) and groups > 1 and kept.changed(x, 1):
        _set(node, 6, "groups", int(kept.mask(x, 1).reshape(groups, -1).any(axis=1).sum()))


@_rewrites(ATEN.channel_shuffle.default)
def _channel_shuffle(node: fx.Node, kept: Kept, x: Value) -> None:
    node.update_arg(1, int(kept.mask(x, 1).reshape(node.args[1], -1).any(axis=1).sum()))


@_rewrites(ATEN.scaled_dot_product_attention.default)
def _attention(node: fx.Node, kept: Kept, x: Value) -> None:
    if kept.changed(x, len(x.shape) - 1) and argument(node, 6, "scale") is None:
        # The scale is that of the dense model, not of what stays.
        node.kwargs = {**node.kwargs, "scale": x.shape[-1] ** -0.5}


@_rewrites(ATEN.chunk.default, ATEN.split.Tensor, ATEN.split_with_sizes.default, ATEN.split.sizes,
           ATEN.tensor_split.sections)  # fmt: skip
def _split(node: fx.Node, kept: Kept, x: Value) -> None:
    dim = x.axis(argument(node, 2, "dim", 0))
    if kept.changed(x, dim):
        node.target = ATEN.split_with_sizes.default
        node.args = (node.args[0], [kept.size(piece, dim) for piece in kept.value(node)], dim)
        node.kwargs = {}


@_rewrites(ATEN.slice.Tensor, ATEN.slice_scatter.default)
def _slice(node: fx.Node, kept: Kept, x: Value) -> None:
    first = 2 if node.target is ATEN.slice_scatter.default else 1
    dim = x.axis(argument(node, first, "dim", 0))
    if not kept.changed(x, dim):
        return
    start, stop, _ = slice(argument(node, first + 1, "start"), argument(node, first + 2, "end")).indices(x.shape[dim])
    mask = kept.mask(x, dim)
    node.args = (*node.args[:first], dim, int(mask[:start].sum()), int(mask[:stop].sum()))
    node.kwargs = {}


@_rewrites(ATEN.select.int, ATEN.select_scatter.default)
def _select(node: fx.Node, kept: Kept, x: Value) -> None:
    first = 2 if node.target is ATEN.select_scatter.default else 1
    dim = x.axis(node.args[first])
    if kept.changed(x, dim):
        position = node.args[first + 1] % x.shape[dim]
        node.update_arg(first + 1, int(kept.mask(x, dim)[:position].sum()))


@_rewrites(ATEN.pad.default, ATEN.constant_pad_nd.default)
def _pad(node: fx.Node, kept: Kept, x: Value) -> None:
    amounts, out = list(node.args[1]), kept.value(node)
    for k in range(len(amounts) // 2):
        dim = len(x.shape) - 1 - k
        if out.labels[dim] is not None and amounts[2 * k] >= 0 and amounts[2 * k + 1] >= 0:
            mask = kept.mask(out, dim)
            before = amounts[2 * k]
            amounts[2 * k] = int(mask[:before].sum())
            amounts[2 * k + 1] = int(mask[before + x.shape[dim] :].sum())
    node.update_arg(1, amounts)
