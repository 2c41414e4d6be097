"""Minus one, zero, one, times a scale."""

import torch
from torch import Tensor

from compress.quantizer import Quantizer
from compress.weight_format import (
    Parameters,
    check_rows,
    mean_magnitude,
    passing,
    scaled_gradient,
    straight_through,
)


class TernaryFormat:
    """The sign of what exceeds 0.7 mean |w|, times the mean magnitude of these.

    Li et al. 2016, "Ternary Weight Networks", arXiv:1605.04711. The threshold follows the weights in training; the
    scale stays or is trained. No range is chosen.
    """

    name = "ternary"
    stored_bits = 2
    signed = True

    def __init__(self, bits: int = 2, masked: bool = False) -> None:
        pass

    def fit(self, rows: Tensor, kept: Tensor, quantizer: Quantizer) -> Parameters:
        check_rows(rows, kept)
        return {"scale": mean_magnitude(rows, _large(rows, kept))}

    def encode(self, rows: Tensor, kept: Tensor, parameters: Parameters) -> Tensor:
        return torch.where(_large(rows, kept), torch.sign(rows), 0.0).to(torch.int16)

    def decode(self, symbols: Tensor, parameters: Parameters) -> Tensor:
        return symbols.float() * parameters["scale"][:, None]

    def simulate(self, rows: Tensor, kept: Tensor, parameters: Parameters) -> Tensor:
        symbols = self.encode(rows, kept, parameters)
        surrogate = symbols.float() * scaled_gradient(parameters["scale"], kept, 1)
        return straight_through(self.decode(symbols, parameters), passing(surrogate, rows), kept)


def _large(rows: Tensor, kept: Tensor) -> Tensor:
    return kept & (rows.abs() > 0.7 * mean_magnitude(rows, kept)[:, None])
