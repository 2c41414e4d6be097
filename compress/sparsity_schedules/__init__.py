"""Sparsity schedules: how much is gone when."""

from compress.sparsity_schedules.agp import AgpSchedule
from compress.sparsity_schedules.iterative import IterativeSchedule
from compress.sparsity_schedules.one_shot import OneShotSchedule
from compress.sparsity_schedules.polynomial import PolynomialSchedule

__all__ = ["AgpSchedule", "IterativeSchedule", "OneShotSchedule", "PolynomialSchedule"]
