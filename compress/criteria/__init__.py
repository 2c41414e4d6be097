"""Criteria: classic formulas that order units, each with its paper."""

from compress.criteria.activation import ActivationCriterion
from compress.criteria.apoz import ApozCriterion
from compress.criteria.bn_scale import BatchNormScaleCriterion
from compress.criteria.fisher import FisherCriterion
from compress.criteria.geometric_median import GeometricMedianCriterion
from compress.criteria.magnitude import MagnitudeCriterion
from compress.criteria.random import RandomCriterion
from compress.criteria.reconstruction import ReconstructionCriterion
from compress.criteria.second_order import SecondOrderCriterion
from compress.criteria.taylor import TaylorCriterion
from compress.criteria.wanda import WandaCriterion
from compress.criteria.ziplm import ZipLMCriterion

__all__ = [
    "ActivationCriterion",
    "ApozCriterion",
    "BatchNormScaleCriterion",
    "FisherCriterion",
    "GeometricMedianCriterion",
    "MagnitudeCriterion",
    "RandomCriterion",
    "ReconstructionCriterion",
    "SecondOrderCriterion",
    "TaylorCriterion",
    "WandaCriterion",
    "ZipLMCriterion",
]
