"""Optimal Brain Surgeon without shortcuts: the weights that are best when others are gone, and which go best."""

import heapq

import torch
from torch import Tensor

from compress.errors import CompressError
from compress.second_order_update import check_keep, damped

# Elements of all matrices that are solved together.
_CHUNK = 2**24
# Of those that are updated over and over: what a processor has near.
_CACHED = 2**21


def solve_for_mask(weight: Tensor, moment: Tensor, kept: Tensor, damping: float = 0.01) -> Tensor:
    """The weight that is zero outside a mask and whose outputs are closest to those of the given one.

    All weights that stay are free, each row by itself: the sum of all updates for this mask in any order, and the
    least-squares refit on the inputs that stay. Costs n_inputs^3 for each row. (Hassibi and Stork 1992, "Second order
    derivatives for network pruning: Optimal Brain Surgeon", NIPS.)

    Args:
        weight: `(..., out_ch, n_inputs)`.
        moment: `(..., n_inputs, n_inputs)` E[x x^T].
        kept: bool, of the weight's shape.
        damping: penalty on the change, relative to the mean of the moment's diagonal.

    Raises:
        CompressError: for a mask of another shape. DataError: for a moment that is not finite.
    """
    check_keep(kept, weight.shape)
    matrix = damped(moment, damping)
    right = (weight.double() @ matrix).where(kept, 0.0)
    step = max(1, _CHUNK // (right[..., 0, :].numel() * right.shape[-1]))
    found = []
    for rows, mask in zip(right.split(step, dim=-2), kept.split(step, dim=-2), strict=True):
        both = mask[..., :, None] & mask[..., None, :]
        part = matrix[..., None, :, :].where(both, 0.0) + torch.diag_embed((~mask).double())
        found.append(torch.linalg.solve(part, rows))
    return torch.cat(found, dim=-2).where(kept, 0.0).to(weight.dtype)


def remove_weights(
    weight: Tensor, moment: Tensor, keep: float | tuple[int, int], damping: float = 0.01
) -> tuple[Tensor, Tensor, Tensor]:
    """`(weight, kept, increases)` when the weight that costs least goes, then the next one, all others updated.

    The exact greedy order of Optimal Brain Surgeon (Hassibi and Stork 1992) over all rows. Rows do not touch each
    other, so each one's order is found by itself and they are merged afterwards, as in Frantar, Singh and Alistarh 2022
    ("Optimal Brain Compression", arXiv:2208.11580). Costs n_inputs^3 for each row.

    Args:
        weight: `(out_ch, n_inputs)`.
        moment: `(n_inputs, n_inputs)` E[x x^T].
        keep: the density, met over all rows together, or `(n, m)` for n of every m inputs of a row.
        damping: added to the diagonal of the moment, as a part of its mean.

    Returns:
        The new weight, the bool mask of what stays, and `(n_removed,)` float64: by how much each removal increases the
        squared error of the outputs under the damped moment, row by row for `(n, m)`.

    Raises:
        CompressError: for what is neither. DataError: for a moment that is not finite.
    """
    if keep is None or isinstance(keep, Tensor):
        raise CompressError("The 'keep' parameter of remove_weights must be a density or a pair (n, m).")
    check_keep(keep, weight.shape)
    rows, n = weight.shape
    inverse = torch.linalg.inv(damped(moment, damping))
    found = [_orders(part.double(), inverse, keep) for part in weight.split(max(1, _CACHED // n**2))]
    order, costs = (torch.cat(parts).cpu() for parts in zip(*found, strict=True))
    if isinstance(keep, tuple):
        taken, increases = [order.shape[1]] * rows, costs.flatten()
    else:
        taken, increases = _merge(costs, rows * n - round(keep * rows * n))
    kept = torch.ones(rows, n, dtype=torch.bool)
    for row, count in enumerate(taken):
        kept[row, order[row, :count]] = False
    kept = kept.to(weight.device)
    return solve_for_mask(weight, moment, kept, damping), kept, increases


def _orders(value: Tensor, inverse: Tensor, keep: float | tuple[int, int]) -> tuple[Tensor, Tensor]:
    """`(rows, n_steps)` columns in the order in which each row loses them, and what each costs."""
    rows, n = value.shape
    m = keep[1] if isinstance(keep, tuple) else n
    size = torch.full((-(-n // m),), m).index_fill(0, torch.tensor([-(-n // m) - 1]), n - (-(-n // m) - 1) * m)
    # How many more each group of m neighbours may lose; without groups all of them.
    left = (size - keep[0]).clamp_min(0) if isinstance(keep, tuple) else size
    left = left.to(value.device).repeat(rows, 1)
    each, open_ = torch.arange(rows, device=value.device), torch.ones_like(value, dtype=torch.bool)
    inverse, value = inverse.repeat(rows, 1, 1), value.clone()
    order, costs = [], []
    for _ in range(int(left[0].sum())):
        allowed = open_ & (left > 0).repeat_interleave(m, dim=1)[:, :n]
        diagonal = inverse.diagonal(dim1=1, dim2=2).where(open_, 1.0)
        cost, q = (value.square() / diagonal).where(allowed, torch.inf).min(dim=1)
        column = inverse[each, :, q] / diagonal[each, q][:, None]
        value -= value[each, q][:, None] * column
        inverse.baddbmm_(column[:, :, None], inverse[each, q][:, None, :], alpha=-1)
        open_[each, q] = False
        value = value.where(open_, 0.0)
        left[each, q // m] -= 1
        order.append(q)
        costs.append(cost)
    empty = value.new_zeros(rows, 0)
    return (torch.stack(order, 1), torch.stack(costs, 1)) if order else (empty.long(), empty)


def _merge(costs: Tensor, count: int) -> tuple[list[int], Tensor]:
    """How many each row loses if always the row goes on whose next removal costs least, and these costs."""
    taken, table, increases = [0] * len(costs), costs.tolist(), []
    heap = [(row[0], r) for r, row in enumerate(table) if row]
    heapq.heapify(heap)
    for _ in range(count):
        cost, r = heapq.heappop(heap)
        increases.append(cost)
        taken[r] += 1
        if taken[r] < len(table[r]):
            heapq.heappush(heap, (table[r][taken[r]], r))
    return taken, torch.tensor(increases, dtype=torch.float64)
