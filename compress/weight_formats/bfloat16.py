"""Half as many bits, with the range of float32."""

import torch
from torch import Tensor

from compress.quantizer import Quantizer
from compress.weight_format import Parameters, check_rows, passing, straight_through


class Bfloat16Format:
    """bfloat16: 8 significant bits, the range of float32. It has no parameters.

    (Kalamkar et al. 2019, "A Study of BFLOAT16 for Deep Learning Training", arXiv:1905.12322.)
    """

    name = "bfloat16"
    stored_bits = 16
    signed = True

    def __init__(self, bits: int = 16, masked: bool = False) -> None:
        pass

    def fit(self, rows: Tensor, kept: Tensor, quantizer: Quantizer) -> Parameters:
        check_rows(rows, kept)
        return {}

    def encode(self, rows: Tensor, kept: Tensor, parameters: Parameters) -> Tensor:
        largest = torch.finfo(torch.bfloat16).max
        return rows.masked_fill(~kept, 0.0).clamp(-largest, largest).to(torch.bfloat16)

    def decode(self, symbols: Tensor, parameters: Parameters) -> Tensor:
        return symbols.float()

    def simulate(self, rows: Tensor, kept: Tensor, parameters: Parameters) -> Tensor:
        value = self.decode(self.encode(rows.detach(), kept, parameters), parameters)
        return straight_through(value, passing(value, rows), kept)
