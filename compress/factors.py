"""The two weights of low rank that come closest to one, in closed form: in weights, or in outputs on given inputs."""

import math
from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

# Added to the diagonal of second moments, as a part of its mean: directions that calibration has not seen count a bit.
RIDGE = 1e-3


@dataclass(frozen=True, eq=False)
class Factors:
    """Two weights in place of one.

    Attributes:
        reduce: `(rank, in_ch, *kernel)`, with 1 for every spatial dimension that belongs to the second layer.
        expand: `(out_ch, rank, *kernel)`, with 1 for every spatial dimension that belongs to the first layer.
        weight: `(out_ch, in_ch, *kernel)`, what the two compute together.
        weight_error: squared error of `weight`, as a part of the squared weight.
        output_error: mean squared error of the layer's outputs without its bias, as a part of their mean square; NaN
            without second moments.
    """

    reduce: Tensor
    expand: Tensor
    weight: Tensor
    weight_error: float
    output_error: float


def full_rank(shape: Sequence[int], first_dims: Sequence[int]) -> int:
    """The rank at which two layers can do whatever one with a weight of this shape does."""
    view = _View(tuple(shape), tuple(first_dims))
    return min(shape[0] * view.n_offsets, view.n_inputs)


def per_rank(shape: Sequence[int], first_dims: Sequence[int]) -> tuple[int, int]:
    """Weights that each rank takes in the first and in the second layer."""
    view = _View(tuple(shape), tuple(first_dims))
    return view.n_inputs, shape[0] * view.n_offsets


def useful_rank(shape: Sequence[int], first_dims: Sequence[int]) -> int:
    """The largest rank at which two layers have fewer weights than one with a weight of this shape; 0 for none."""
    return max(0, math.ceil(math.prod(shape) / sum(per_rank(shape, first_dims))) - 1) if math.prod(shape) else 0


def compose(reduce: Tensor, expand: Tensor, first_dims: Sequence[int]) -> Tensor:
    """The weight of the one layer that computes what the two do."""
    kernel = (a * b for a, b in zip(reduce.shape[2:], expand.shape[2:], strict=True))
    view = _View((expand.shape[0], reduce.shape[1], *kernel), tuple(first_dims))
    return view.fold(expand.reshape(*expand.shape[:2], -1).movedim(1, 2) @ reduce.flatten(1))


def factor_weight(
    weight: Tensor,
    first_dims: Sequence[int],
    ranks: Sequence[int],
    second_moment: Tensor | None = None,
    ridge: float = RIDGE,
) -> list[Factors]:
    """The best factors of each rank.

    Without second moments the truncated singular value decomposition (Eckart and Young 1936). With them that of the
    weight times a root of the second moment of the first layer's inputs, which minimises the error of the outputs
    (Zhang et al. 2016, arXiv:1505.06798; SVD-LLM, Wang et al. 2024, arXiv:2403.07378) if the second layer has no
    kernel. If it has one, its inputs at several offsets are correlated; its weight is solved by least squares after
    either decomposition, and the better result is taken. The norms of a reduced channel in both factors are made equal.

    Args:
        weight: `(out_ch, in_ch, *kernel)` of a layer without groups.
        first_dims: the spatial dimensions that belong to the first layer, see `Factorizer`.
        ranks: each from 1 to `full_rank`.
        second_moment: `(n, n)` mean of z z^T, where z are the n = in_ch * kernel inputs of one output, in the order of
            the weight; see `collect_input_moments`.
        ridge: added to the diagonal of second moments, as a part of its mean.
    """
    view = _View(tuple(weight.shape), tuple(first_dims))
    dense = view.unfold(weight.detach().double())
    moments = None if second_moment is None else view.unfold_moments(second_moment.to(dense))
    bases = [_basis(dense, moments, ridge)]
    if moments is not None and view.n_offsets > 1:
        # The first one takes the offsets for independent, which they are not: for some ranks this one does better.
        bases.append(_basis(dense, None, ridge))

    def candidates(rank: int) -> list[Factors]:
        return [_factors(view, dense, basis[:, :rank], moments, ridge, weight.dtype) for basis in bases]

    return [min(candidates(rank), key=lambda factors: factors.output_error) for rank in ranks]


@dataclass(frozen=True)
class _View:
    """A weight as `(out_ch, offsets of the second layer, inputs of the first layer at one offset)`."""

    shape: tuple[int, ...]
    first_dims: tuple[int, ...]

    @property
    def second_dims(self) -> tuple[int, ...]:
        return tuple(d for d in range(len(self.shape) - 2) if d not in self.first_dims)

    @property
    def n_offsets(self) -> int:
        return math.prod(self.shape[2 + d] for d in self.second_dims)

    @property
    def n_inputs(self) -> int:
        return self.shape[1] * math.prod(self.shape[2 + d] for d in self.first_dims)

    @property
    def _order(self) -> list[int]:
        return [*(2 + d for d in self.second_dims), 1, *(2 + d for d in self.first_dims)]

    def unfold(self, weight: Tensor) -> Tensor:
        """`(out_ch, n_offsets, n_inputs)`."""
        return weight.permute(0, *self._order).reshape(self.shape[0], self.n_offsets, self.n_inputs)

    def fold(self, matrix: Tensor) -> Tensor:
        """The weight whose `unfold` this is."""
        order = [0, *self._order]
        shaped = matrix.reshape([self.shape[d] for d in order])
        return shaped.permute([order.index(d) for d in range(len(order))]).contiguous()

    def unfold_moments(self, second: Tensor) -> Tensor:
        """`(n_offsets, n_inputs, n_offsets, n_inputs)` of an `(n, n)` matrix."""
        sizes, n = self.shape[1:], len(self._order)
        order = [d - 1 for d in self._order]
        permuted = second.reshape(*sizes, *sizes).permute(*order, *(n + d for d in order))
        return permuted.reshape(self.n_offsets, self.n_inputs, self.n_offsets, self.n_inputs)

    def kernel(self, dims: tuple[int, ...]) -> list[int]:
        """Sizes of the spatial dimensions in `dims`, 1 for the others."""
        return [size if d in dims else 1 for d, size in enumerate(self.shape[2:])]


def _basis(dense: Tensor, moments: Tensor | None, ridge: float) -> Tensor:
    """`(out_ch * n_offsets, n)`: orthonormal directions of the outputs, the most important first."""
    matrix = dense.flatten(0, 1)
    if moments is not None:
        matrix = matrix @ torch.linalg.cholesky(_damped(torch.einsum("gpgq->pq", moments), ridge))
    return torch.linalg.svd(matrix, full_matrices=False).U


def _damped(matrix: Tensor, ridge: float) -> Tensor:
    """The matrix with some more on its diagonal; the identity for a zero matrix."""
    level = float(matrix.diagonal().mean())
    # The least that keeps a singular matrix positive in float64.
    extra = max(ridge, 1e-10) * level if level > 0 else 1.0
    return matrix + extra * torch.eye(len(matrix), dtype=matrix.dtype, device=matrix.device)


def _factors(
    view: _View, dense: Tensor, basis: Tensor, moments: Tensor | None, ridge: float, dtype: torch.dtype
) -> Factors:
    # A projection of the outputs: the best product, and no inverse of the second moments is needed.
    reduce = basis.T @ dense.flatten(0, 1)
    expand = basis.unflatten(0, dense.shape[:2])
    if moments is not None and view.n_offsets > 1:
        expand = expand + _correction(dense - expand @ reduce, reduce, moments, ridge)
    error = dense - expand @ reduce
    output_error = math.nan if moments is None else _energy(error, moments) / max(_energy(dense, moments), 1e-300)
    weight_error = float(error.square().sum()) / max(float(dense.square().sum()), 1e-300)
    reduce, expand = _balanced(reduce, expand)
    rank, out_ch = len(reduce), view.shape[0]
    return Factors(
        reduce.reshape(rank, view.shape[1], *view.kernel(view.first_dims)).to(dtype),
        expand.movedim(2, 1).reshape(out_ch, rank, *view.kernel(view.second_dims)).to(dtype),
        view.fold(expand @ reduce).to(dtype),
        weight_error,
        output_error,
    )


def _correction(error: Tensor, reduce: Tensor, moments: Tensor, ridge: float) -> Tensor:
    """`(out_ch, n_offsets, rank)` to add to the second weight: least squares, with a penalty on the change."""
    seen = torch.einsum("rp,gphq->rghq", reduce, moments)
    gram = torch.einsum("rghq,sq->grhs", seen, reduce).flatten(2, 3).flatten(0, 1)
    cross = torch.einsum("ohq,rghq->ogr", error, seen)
    factor = torch.linalg.cholesky(_damped(gram, ridge))
    return torch.cholesky_solve(cross.flatten(1).T, factor).T.reshape(cross.shape)


def _energy(matrix: Tensor, moments: Tensor) -> float:
    """Mean square length of what a weight `(out_ch, n_offsets, n_inputs)` makes of inputs with these moments."""
    flat = matrix.flatten(1)
    return float(((flat @ moments.flatten(2, 3).flatten(0, 1)) * flat).sum().clamp_min(0.0))


def _balanced(reduce: Tensor, expand: Tensor) -> tuple[Tensor, Tensor]:
    """The same product with equal norms of each reduced channel in both factors."""
    sizes = reduce.norm(dim=1), expand.flatten(0, 1).norm(dim=0)
    scale = torch.sqrt(sizes[1] / sizes[0])
    scale = torch.where((sizes[0] > 0) & (sizes[1] > 0), scale, 1.0)
    return reduce * scale[:, None], expand / scale
