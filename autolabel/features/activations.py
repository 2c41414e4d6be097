"""What a unit says on calibration data."""

from collections.abc import Mapping
from typing import ClassVar

import numpy as np

from autolabel.feature import log_size, ratio
from compress.normalization import normalize_groups
from compress.statistics import Statistics


class ActivationFeatures:
    """Moments over examples and positions where the unit is consumed."""

    name: ClassVar[str] = "activations"
    choice: ClassVar[str] = "removed"
    columns: ClassVar[Mapping[str, str]] = {
        "act_mean": "mean value",
        "act_mean_abs": "mean magnitude",
        "act_rms": "root mean square",
        "act_log_rms": "log10 of the root mean square",
        "act_std": "standard deviation",
        "act_std_relative": "standard deviation over the mean in the group",
        "act_constancy": "|mean| over root mean square: 1 for a constant",
        "act_zeros": "part of the values that is exactly zero",
        "act_max": "largest magnitude",
        "act_peak": "largest magnitude over root mean square",
        "act_example_std": "standard deviation over examples of the mean over positions",
        "act_example_share": "part of the variance that lies between examples",
        "act_example_cv": "that standard deviation over the mean magnitude",
        "act_active_examples": "part of the examples in which the unit is not zero throughout",
        "act_skew": "skewness over examples of the mean over positions",
    }

    def compute(self, statistics: Statistics) -> np.ndarray:
        found, groups = statistics.need_activations(), statistics.group_rows
        rms = np.sqrt(found.mean_square)
        variance = np.maximum(found.mean_square - found.mean**2, 0.0)
        # Differences of rounded moments: below this a constant looks as if it varied.
        variance[variance < 1e-10 * found.mean_square] = 0.0
        std = np.sqrt(variance)
        pooled = found.pooled.astype(np.float64)
        centred = pooled - pooled.mean(axis=0)
        between = (centred**2).mean(axis=0)
        between[between < 1e-10 * (pooled**2).mean(axis=0)] = 0.0
        skew = np.clip(ratio((centred**3).mean(axis=0), between**1.5), -1e3, 1e3)
        return np.column_stack([
            found.mean, found.mean_abs, rms, log_size(rms), std,
            normalize_groups(std, groups, "mean"), np.minimum(ratio(np.abs(found.mean), rms), 1.0), found.zero_fraction,
            found.maximum, ratio(found.maximum, rms), np.sqrt(between), np.minimum(ratio(between, variance), 1.0),
            np.minimum(ratio(np.sqrt(between), found.mean_abs), 1e3), (pooled != 0).mean(axis=0), skew,
        ])  # fmt: skip
