"""Operations that normalise over, reduce or pool dimensions."""

from typing import Any

import numpy as np
from torch import fx

from compress.dimensions import Value
from compress.graph import ATEN, argument
from compress.propagation import Propagation, rule


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
              ATEN.sum.default, ATEN.linalg_vector_norm.default, ATEN.linalg_norm.default)  # fmt: skip
SPREADS = (ATEN.var.correction, ATEN.std.correction, ATEN.var.dim, ATEN.std.dim)
PLAIN_REDUCTIONS = (ATEN.max.dim, ATEN.min.dim, ATEN.argmax.default, ATEN.argmin.default, ATEN.prod.dim_int,
                    ATEN.any.dim, ATEN.all.dim, ATEN.logsumexp.default, ATEN.aminmax.default)  # fmt: skip


@rule(*REDUCTIONS, *SPREADS, *PLAIN_REDUCTIONS)
def reduction(p: Propagation, node: fx.Node) -> Any:
    """Sums, means and maxima over some dimensions."""
    x = p.value(node.args[0])
    norm = node.target in (ATEN.linalg_vector_norm.default, ATEN.linalg_norm.default)
    dims = argument(node, 2 if norm else 1, "dim")
    if norm and argument(node, 1, "ord", 2) not in (None, 1, 2):
        # Any other order may see the zeros of what is silenced.
        return p.unknown_operation(node)
    dims = range(len(x.shape)) if dims is None or dims == [] else [dims] if isinstance(dims, int) else dims
    dims = [x.axis(d) for d in dims]
    for dim in dims:
        if node.target in PLAIN_REDUCTIONS:
            p.block(x.labels[dim], f"'{node.target.__name__}' reduces over it")
        else:
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


# Operations that mix the positions of some dimensions: where the call names them, and what it means when it does not.
ALONG = {ATEN.cumsum.default: (1, "dim", None), ATEN.cumprod.default: (1, "dim", None),
         ATEN.flip.default: (1, "dims", None), ATEN.roll.default: (2, "dims", None), ATEN.sort.default: (1, "dim", -1),
         ATEN.sort.stable: (2, "dim", -1), ATEN.argsort.default: (1, "dim", -1), ATEN.topk.default: (2, "dim", -1),
         ATEN.diff.default: (2, "dim", -1), ATEN.median.dim: (1, "dim", None), ATEN.kthvalue.default: (2, "dim", -1),
         ATEN.index_select.default: (1, "dim", None), ATEN.triu.default: (9, "", [-2, -1]),
         ATEN.tril.default: (9, "", [-2, -1])}  # fmt: skip


@rule(*ALONG)
def along_some_dimensions(p: Propagation, node: fx.Node) -> Any:
    """Mixes positions of some dimensions, which must be no channels; the others stay as they are."""
    x = p.value(node.args[0])
    position, name, default = ALONG[node.target]
    dims = argument(node, position, name, default)
    dims = [dims] if isinstance(dims, int) else list(dims or range(len(x.shape)))
    if any(x.labels[d] is not None for d in dims) or any(x.batch[d] is not None for d in dims):
        return p.unknown_operation(node)

    def mixed(shape: tuple[int, ...]) -> Value:
        if len(shape) != len(x.shape):
            return x.pick([d for d in range(len(x.shape)) if d not in [x.axis(d) for d in dims]])
        out = x
        for dim in map(x.axis, dims):
            out = out.replace(dim, shape[dim], None)
        return out

    shape = p.shape(node)
    several = bool(shape) and isinstance(shape[0], tuple)
    return tuple(map(mixed, shape)) if several else mixed(shape)


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
    for _name in ("max_pool{}d", "avg_pool{}d", "adaptive_avg_pool{}d", "adaptive_max_pool{}d",
                  "max_pool{}d_with_indices", "upsample_nearest{}d", "reflection_pad{}d",
                  "replication_pad{}d", "upsample_linear{}d",
                  "_adaptive_avg_pool{}d", "upsample_bilinear{}d", "upsample_bicubic{}d", "_upsample_nearest_exact{}d",
                  "upsample_trilinear{}d", "lp_pool{}d"):  # fmt: skip
        _packet = getattr(ATEN, _name.format(_n), None)
        if _packet is not None:
            rule(*(getattr(_packet, overload) for overload in _packet.overloads()))(_keeps_leading(_n))
