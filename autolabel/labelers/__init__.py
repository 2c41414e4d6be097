"""Labelers: one file each."""

from autolabel.labelers.gbdt import GBDTLabeler
from autolabel.labelers.mean import MeanLabeler
from autolabel.labelers.mlp import MLPLabeler
from autolabel.labelers.ridge import RidgeLabeler

__all__ = ["GBDTLabeler", "MLPLabeler", "MeanLabeler", "RidgeLabeler"]
