"""Quantizers: who chooses the ranges."""

from compress.quantizers.minmax import MinMaxQuantizer
from compress.quantizers.mse import MseQuantizer

__all__ = ["MinMaxQuantizer", "MseQuantizer"]
