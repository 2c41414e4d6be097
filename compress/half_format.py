"""What the two formats of 16 bits share: numbers are cast, and need no parameters to come back."""

from typing import ClassVar

import torch
from torch import Tensor

from compress.quantizer import Quantizer
from compress.weight_format import Parameters, check_rows, passing, straight_through


class HalfFormat:
    """Floats of 16 bits; what lies beyond their range is clipped.

    Attributes:
        dtype: of the numbers as stored.
    """

    dtype: ClassVar[torch.dtype]
    stored_bits = 16
    signed = True

    def __init__(self, bits: int = 16, masked: bool = False) -> None:
        pass

    def fit(self, rows: Tensor, kept: Tensor, quantizer: Quantizer) -> Parameters:
        check_rows(rows, kept)
        return {}

    def encode(self, rows: Tensor, kept: Tensor, parameters: Parameters) -> Tensor:
        largest = torch.finfo(self.dtype).max
        return rows.masked_fill(~kept, 0.0).clamp(-largest, largest).to(self.dtype)

    def decode(self, symbols: Tensor, parameters: Parameters) -> Tensor:
        return symbols.float()

    def simulate(self, rows: Tensor, kept: Tensor, parameters: Parameters) -> Tensor:
        value = self.decode(self.encode(rows.detach(), kept, parameters), parameters)
        return straight_through(value, passing(value, rows), kept)
