"""Weights removed or rounded column by column, the columns that follow taking over the error."""

from collections.abc import Callable

import torch
from torch import Tensor

from compress.errors import CompressError, DataError

# What stays of a weight: a density in [0, 1], `(n, m)` for n of every m inputs in a row, or a bool mask of its shape.
Keep = float | tuple[int, int] | Tensor
# Values `(..., out_ch)` of one column, and its index -> the closest values that a number format has there.
Nearest = Callable[[Tensor, int], Tensor]
_MOST_TRIES = 6


def sweep_columns(
    weight: Tensor,
    moment: Tensor,
    *,
    keep: Keep | None = None,
    nearest: Nearest | None = None,
    damping: float = 0.01,
    activation_order: bool = False,
    block_size: int = 8,
) -> tuple[Tensor, Tensor]:
    """`(weight, kept)`: a layer pruned, rounded, or both in one pass, so that its outputs change little.

    Column after column is brought to what it may be, and the columns behind it are changed by the update of Optimal
    Brain Surgeon (Hassibi and Stork 1992) with all columns before them fixed: one Cholesky factor of the inverse
    moment serves all rows. For pruning this is SparseGPT (Frantar and Alistarh 2023, arXiv:2301.00774), for rounding
    GPTQ (Frantar et al. 2023, arXiv:2210.17323), for both SparseGPT's joint mode. Cost: n_inputs^3 once per layer and
    out_ch n_inputs^2.

    Args:
        weight: `(..., out_ch, n_inputs)`; leading dimensions are independent layers, such as the groups of a conv.
        moment: `(..., n_inputs, n_inputs)` E[x x^T] of what the layer multiplies it with. Any positive multiple does.
        keep: what stays. A density is met exactly; the weights to go are chosen within each block of columns over all
            rows, those of `(n, m)` within each row, both when the sweep reaches them. None keeps all.
        nearest: rounds a column; None leaves what stays unrounded.
        damping: added to the diagonal of the moment, as a part of its mean.
        activation_order: the inputs of largest energy first, so that the last columns, whose errors nothing takes over,
            are those that matter least. Not possible for `(n, m)`.
        block_size: columns that are updated together. The result depends on it only where a density is chosen: small
            blocks see what the removals before them did. (The papers have 128 columns of many thousands.)

    Returns:
        The new weight, of the old dtype, and a bool mask of what stays; removed weights are exactly zero.

    Raises:
        CompressError: for a bad setting. DataError: for values that are not finite.
    """
    _check(weight, moment, keep, activation_order, block_size)
    factor_of = damped(moment, damping)
    n = weight.shape[-1]
    order = torch.arange(n, device=weight.device)
    if activation_order:
        energy = moment.diagonal(dim1=-2, dim2=-1).reshape(-1, n).sum(0)
        order = energy.argsort(descending=True, stable=True)
        factor_of = factor_of[..., order, :][..., order]
    back = order.argsort()
    mask = keep[..., order] if isinstance(keep, Tensor) else keep
    columns = order.tolist()
    chosen = None if nearest is None else (lambda values, j: nearest(values, columns[j]))
    values, kept = _sweep(weight.double()[..., order], inverse_factor(factor_of), mask, chosen, block_size)
    return values[..., back].to(weight.dtype), kept[..., back]


def damped(moment: Tensor, damping: float) -> Tensor:
    """`(..., n, n)` float64: the moment with `damping` times the mean of its diagonal added to its diagonal.

    Raises:
        CompressError: for a negative or infinite damping. DataError: for a moment that is not finite.
    """
    if not 0 <= damping < float("inf"):
        raise CompressError(f"The 'damping' parameter of a weight update must be at least 0. Got {damping!r}.")
    if not torch.isfinite(moment).all():
        raise DataError("A second moment has NaN or infinite values. Check the calibration data.")
    moment = moment.double()
    mean = moment.diagonal(dim1=-2, dim2=-1).mean(-1)
    # Inputs that are always zero say nothing: any positive diagonal leaves them to themselves.
    strength = torch.where(mean > 0, damping * mean, 1.0)
    return moment + torch.diag_embed(strength[..., None].expand(moment.shape[:-1]))


def inverse_factor(moment: Tensor) -> Tensor:
    """`(..., n, n)` upper triangular U with U^T U the inverse of the moment.

    The square of its diagonal at j is the inverse's diagonal at j once all inputs before j are out. A singular moment
    gets the least more on its diagonal that helps.

    Raises:
        DataError: if the moment is not positive semi-definite.
    """
    n = moment.shape[-1]
    eye = torch.eye(n, dtype=moment.dtype, device=moment.device)
    extra = moment.diagonal(dim1=-2, dim2=-1).amax(-1).clamp_min(torch.finfo(moment.dtype).tiny) * 1e-12
    added = torch.zeros_like(extra)
    for _ in range(_MOST_TRIES):
        # The factor of the reversed matrix, reversed again, is upper triangular: R with R R^T the moment.
        matrix = (moment + added[..., None, None] * eye).flip(-1, -2)
        factor, failed = torch.linalg.cholesky_ex(matrix)
        if not failed.any():
            return torch.linalg.solve_triangular(factor.flip(-1, -2), eye.expand_as(moment), upper=True)
        added, extra = torch.where(failed > 0, extra, added), torch.where(failed > 0, extra * 100, extra)
    raise DataError("A second moment is not positive semi-definite. Compute it as the mean of x x^T.")


def output_error(change: Tensor, moment: Tensor) -> Tensor:
    """`(..., out_ch)` float64: mean square of what a change e of the weight does to each output, e^T E[x x^T] e."""
    change = change.double()
    return ((change @ moment.double()) * change).sum(-1).clamp_min(0.0)


def _check(weight: Tensor, moment: Tensor, keep: Keep | None, activation_order: bool, block_size: int) -> None:
    n = weight.shape[-1]
    if moment.shape != (*weight.shape[:-2], n, n):
        raise CompressError(
            f"The 'moment' parameter of sweep_columns must have shape {(*weight.shape[:-2], n, n)}. "
            f"Got {tuple(moment.shape)}."
        )
    if not torch.isfinite(weight).all():
        raise DataError("A weight with NaN or infinite values cannot be updated. Load a sound checkpoint.")
    if block_size < 1:
        raise CompressError(f"The 'block_size' parameter of sweep_columns must be at least 1. Got {block_size!r}.")
    check_keep(keep, weight.shape)
    if activation_order and isinstance(keep, tuple):
        raise CompressError(
            "The 'activation_order' parameter of sweep_columns must be False for n of m weights: those lie side by "
            "side. Got True."
        )


def check_keep(keep: Keep | None, shape: torch.Size) -> None:
    """Raises CompressError for what is no density, no `(n, m)` and no mask of this shape."""
    if isinstance(keep, Tensor):
        good = keep.dtype == torch.bool and keep.shape == shape
    elif isinstance(keep, tuple):
        good = len(keep) == 2 and all(type(k) is int for k in keep) and 0 <= keep[0] <= keep[1] and keep[1] > 0
    else:
        good = keep is None or (not isinstance(keep, bool) and isinstance(keep, (int, float)) and 0 <= keep <= 1)
    if not good:
        got = f"a {keep.dtype} tensor of shape {tuple(keep.shape)}" if isinstance(keep, Tensor) else repr(keep)
        raise CompressError(
            f"What is kept of a weight must be a density in [0, 1], a pair (n, m) with n <= m, or a bool mask of shape "
            f"{tuple(shape)}. Got {got}."
        )


def _sweep(
    weight: Tensor, factor: Tensor, keep: Keep | None, nearest: Nearest | None, block_size: int
) -> tuple[Tensor, Tensor]:
    """`weight` is overwritten. Errors reach the columns of their block at once, all others when the block is done."""
    n = weight.shape[-1]
    kept = keep.clone() if isinstance(keep, Tensor) else torch.ones_like(weight, dtype=torch.bool)
    if isinstance(keep, tuple):
        block_size = -(-block_size // keep[1]) * keep[1]
    diagonal = factor.diagonal(dim1=-2, dim2=-1)
    for start in range(0, n, block_size):
        end = min(start + block_size, n)
        errors = torch.zeros_like(weight[..., start:end])
        if isinstance(keep, (int, float)):
            kept[..., start:end] = _densest(weight, diagonal, keep, start, end)
        for j in range(start, end):
            if isinstance(keep, tuple) and (j - start) % keep[1] == 0:
                stop = min(j + keep[1], n)
                score = (weight[..., j:stop] / diagonal[..., None, j:stop]).abs()
                kept[..., j:stop] = _largest(score, min(keep[0], stop - j))
            value = weight[..., j].where(kept[..., j], 0.0)
            if nearest is not None:
                value = nearest(value, j).to(value.dtype).where(kept[..., j], 0.0)
            error = (weight[..., j] - value) / diagonal[..., None, j]
            weight[..., j + 1 : end] -= error[..., None] * factor[..., None, j, j + 1 : end]
            weight[..., j] = value
            errors[..., j - start] = error
        weight[..., end:] -= errors @ factor[..., start:end, end:]
    return weight, kept


def _densest(weight: Tensor, diagonal: Tensor, density: float, start: int, end: int) -> Tensor:
    """Which weights of these columns stay: blocks are rounded so that the density of all together is met."""
    rows = weight.shape[-2]
    count = round(density * rows * end) - round(density * rows * start)
    score = (weight[..., start:end] / diagonal[..., None, start:end]).abs()
    return _largest(score.flatten(-2), count).reshape(score.shape)


def _largest(score: Tensor, count: int) -> Tensor:
    """Bool mask of the `count` largest along the last dimension, the first of those that are equal."""
    order = score.argsort(dim=-1, descending=True, stable=True)
    return torch.zeros_like(score, dtype=torch.bool).scatter_(-1, order[..., :count], True)
