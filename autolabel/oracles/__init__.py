"""Oracles that measure damage."""

from autolabel.oracles.layer_choice import LayerChoiceOracle
from autolabel.oracles.removal import RemovalOracle

__all__ = ["LayerChoiceOracle", "RemovalOracle"]
