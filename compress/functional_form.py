"""Operations in place, written without changing any memory: whoever reads later reads the new value."""

import operator
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, fx

ATEN = torch.ops.aten
_SAME_ELEMENTS = (ATEN.view.default, ATEN.unsqueeze.default, ATEN.squeeze.dim, ATEN.squeeze.dims,
                  ATEN.squeeze.default, ATEN.unflatten.int, ATEN.flatten.using_ints, ATEN.reshape.default,
                  ATEN.view_as.default)  # fmt: skip
_SWAPS = (ATEN.transpose.int, ATEN.t.default, ATEN.mT.default, ATEN.numpy_T.default, ATEN.swapaxes.default,
          ATEN.swapdims.default)  # fmt: skip
_PIECES = (ATEN.chunk.default, ATEN.split.Tensor, ATEN.split_with_sizes.default, ATEN.split.sizes,
           ATEN.tensor_split.sections)  # fmt: skip


def make_functional(graph: fx.Graph) -> None:
    """Turn operations in place into their out-of-place forms.

    What is written through a view is put back into the value that was viewed. Parameters and buffers of the model that
    its forward changes are left to it, and so is what is written through a view that cannot be undone.
    """
    _Rewriter(graph).run()


class _Rewriter:
    """Keeps account of which values share memory.

    Attributes:
        order: position of each node; what is added counts as part of the operation that it was added for.
        source: view -> the value it looks at.
        views: value that owns memory -> all views of it, in order.
        added: the nodes that were added, in order.
    """

    def __init__(self, graph: fx.Graph) -> None:
        self.graph = graph
        self.order = {node: position for position, node in enumerate(graph.nodes)}
        self.source: dict[fx.Node, fx.Node] = {}
        self.views: dict[fx.Node, list[fx.Node]] = {}
        self.added: list[fx.Node] = []

    def run(self) -> None:
        for node in list(self.graph.nodes):
            if node.op != "call_function":
                continue
            new = _out_of_place(node)
            if new is not None and self._can_replace(node):
                self._replace(node, new)
            elif (looked_at := _looked_at(node)) is not None:
                self._note(node, looked_at)
        for node in reversed(self.added):
            if not node.users:
                self.graph.erase_node(node)

    def _note(self, view: fx.Node, source: fx.Node) -> None:
        self.source[view] = source
        self.views.setdefault(self._root(source), []).append(view)

    def _root(self, node: fx.Node) -> fx.Node:
        while node in self.source:
            node = self.source[node]
        return node

    def _can_replace(self, node: fx.Node) -> bool:
        """Whether the change can be put back into the value that owns the memory, or nobody reads that later."""
        changed = node.args[0]
        root = self._root(changed)
        if root.op == "get_attr":
            return False
        others = [other for other in (root, *self.views.get(root, ())) if other is not changed]
        if not any(self._readers(other, node) for other in others):
            return True
        while changed in self.source:
            if not _invertible(changed):
                return False
            changed = self.source[changed]
        return True

    def _readers(self, value: fx.Node, node: fx.Node) -> list[fx.Node]:
        """Who reads `value` after `node`."""
        return [user for user in value.users if self.order[user] > self.order[node]]

    def _replace(self, node: fx.Node, new: Any) -> None:
        """`node` computes out of place from now on; what shares its memory is renewed for whoever reads it later."""
        changed = node.args[0]
        root = self._root(changed)
        views = self.views.get(root, [])
        readers = {value: self._readers(value, node) for value in (root, *views)}
        node.target = new
        if new is ATEN.expand_as.default:
            node.args = (node.args[1], changed)
        if not any(found for value, found in readers.items() if value is not changed):
            for user in readers[changed]:
                user.replace_input_with(changed, node)
            return
        results = list(node.users)
        self.last = node
        value, view = node, changed
        while view in self.source:
            value, view = self._add(node, _put_back, value, view, self.source[view]), self.source[view]
        renewed = {root: value}
        for old in list(views):
            source = renewed[self.source[old]]
            renewed[old] = self._add(node, _again, old, source)
            self._note(renewed[old], source)
        for old, users in ((node, results), *readers.items()):
            for user in users:
                user.replace_input_with(old, renewed[changed if old is node else old])

    def _add(self, owner: fx.Node, make: Callable[..., fx.Node], *arguments: Any) -> fx.Node:
        with self.graph.inserting_after(self.last):
            self.last = make(self.graph, *arguments)
        self.order[self.last] = self.order[owner]
        self.added.append(self.last)
        return self.last


def _out_of_place(node: fx.Node) -> Any:
    """The overload that computes the same without changing its first input, or None for anything else."""
    if not isinstance(node.target, torch._ops.OpOverload):
        return None
    schema = node.target._schema
    first = schema.arguments[0] if schema.arguments else None
    name = schema.name.split("::")[1]
    if first is None or first.alias_info is None or not first.alias_info.is_write or not name.endswith("_"):
        return None
    if any(_dtype(other) not in (None, _dtype(node.args[0])) for other in node.args[1:]):
        return None
    if node.target is ATEN.copy_.default:
        return ATEN.expand_as.default
    return getattr(getattr(ATEN, name[:-1], None), node.target._overloadname, None)


def _dtype(value: Any) -> Any:
    found = value.meta.get("val") if isinstance(value, fx.Node) else None
    # A tensor without dimensions takes part in no type promotion within a kind of number.
    return found.dtype if isinstance(found, Tensor) and found.dim() else None


def _looked_at(node: fx.Node) -> fx.Node | None:
    """The input whose memory the result of `node` shared when it was traced."""
    if node.target is operator.getitem:
        pieces = node.args[0]
        known = pieces.op == "call_function" and pieces.target in (*_PIECES, ATEN.unbind.int)
        source = pieces.args[0] if known else None
    else:
        source = node.args[0] if node.args and isinstance(node.args[0], fx.Node) else None
    values = [found.meta.get("val") for found in (node, source) if found is not None]
    if len(values) < 2 or not all(isinstance(value, Tensor) for value in values):
        return None
    made, looked_at = (value.untyped_storage()._cdata for value in values)
    return source if made == looked_at else None


def _invertible(view: fx.Node) -> bool:
    return _as_view(view)[0] in (*_SAME_ELEMENTS, ATEN.select.int, ATEN.slice.Tensor, *_SWAPS,
                                 ATEN.permute.default, ATEN.alias.default)  # fmt: skip


def _as_view(view: fx.Node) -> tuple[Any, tuple]:
    """Operation and further arguments of a view; one of several pieces is a slice or a select."""
    if view.target is not operator.getitem:
        return view.target, view.args[1:]
    pieces, number = view.args
    if pieces.target is ATEN.unbind.int:
        return ATEN.select.int, (pieces.args[1] if len(pieces.args) > 1 else pieces.kwargs.get("dim", 0), number)
    dim = pieces.args[2] if len(pieces.args) > 2 else pieces.kwargs.get("dim", 0)
    sizes = [piece.shape[dim] for piece in pieces.meta["val"]]
    if not all(isinstance(size, int) for size in sizes):
        return None, ()
    return ATEN.slice.Tensor, (dim, sum(sizes[:number]), sum(sizes[: number + 1]))


def _put_back(graph: fx.Graph, value: fx.Node, view: fx.Node, source: fx.Node) -> fx.Node:
    """`source` with `value` in the place that `view` looks at."""
    target, rest = _as_view(view)
    if target is ATEN.select.int:
        made = graph.call_function(ATEN.select_scatter.default, (source, value, *rest))
    elif target is ATEN.slice.Tensor:
        made = graph.call_function(ATEN.slice_scatter.default, (source, value, *rest))
    elif target in _SWAPS:
        made = graph.call_function(target, (value, *rest))
    elif target is ATEN.permute.default:
        order = [d % len(rest[0]) for d in rest[0]]
        made = graph.call_function(target, (value, [order.index(d) for d in range(len(order))]))
    elif target in _SAME_ELEMENTS:
        made = graph.call_function(ATEN.reshape_as.default, (value, source))
    else:
        made = graph.call_function(ATEN.alias.default, (value,))
    made.meta = dict(source.meta)
    return made


def _again(graph: fx.Graph, view: fx.Node, source: fx.Node) -> fx.Node:
    """The same view of another value."""
    target, rest = _as_view(view)
    made = graph.call_function(target or ATEN.alias.default, (source, *rest), dict(view.kwargs) if target else {})
    made.meta = dict(view.meta)
    return made
