"""The change of a linear layer that brings its outputs closest to a target, in closed form."""

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

_CHUNK = 4096
# Penalties that cross-validation chooses from: from as good as none to one that leaves the layer nearly as it is.
RIDGES = (1e-4, 1e-3, 1e-2, 1e-1, 1.0)


@dataclass(frozen=True, eq=False)
class Change:
    """What to add to a layer.

    Attributes:
        matrix: `(groups, n_inputs, n_outputs)` float64.
        offset: `(groups, n_outputs)` float64, zero if the layer has no offset to change.
        error_before, error_after: mean squared error, as a part of the target's variance.
        ridge: the penalty that was used.
    """

    matrix: Tensor
    offset: Tensor
    error_before: float
    error_after: float
    ridge: float


def solve_change(
    inputs: Tensor,
    current: Tensor,
    target: Tensor,
    *,
    ridge: float | None,
    offset: bool,
    limits: tuple[float, float] | None = None,
    steps: int = 4,
    second_half: Tensor | None = None,
) -> Change:
    """The change `(M, b)` that minimises `|current + inputs M + b - target|^2 + penalty |M|^2`.

    Values that are clipped afterwards need not agree beyond the limits: where the target lies below the lower limit,
    only the part of the value above it is an error. This is convex; each step solves it with the errors of the step
    before, which never increases the penalised error (compare the asymmetric reconstruction of Zhang et al. 2015).

    Args:
        inputs: `(groups, n_rows, n_inputs)`.
        current, target: `(groups, n_rows, n_outputs)`.
        ridge: penalty on the change, relative to the mean square of the inputs times the number of rows; None for the
            one out of `RIDGES` that does best when each half of the rows is predicted from the other half.
        second_half: `(n_rows,)` bool, which half each row belongs to; None for the later rows. Rows of one example
            belong together.
        offset: whether `b` is free; it is not penalised.
        limits: between which values matter afterwards: `(0, inf)` before a ReLU.
        steps: number of solves with limits; one without.
    """
    groups, n_rows, n_inputs = inputs.shape
    x = torch.cat([inputs, inputs.new_ones(groups, n_rows, 1)], dim=2) if offset else inputs
    gram = cross_product(x, x)
    if ridge is None:
        late = torch.arange(n_rows, device=x.device) >= (n_rows + 1) // 2 if second_half is None else second_half
        part, residual = x[:, late], _residual(current, target, limits)
        second, cross = cross_product(part, part), cross_product(part, residual[:, late])
        # The first half is what the second one leaves.
        grams, crosses = (gram - second, second), (cross_product(x, residual) - cross, cross)
        ridge = cross_validated_ridge(grams, crosses, n_inputs)
    penalty = _penalty(gram, n_inputs, ridge)
    factor = _factor(gram, penalty)
    total = gram.new_zeros(groups, x.shape[2], target.shape[2])
    value, before = current, None
    for _ in range(steps if limits else 1):
        residual = _residual(value, target, limits)
        before = _mean_square(residual) if before is None else before
        # The penalty is on the whole change, not on that of this step.
        total = total + torch.cholesky_solve(cross_product(x, residual) - penalty[:, :, None] * total, factor)
        value = current + x @ total.to(x.dtype)
    after = _mean_square(_residual(value, target, limits))
    used = target.clamp(*limits) if limits else target
    scale = used.double().var(correction=0).clamp_min(torch.finfo(torch.float64).tiny).item()
    shift = total[:, n_inputs] if offset else total.new_zeros(groups, target.shape[2])
    return Change(total[:, :n_inputs], shift, before / scale, after / scale, ridge)


def cross_validated_ridge(grams: Sequence[Tensor], crosses: Sequence[Tensor], n_inputs: int) -> float:
    """The penalty out of `RIDGES` with the least error where each half is predicted from the other half.

    Args:
        grams: `x^T x` of each half, `(groups, n, n)` float64.
        crosses: `x^T residual` of each half, `(groups, n, n_outputs)` float64.
        n_inputs: how many of the n columns, the first ones, are penalised.
    """
    errors = []
    for ridge in RIDGES:
        error = 0.0
        for fitted, judged in ((0, 1), (1, 0)):
            factor = _factor(grams[fitted], _penalty(grams[fitted], n_inputs, ridge))
            found = torch.cholesky_solve(crosses[fitted], factor)
            # The square of the residual itself is the same for all penalties.
            error += float((found * (grams[judged] @ found - 2 * crosses[judged])).sum())
        errors.append(error)
    return RIDGES[min(range(len(RIDGES)), key=errors.__getitem__)]


def _penalty(gram: Tensor, n_inputs: int, ridge: float) -> Tensor:
    """`(groups, n)`: on the diagonal, zero for the offset."""
    penalty = gram.new_zeros(gram.shape[:2])
    penalty[:, :n_inputs] = ridge * gram.diagonal(dim1=1, dim2=2)[:, :n_inputs].mean(dim=1, keepdim=True)
    return penalty


def cross_product(a: Tensor, b: Tensor) -> Tensor:
    """`a^T b` of each group, `(groups, n_a, n_b)`, accumulated in float64 over chunks of rows."""
    total = torch.zeros(a.shape[0], a.shape[2], b.shape[2], dtype=torch.float64, device=a.device)
    for start in range(0, a.shape[1], _CHUNK):
        total += a[:, start : start + _CHUNK].transpose(1, 2) @ b[:, start : start + _CHUNK]
    return total


def _factor(gram: Tensor, penalty: Tensor) -> Tensor:
    """Cholesky factor of the penalised matrix; a singular one gets the least more on its diagonal that helps."""
    n = gram.shape[-1]
    extra = gram.diagonal(dim1=1, dim2=2).amax(dim=1).clamp_min(1e-30) * 1e-12
    while True:
        matrix = gram + torch.diag_embed(penalty + extra[:, None].expand(-1, n))
        factor, failed = torch.linalg.cholesky_ex(matrix)
        if not failed.any():
            return factor
        extra = torch.where(failed > 0, extra * 100, extra)


def _residual(value: Tensor, target: Tensor, limits: tuple[float, float] | None) -> Tensor:
    residual = target - value
    if limits is None:
        return residual
    low, high = limits
    residual = torch.where(target <= low, (low - value).clamp_max(0), residual)
    return torch.where(target >= high, (high - value).clamp_min(0), residual)


def _mean_square(residual: Tensor) -> float:
    return residual.double().square().mean().item()
