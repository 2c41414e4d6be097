"""Factorizers: how one layer becomes two."""

from compress.factorizers.channel import ChannelFactorizer
from compress.factorizers.spatial import SpatialFactorizer

__all__ = ["ChannelFactorizer", "SpatialFactorizer"]
