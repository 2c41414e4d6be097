"""Sparsity patterns: what stays or goes together."""

from compress.patterns.block import BlockPattern
from compress.patterns.channel import ChannelPattern
from compress.patterns.n_of_m import NOfMPattern
from compress.patterns.unstructured import UnstructuredPattern

__all__ = ["BlockPattern", "ChannelPattern", "NOfMPattern", "UnstructuredPattern"]
