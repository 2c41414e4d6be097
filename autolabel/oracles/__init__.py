"""Oracles that measure damage."""

from autolabel.oracles.context import ContextOracle
from autolabel.oracles.layer_choice import LayerChoiceOracle
from autolabel.oracles.removal import RemovalOracle
from autolabel.oracles.repaired import RepairedOracle
from autolabel.oracles.repaired_layer_choice import RepairedLayerChoiceOracle

__all__ = ["ContextOracle", "LayerChoiceOracle", "RemovalOracle", "RepairedLayerChoiceOracle", "RepairedOracle"]
