"""Weights as they are, for layers where only a mask is held."""

from torch import Tensor

from compress.quantizer import Quantizer
from compress.weight_format import Parameters, check_rows, straight_through


class Float32Format:
    """IEEE 754 binary32: nothing is rounded. It has no parameters."""

    name = "float32"
    stored_bits = 32
    signed = True

    def __init__(self, bits: int = 32, masked: bool = False) -> None:
        pass

    def fit(self, rows: Tensor, kept: Tensor, quantizer: Quantizer) -> Parameters:
        check_rows(rows, kept)
        return {}

    def encode(self, rows: Tensor, kept: Tensor, parameters: Parameters) -> Tensor:
        return rows.masked_fill(~kept, 0.0)

    def decode(self, symbols: Tensor, parameters: Parameters) -> Tensor:
        return symbols

    def simulate(self, rows: Tensor, kept: Tensor, parameters: Parameters) -> Tensor:
        return straight_through(self.encode(rows, kept, parameters), rows, kept)
