"""Unit labelers, one file each."""

from autolabel.unit_labelers.gbdt import GBDTUnitLabeler
from autolabel.unit_labelers.set_network import SetUnitLabeler

__all__ = ["GBDTUnitLabeler", "SetUnitLabeler"]
