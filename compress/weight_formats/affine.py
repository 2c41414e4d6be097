"""Equal steps between two ends."""

import torch
from torch import Tensor

from compress.quantizer import Quantizer
from compress.weight_format import (
    Parameters,
    check_rows,
    level_bits,
    level_count,
    level_symbols,
    nonzero,
    rounded,
    scaled_gradient,
    straight_through,
    symbol_levels,
)


class AffineFormat:
    """The level round((w - low) / (high - low) (2^bits - 1)) of each weight; low and the step are stored.

    (Jacob et al. 2018, "Quantization and Training of Neural Networks", CVPR, arXiv:1712.05877, whose levels always have
    a zero.) Here zero is no level unless it happens to be one. Both parameters are trained by the gradient of LSQ+
    (Bhalgat et al. 2020, arXiv:2004.09576).
    """

    name = "affine"
    signed = False

    def __init__(self, bits: int, masked: bool = False) -> None:
        self.masked = masked
        self.levels = level_count(bits, masked)
        self.stored_bits = level_bits(bits, masked)

    def fit(self, rows: Tensor, kept: Tensor, quantizer: Quantizer) -> Parameters:
        check_rows(rows, kept)
        low, high = quantizer.weight_range(rows, self.levels, kept)
        step = ((high.double() - low.double()) / (self.levels - 1)).float()
        # In a constant row every weight is the low end.
        step = torch.where(step > torch.finfo(torch.float32).tiny, step, torch.ones_like(step))
        return {"low": low.float(), "step": step}

    def encode(self, rows: Tensor, kept: Tensor, parameters: Parameters) -> Tensor:
        low, step = parameters["low"][:, None], nonzero(parameters["step"])[:, None]
        levels = ((rows - low) / step).masked_fill(~kept, 0.0).round().clamp(0, self.levels - 1)
        return level_symbols(levels, kept, self.masked)

    def decode(self, symbols: Tensor, parameters: Parameters) -> Tensor:
        levels, kept = symbol_levels(symbols, self.masked)
        value = parameters["low"][:, None] + levels.float() * parameters["step"][:, None]
        return torch.where(kept, value, 0.0)

    def simulate(self, rows: Tensor, kept: Tensor, parameters: Parameters) -> Tensor:
        symbols = self.encode(rows, kept, parameters)
        largest = self.levels - 1
        low, step = (scaled_gradient(parameters[name], kept, largest) for name in ("low", "step"))
        levels = rounded((rows - low) / nonzero(step), symbol_levels(symbols, self.masked)[0], 0, largest)
        return straight_through(self.decode(symbols, parameters), low + levels * step, kept)
