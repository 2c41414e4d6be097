"""Roundings: who chooses between the values of a number format."""

from compress.roundings.adaround import AdaRounding
from compress.roundings.gptq import GptqRounding
from compress.roundings.nearest import NearestRounding

__all__ = ["AdaRounding", "GptqRounding", "NearestRounding"]
