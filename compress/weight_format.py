"""The seam of stored weights: numbers as symbols and parameters, and how training passes through them.

A weight is seen as rows `(n_rows, n)`, each with parameters of its own: a tensor, a channel, or a group of weights (see
`compress.weight_rows`). `kept` says which entries count: what pads a short row does not, nor does a weight that is
masked. With a mask (`masked=True`) the value of every other entry is exactly zero, and formats without a level at zero
keep their code 0 for it: one level less is left, but two at least (so one bit takes two when stored).
"""

from typing import Any, Protocol, runtime_checkable

import torch
from torch import Tensor
from torch.autograd import Function

from compress.errors import DataError
from compress.quantizer import Quantizer

Parameters = dict[str, Tensor]
# In steps: a weight that is an end of its range may lie beyond it by the rounding of floats, and is not clipped.
_SLACK = 1e-3


@runtime_checkable
class WeightFormat(Protocol):
    """A number format, made with its `bits` and whether some weights are `masked`.

    Attributes:
        stored_bits: of each symbol as stored.
        signed: whether symbols are integers around zero; else they count from 0.
    """

    name: str
    stored_bits: int
    signed: bool

    def fit(self, rows: Tensor, kept: Tensor, quantizer: Quantizer) -> Parameters:
        """What a decoder needs besides the symbols, one entry for each row (first dimension).

        Floats among them can be trained.

        Args:
            rows: `(n_rows, n)` float32.
            kept: `(n_rows, n)` bool.
            quantizer: who chooses the ranges, where there are any.

        Raises:
            DataError: if a kept weight is NaN or infinite.
        """

    def encode(self, rows: Tensor, kept: Tensor, parameters: Parameters) -> Tensor:
        """`(n_rows, n)` symbols: int16, or what is stored itself for formats of floating point."""

    def decode(self, symbols: Tensor, parameters: Parameters) -> Tensor:
        """`(n_rows, n)` float32 values; what a fresh process computes from what is stored."""

    def simulate(self, rows: Tensor, kept: Tensor, parameters: Parameters) -> Tensor:
        """`decode(encode(...))`, bit for bit, with gradients for the rows and the parameters."""


class _Through(Function):
    @staticmethod
    def forward(ctx: Any, surrogate: Tensor, value: Tensor) -> Tensor:
        return value.clone()

    @staticmethod
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor, None]:
        return gradient, None


def straight_through(value: Tensor, surrogate: Tensor, kept: Tensor) -> Tensor:
    """`value` bit for bit, with the gradient of `surrogate` where `kept`, and none elsewhere.

    (The straight-through estimator: Bengio, Leonard, Courville 2013, arXiv:1308.3432.)
    """
    return _Through.apply(torch.where(kept, surrogate, 0.0), value.detach())


def passing(value: Tensor, rows: Tensor) -> Tensor:
    """About `value`, with its gradient and, straight through the rounding, that of `rows`."""
    return value + (rows - rows.detach())


def rounded(place: Tensor, level: Tensor, low: float, high: float) -> Tensor:
    """About `level`, what `place` (in steps) is rounded to; the gradient goes to `place` unless it is clipped."""
    inside = place.clamp(low - _SLACK, high + _SLACK)
    return inside + (level - inside).detach()


def scaled_gradient(parameter: Tensor, kept: Tensor, largest: float) -> Tensor:
    """`parameter` `(n_rows,)` as a column whose gradient is multiplied by 1 / sqrt(n largest), n the kept of its row.

    (Esser et al. 2020, "Learned Step Size Quantization", arXiv:1902.08153, section 2.2.)
    """
    factor = torch.rsqrt((kept.sum(dim=1) * largest).clamp(min=1).to(parameter.dtype))
    return (parameter * factor + (parameter * (1 - factor)).detach())[:, None]


def check_rows(rows: Tensor, kept: Tensor) -> None:
    """Raises DataError if a kept weight is NaN or infinite."""
    if not torch.isfinite(rows[kept]).all():
        raise DataError("A weight with NaN or infinite values cannot be quantised. Load a sound checkpoint.")


def nonzero(scale: Tensor) -> Tensor:
    """`scale` to divide by: training may bring one to exactly zero."""
    return torch.where(scale == 0, torch.finfo(scale.dtype).tiny, scale)


def mean_magnitude(rows: Tensor, kept: Tensor) -> Tensor:
    """`(n_rows,)` float32, the mean of |w| over the kept of each row, summed in float64; 0 where none is kept."""
    total = rows.abs().masked_fill(~kept, 0.0).sum(dim=1, dtype=torch.float64)
    return (total / kept.sum(dim=1).clamp(min=1)).float()


def level_count(bits: int, masked: bool) -> int:
    """Levels of a format without one at zero: 2^bits; under a mask one less, but 2 at least."""
    return max(2**bits - 1, 2) if masked else 2**bits


def level_bits(bits: int, masked: bool) -> int:
    """Bits that a symbol of such a format is stored in."""
    return max(bits, 2) if masked else bits


def level_symbols(levels: Tensor, kept: Tensor, masked: bool) -> Tensor:
    """int16 symbols of level numbers from 0; under a mask 0 is what is not kept."""
    return (torch.where(kept, levels + 1, 0) if masked else levels).to(torch.int16)


def symbol_levels(symbols: Tensor, masked: bool) -> tuple[Tensor, Tensor]:
    """`(levels, kept)` from `level_symbols`."""
    if not masked:
        return symbols.long(), torch.ones_like(symbols, dtype=torch.bool)
    return (symbols.long() - 1).clamp(min=0), symbols > 0
