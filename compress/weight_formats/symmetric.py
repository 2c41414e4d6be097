"""Whole multiples of a scale, as many below zero as above."""

import torch
from torch import Tensor

from compress.quantizer import Quantizer, nearest_level, weight_scale
from compress.weight_format import (
    Parameters,
    check_rows,
    level_bits,
    level_symbols,
    nonzero,
    rounded,
    scaled_gradient,
    straight_through,
    symbol_levels,
)


class SymmetricFormat:
    """Integers from -(2^(bits-1) - 1) to 2^(bits-1) - 1 times a scale; with one bit, minus or plus the scale.

    (Krishnamoorthi 2018, "Quantizing deep convolutional networks", arXiv:1806.08342.) Scales are trained by the
    gradient of LSQ (Esser et al. 2020, arXiv:1902.08153).

    Attributes:
        carries: the gradient of a scale is that at symbols that stay, for a training that multiplies the weights by
            what a step multiplies their scale by. Else it is that at weights that stay.
    """

    name = "symmetric"

    def __init__(self, bits: int, masked: bool = False) -> None:
        self.signed = bits > 1
        self.masked = masked
        # Of one bit the levels are half a step from zero on either side.
        self.largest = 2.0 ** (bits - 1) - 1 if self.signed else 0.5
        self.stored_bits = bits if self.signed else level_bits(bits, masked)
        self.carries = False

    def fit(self, rows: Tensor, kept: Tensor, quantizer: Quantizer) -> Parameters:
        check_rows(rows, kept)
        scale = weight_scale(rows.masked_fill(~kept, 0.0), self.largest, quantizer, kept=kept)
        return {"scale": scale if self.signed else scale * 0.5}

    def encode(self, rows: Tensor, kept: Tensor, parameters: Parameters) -> Tensor:
        scale = nonzero(parameters["scale"])[:, None]
        if self.signed:
            return nearest_level(rows / scale, self.largest).masked_fill(~kept, 0.0).to(torch.int16)
        return level_symbols((rows / scale >= 0).long(), kept, self.masked)

    def decode(self, symbols: Tensor, parameters: Parameters) -> Tensor:
        scale = parameters["scale"][:, None]
        if self.signed:
            return symbols.float() * scale
        levels, kept = symbol_levels(symbols, self.masked)
        return (2 * levels - 1).float().masked_fill(~kept, 0.0) * scale

    def simulate(self, rows: Tensor, kept: Tensor, parameters: Parameters) -> Tensor:
        largest = self.largest if self.signed else 1.0
        value = self.decode(self.encode(rows, kept, parameters), parameters)
        scale = scaled_gradient(parameters["scale"], kept, largest)
        step = scale.detach() if self.carries else scale
        levels = rounded(rows / nonzero(step), value / nonzero(scale), -largest, largest)
        return straight_through(value, levels * scale, kept)
