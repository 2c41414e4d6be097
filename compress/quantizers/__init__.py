"""Quantizers: who chooses the ranges."""

from compress.quantizers.minmax import MinMaxQuantizer
from compress.quantizers.mse import MseQuantizer
from compress.quantizers.percentile import PercentileQuantizer

__all__ = ["MinMaxQuantizer", "MseQuantizer", "PercentileQuantizer"]
