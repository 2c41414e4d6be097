"""A few values that may be any."""

import torch
from torch import Tensor

from compress.quantizer import Quantizer, row_ends
from compress.weight_format import (
    Parameters,
    check_rows,
    level_bits,
    level_count,
    level_symbols,
    passing,
    straight_through,
    symbol_levels,
)

_MOST_ROUNDS = 300


class CodebookFormat:
    """The nearest of 2^bits centroids of each row, found by k-means from a linear start between the ends.

    In training the gradient of a centroid is the sum over its weights (Han et al. 2016, "Deep Compression",
    arXiv:1510.00149). Weights pass it on straight through too and may change their centroid; freeze them
    (`requires_grad_(False)`) to train the centroids alone, as the paper does. No range is chosen.
    """

    name = "codebook"
    signed = False

    def __init__(self, bits: int, masked: bool = False) -> None:
        self.masked = masked
        self.levels = level_count(bits, masked)
        self.stored_bits = level_bits(bits, masked)

    def fit(self, rows: Tensor, kept: Tensor, quantizer: Quantizer) -> Parameters:
        check_rows(rows, kept)
        low, high = (end.double()[:, None] for end in row_ends(rows, kept))
        part = torch.linspace(0, 1, self.levels, dtype=torch.float64, device=rows.device)
        return {"centroids": _lloyd(low + (high - low) * part, rows, kept).float()}

    def encode(self, rows: Tensor, kept: Tensor, parameters: Parameters) -> Tensor:
        # Training may bring centroids out of order.
        centroids, order = parameters["centroids"].detach().sort(dim=1, stable=True)
        nearest = _nearest(rows.detach(), centroids)
        return level_symbols(order.gather(1, nearest), kept, self.masked)

    def decode(self, symbols: Tensor, parameters: Parameters) -> Tensor:
        levels, kept = symbol_levels(symbols, self.masked)
        return torch.where(kept, parameters["centroids"].gather(1, levels), 0.0)

    def simulate(self, rows: Tensor, kept: Tensor, parameters: Parameters) -> Tensor:
        value = self.decode(self.encode(rows, kept, parameters), parameters)
        return straight_through(value, passing(value, rows), kept)


def _nearest(rows: Tensor, centroids: Tensor) -> Tensor:
    """Number of the nearest centroid in each row, which are in order; half way it is the lower one."""
    borders = (centroids[:, 1:] + centroids[:, :-1]) / 2
    return torch.searchsorted(borders.contiguous(), rows.contiguous())


def _lloyd(centroids: Tensor, rows: Tensor, kept: Tensor) -> Tensor:
    """The centroids `(n_rows, levels)`, float64 in order, moved to the means of their weights until none moves.

    Sorted once, the weights of a centroid are a span whose sum is a difference of running sums: a round costs a search
    for each border, whatever the size of the row. A centroid without weights stays.
    """
    ordered = rows.double().masked_fill(~kept, torch.inf).sort(dim=1).values
    count = kept.sum(dim=1, keepdim=True)
    sums = torch.where(torch.isfinite(ordered), ordered, 0.0).cumsum(dim=1)
    sums = torch.cat([torch.zeros_like(sums[:, :1]), sums], dim=1)
    for _ in range(_MOST_ROUNDS):
        borders = (centroids[:, 1:] + centroids[:, :-1]) / 2
        ends = torch.searchsorted(ordered, borders.contiguous(), right=True)
        ends = torch.cat([torch.zeros_like(count), torch.minimum(ends, count), count], dim=1)
        size = ends.diff(dim=1)
        means = sums.gather(1, ends).diff(dim=1) / size.clamp(min=1)
        moved = torch.where(size > 0, means, centroids)
        if torch.equal(moved, centroids):
            break
        centroids = moved
    return centroids
