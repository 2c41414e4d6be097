"""Penalties: what is added to the loss of a training, each with its paper."""

from compress.penalties.bn_l1 import BatchNormL1Penalty
from compress.penalties.coded_bytes import CodedBytesPenalty
from compress.penalties.group_lasso import GroupLassoPenalty
from compress.penalties.l0 import L0Penalty
from compress.penalties.l1 import L1Penalty
from compress.penalties.quantization import QuantizationPenalty

__all__ = [
    "BatchNormL1Penalty",
    "CodedBytesPenalty",
    "GroupLassoPenalty",
    "L0Penalty",
    "L1Penalty",
    "QuantizationPenalty",
]
