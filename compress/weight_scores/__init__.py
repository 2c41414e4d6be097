"""Weight scores: classic formulas that order single weights, each with its paper."""

from compress.weight_scores.fisher import FisherWeightScore
from compress.weight_scores.lamp import LampWeightScore
from compress.weight_scores.magnitude import MagnitudeWeightScore
from compress.weight_scores.obs import ObsWeightScore
from compress.weight_scores.random import RandomWeightScore
from compress.weight_scores.taylor import TaylorWeightScore
from compress.weight_scores.wanda import WandaWeightScore

__all__ = [
    "FisherWeightScore",
    "LampWeightScore",
    "MagnitudeWeightScore",
    "ObsWeightScore",
    "RandomWeightScore",
    "TaylorWeightScore",
    "WandaWeightScore",
]
