"""What the classic criteria say."""

import warnings
from collections.abc import Mapping
from typing import ClassVar

import numpy as np

from autolabel.feature import signed_log
from compress.criteria import (
    ActivationCriterion,
    ApozCriterion,
    BatchNormScaleCriterion,
    FisherCriterion,
    GeometricMedianCriterion,
    MagnitudeCriterion,
    SecondOrderCriterion,
    TaylorCriterion,
    WandaCriterion,
)
from compress.criterion import Criterion
from compress.normalization import normalize_groups
from compress.statistics import Statistics

# Chance is no feature: it is left out on purpose.
CRITERIA: Mapping[str, Criterion] = {
    "magnitude_l1": MagnitudeCriterion(p=1),
    "magnitude_l2": MagnitudeCriterion(p=2),
    "bn_scale": BatchNormScaleCriterion(),
    "taylor_signed": TaylorCriterion(mode="signed"),
    "taylor_abs_mean": TaylorCriterion(mode="abs_mean"),
    "taylor_mean_abs": TaylorCriterion(mode="mean_abs"),
    "fisher": FisherCriterion(),
    "second_order": SecondOrderCriterion(),
    "activation": ActivationCriterion(),
    "wanda": WandaCriterion(),
    "apoz": ApozCriterion(),
    "geometric_median": GeometricMedianCriterion(),
}


class CriteriaFeatures:
    """Every criterion raw (signed log), over the group's mean magnitude, and as a rank in the group."""

    name: ClassVar[str] = "criteria"
    choice: ClassVar[str] = "removed"
    columns: ClassVar[Mapping[str, str]] = {
        name: text
        for criterion in CRITERIA
        for name, text in (
            (f"{criterion}_raw", f"signed log of the criterion {criterion}"),
            (f"{criterion}_relative", f"criterion {criterion} over its mean magnitude in the group"),
            (f"{criterion}_rank", f"rank of criterion {criterion} in the group, 0 least important to 1"),
        )
    }

    def compute(self, statistics: Statistics) -> np.ndarray:
        found = []
        for criterion in CRITERIA.values():
            with warnings.catch_warnings():
                # That a fallback stands in for a missing batch norm is told by the feature has_batch_norm.
                warnings.filterwarnings("ignore", message=".*have no batch norm.*", category=UserWarning)
                score = criterion.score(statistics)
            found += [signed_log(score), normalize_groups(score, statistics.group_rows, "mean"),
                      normalize_groups(score, statistics.group_rows, "rank")]  # fmt: skip
        return np.column_stack(found)
