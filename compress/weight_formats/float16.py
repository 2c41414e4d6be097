"""Half precision."""

import torch
from torch import Tensor

from compress.quantizer import Quantizer
from compress.weight_format import Parameters, check_rows, passing, straight_through


class Float16Format:
    """IEEE 754 binary16: 11 significant bits, up to 65504; what lies beyond is clipped. It has no parameters.

    (Of networks: Micikevicius et al. 2018, "Mixed Precision Training", ICLR, arXiv:1710.03740.)
    """

    name = "float16"
    stored_bits = 16
    signed = True

    def __init__(self, bits: int = 16, masked: bool = False) -> None:
        pass

    def fit(self, rows: Tensor, kept: Tensor, quantizer: Quantizer) -> Parameters:
        check_rows(rows, kept)
        return {}

    def encode(self, rows: Tensor, kept: Tensor, parameters: Parameters) -> Tensor:
        largest = torch.finfo(torch.float16).max
        return rows.masked_fill(~kept, 0.0).clamp(-largest, largest).to(torch.float16)

    def decode(self, symbols: Tensor, parameters: Parameters) -> Tensor:
        return symbols.float()

    def simulate(self, rows: Tensor, kept: Tensor, parameters: Parameters) -> Tensor:
        value = self.decode(self.encode(rows.detach(), kept, parameters), parameters)
        return straight_through(value, passing(value, rows), kept)
