"""What the dimensions of a value mean: which atom every index belongs to, and where the batch lies."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np

from compress.atoms import Atoms

Labels = np.ndarray | None


@dataclass(frozen=True, eq=False)
class Value:
    """A tensor of the traced graph, seen as labelled dimensions.

    Attributes:
        shape: its shape on the example inputs.
        labels: per dimension `(size,)` atoms, or None where the indices are not channels (batch, space, time).
        batch: per dimension `(size,)` example numbers, or None where the dimension does not hold the batch.
    """

    shape: tuple[int, ...]
    labels: tuple[Labels, ...]
    batch: tuple[Labels, ...]

    @classmethod
    def plain(cls, shape: Sequence[int]) -> "Value":
        """A value without channels or batch."""
        return cls(tuple(shape), (None,) * len(shape), (None,) * len(shape))

    def axis(self, dim: int) -> int:
        """`dim` counted from the front."""
        return dim % len(self.shape) if self.shape else 0

    def pick(self, dims: Sequence[int]) -> "Value":
        """The value with these dimensions, in this order."""
        return Value(tuple(self.shape[d] for d in dims), tuple(self.labels[d] for d in dims),
                     tuple(self.batch[d] for d in dims))  # fmt: skip

    def replace(self, dim: int, size: int, labels: Labels, batch: Labels = None) -> "Value":
        """The value with another dimension in place of `dim`."""
        return self.drop(dim).insert(dim, size, labels, batch)

    def drop(self, dim: int) -> "Value":
        """The value without dimension `dim`."""
        return self.pick([d for d in range(len(self.shape)) if d != dim])

    def insert(self, dim: int, size: int, labels: Labels = None, batch: Labels = None) -> "Value":
        """The value with a dimension more, before `dim`."""

        def put(items: tuple, item: object) -> tuple:
            return (*items[:dim], item, *items[dim:])

        return Value(put(self.shape, size), put(self.labels, labels), put(self.batch, batch))

    @property
    def atoms(self) -> np.ndarray:
        """All atoms of all dimensions."""
        found = [labels for labels in self.labels if labels is not None]
        return np.concatenate(found) if found else np.zeros(0, dtype=np.int64)


@dataclass(frozen=True)
class BatchLayout:
    """Where the examples lie: dimension `dim` has size `outer * n_examples * inner`, in that order."""

    dim: int
    outer: int
    inner: int


def batch_layout(value: Value, n_examples: int) -> BatchLayout | None:
    """The layout of the batch in `value`, None if it holds none or holds it twice."""
    found = [(dim, labels) for dim, labels in enumerate(value.batch) if labels is not None]
    if len(found) != 1:
        return None
    dim, labels = found[0]
    inner = int(np.argmax(labels != labels[0])) if (labels != labels[0]).any() else len(labels) // n_examples
    outer = len(labels) // (n_examples * inner)
    expected = np.tile(np.repeat(np.arange(n_examples), inner), outer)
    return BatchLayout(dim, outer, inner) if np.array_equal(expected, labels) else None


def reshape(value: Value, shape: Sequence[int], merge: "Merge") -> Value:
    """The value after `view`/`reshape`/`flatten`: dimensions are split into common factors and put together again."""
    shape = tuple(shape)
    labels: list[Labels] = [None] * len(shape)
    batch: list[Labels] = [None] * len(shape)
    for sources, targets in _blocks(value.shape, shape):
        factors = _common_factors([value.shape[d] for d in sources], [shape[d] for d in targets])
        if factors is None:
            for d in sources:
                merge.block(value.labels[d], "a reshape mixes its channels with another dimension")
            continue
        sizes = [shape[d] for d in targets]
        for out, parts, rules in ((labels, value.labels, merge), (batch, value.batch, None)):
            pieces = _split([(value.shape[d], parts[d]) for d in sources], factors, rules)
            for target, size, piece in zip(targets, sizes, _regroup(pieces, factors, sizes), strict=True):
                out[target] = _put_together(piece, size, rules)
    return Value(shape, tuple(labels), tuple(batch))


class Merge:
    """What a reshape may do to atoms: join them, block them, or choose along which factor a split is removable."""

    def __init__(self, atoms: Atoms, choose: Callable[[list[int], np.ndarray], int]) -> None:
        self.join, self.roots, self.free, self.attends = atoms.join, atoms.roots, atoms.free, atoms.attends
        self._block = atoms.block
        self.choose = choose

    def block(self, labels: Labels, reason: str) -> None:
        if labels is not None:
            self._block(labels, reason)


def _blocks(source: tuple[int, ...], target: tuple[int, ...]) -> list[tuple[list[int], list[int]]]:
    """Pairs of (source dims, target dims) with equal products, dims of size one left out."""
    left = [d for d, size in enumerate(source) if size != 1]
    right = [d for d, size in enumerate(target) if size != 1]
    blocks, i, j = [], 0, 0
    while i < len(left) and j < len(right):
        sources, targets = [left[i]], [right[j]]
        a, b = source[left[i]], target[right[j]]
        i, j = i + 1, j + 1
        while a != b:
            if a < b:
                sources.append(left[i])
                a *= source[left[i]]
                i += 1
            else:
                targets.append(right[j])
                b *= target[right[j]]
                j += 1
        blocks.append((sources, targets))
    return blocks


def _common_factors(source: list[int], target: list[int]) -> list[int] | None:
    """Sizes whose consecutive products give both shapes, or None if there are none."""
    cuts = sorted({*np.cumprod(source[::-1]).tolist(), *np.cumprod(target[::-1]).tolist()})
    factors, last = [], 1
    for cut in cuts:
        if cut % last:
            return None
        factors.append(cut // last)
        last = cut
    return factors[::-1]


def _spans(sizes: list[int], factors: list[int]) -> list[list[int]]:
    """For each size the positions of the consecutive factors that make it."""
    spans, position = [], 0
    for size in sizes:
        span, product = [], 1
        while product < size:
            product *= factors[position]
            span.append(position)
            position += 1
        spans.append(span)
    return spans


def _split(parts: list[tuple[int, Labels]], factors: list[int], merge: Merge | None) -> list[Labels]:
    """Labels of every factor, from the labels of the source dimensions."""
    pieces: list[Labels] = [None] * len(factors)
    for (_, labels), span in zip(parts, _spans([size for size, _ in parts], factors), strict=True):
        if labels is None:
            continue
        sizes = [factors[p] for p in span]
        grid = (labels if merge is None else merge.roots(labels)).reshape(sizes)
        varying = [axis for axis in range(len(sizes)) if (grid != grid.take([0], axis=axis)).any()]
        if not varying:
            varying = [0]
        axis = varying[0]
        if len(varying) > 1:
            if merge is None:
                continue
            axis = varying[merge.choose([sizes[a] for a in varying], grid)]
            rows = np.moveaxis(grid, axis, 0).reshape(sizes[axis], -1)
            merge.join(np.repeat(rows[:, :1], rows.shape[1], axis=1), rows)
            grid = merge.roots(grid)
        pieces[span[axis]] = np.moveaxis(grid, axis, 0).reshape(sizes[axis], -1)[:, 0].copy()
    return pieces


def _regroup(pieces: list[Labels], factors: list[int], targets: list[int]) -> list[list[tuple[int, Labels]]]:
    return [[(factors[p], pieces[p]) for p in span] for span in _spans(targets, factors)]


def _put_together(parts: list[tuple[int, Labels]], size: int, merge: Merge | None) -> Labels:
    """Labels of a dimension made of factors; two labelled factors cannot both stay removable."""
    labelled = [i for i, (_, labels) in enumerate(parts) if labels is not None]
    if not labelled:
        return None
    if len(labelled) > 1:
        bound = labelled if merge is None else [i for i in labelled if not merge.free(parts[i][1])]
        if merge is not None:
            # Of heads and the channels within them, which all heads of multi-query attention share, heads can go.
            heads = [i for i in bound if merge.attends(parts[i][1])]
            bound = heads if len(heads) == 1 else bound
            for i in labelled:
                if i not in bound or len(bound) > 1:
                    merge.block(parts[i][1], "a reshape folds two channel dimensions into one")
        if len(bound) != 1:
            return None
        labelled = bound
    i = labelled[0]
    outer = int(np.prod([n for n, _ in parts[:i]], initial=1))
    inner = size // (outer * parts[i][0])
    return np.tile(np.repeat(parts[i][1], inner), outer)
