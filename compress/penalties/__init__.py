"""Penalties: what is added to the loss of a training."""

from compress.penalties.quantization import QuantizationPenalty

__all__ = ["QuantizationPenalty"]
