"""Zero and powers of two, so that a product is a shift."""

import torch
from torch import Tensor

from compress.quantizer import Quantizer
from compress.weight_format import Parameters, check_rows, passing, straight_through

_SMALLEST = -126
_MANTISSA_BITS, _EXPONENT_BIAS = 23, 127


class PowerOfTwoFormat:
    """0 and plus or minus 2^k for the 2^(bits-1) - 1 exponents k up to that of the row, its one parameter.

    The top exponent is floor(log2(4 limit / 3)) of the quantizer's limit, and each weight takes the value next to it
    (Miyashita et al. 2016, arXiv:1603.01025; Zhou et al. 2017, "Incremental Network Quantization", arXiv:1702.03044).
    Exponents are whole numbers: they are not trained.
    """

    name = "power_of_two"
    signed = True

    def __init__(self, bits: int, masked: bool = False) -> None:
        self.largest = 2 ** (bits - 1) - 1
        self.stored_bits = bits

    def fit(self, rows: Tensor, kept: Tensor, quantizer: Quantizer) -> Parameters:
        check_rows(rows, kept)
        limit = quantizer.weight_limit(rows.masked_fill(~kept, 0.0), self.largest, kept)
        return {"exponent": _nearest_exponent(limit).clamp(_SMALLEST, _EXPONENT_BIAS).to(torch.int8)}

    def encode(self, rows: Tensor, kept: Tensor, parameters: Parameters) -> Tensor:
        top = parameters["exponent"].long()[:, None]
        magnitude = rows.abs()
        place = (top - _nearest_exponent(magnitude) + 1).clamp(1, self.largest)
        smallest = _power(top - self.largest + 1)
        symbols = torch.where(kept & (magnitude >= smallest / 2) & (magnitude > 0), place, 0)
        return (symbols * torch.sign(rows)).to(torch.int16)

    def decode(self, symbols: Tensor, parameters: Parameters) -> Tensor:
        place = symbols.long().abs()
        magnitude = _power(parameters["exponent"].long()[:, None] - place + 1)
        return torch.where(symbols > 0, magnitude, torch.where(symbols < 0, -magnitude, 0.0))

    def simulate(self, rows: Tensor, kept: Tensor, parameters: Parameters) -> Tensor:
        value = self.decode(self.encode(rows, kept, parameters), parameters)
        return straight_through(value, passing(value, rows), kept)


def _nearest_exponent(magnitude: Tensor) -> Tensor:
    """int64 k of the 2^k next to each positive number."""
    fraction, exponent = torch.frexp(magnitude)
    return exponent.long() - (fraction < 0.75).long()


def _power(exponent: Tensor) -> Tensor:
    """float32 2^k, exactly and on every machine: the bits of the number, not a function of a library."""
    biased = (exponent.clamp(min=_SMALLEST) + _EXPONENT_BIAS).to(torch.int32)
    return (biased << _MANTISSA_BITS).view(torch.float32)
