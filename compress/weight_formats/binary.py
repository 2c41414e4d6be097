"""Minus or plus a scale."""

from torch import Tensor

from compress.quantizer import Quantizer
from compress.weight_format import (
    Parameters,
    check_rows,
    level_bits,
    level_symbols,
    mean_magnitude,
    passing,
    scaled_gradient,
    straight_through,
    symbol_levels,
)


class BinaryFormat:
    """The sign of each weight (plus for zero) times the mean magnitude of its row.

    Rastegari et al. 2016, "XNOR-Net", arXiv:1603.05279: the scale that makes the squared error least. The gradient
    passes straight through the sign. No range is chosen.
    """

    name = "binary"
    signed = False

    def __init__(self, bits: int = 1, masked: bool = False) -> None:
        self.masked = masked
        self.stored_bits = level_bits(bits, masked)

    def fit(self, rows: Tensor, kept: Tensor, quantizer: Quantizer) -> Parameters:
        check_rows(rows, kept)
        return {"scale": mean_magnitude(rows, kept)}

    def encode(self, rows: Tensor, kept: Tensor, parameters: Parameters) -> Tensor:
        return level_symbols((rows >= 0).long(), kept, self.masked)

    def decode(self, symbols: Tensor, parameters: Parameters) -> Tensor:
        return _signs(symbols, self.masked) * parameters["scale"][:, None]

    def simulate(self, rows: Tensor, kept: Tensor, parameters: Parameters) -> Tensor:
        symbols = self.encode(rows, kept, parameters)
        surrogate = _signs(symbols, self.masked) * scaled_gradient(parameters["scale"], kept, 1)
        return straight_through(self.decode(symbols, parameters), passing(surrogate, rows), kept)


def _signs(symbols: Tensor, masked: bool) -> Tensor:
    levels, kept = symbol_levels(symbols, masked)
    return (2 * levels - 1).float().masked_fill(~kept, 0.0)
