"""Prediction intervals from out-of-group errors (grouped cross-conformal)."""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np


class CalibrationWarning(UserWarning):
    """Labels of too few groups: something could not be checked on a layer or network that was held out."""


@dataclass(frozen=True)
class Calibration:
    """How far predictions may be off, learned from predictions of groups that were held out.

    The half-width is the quantile of absolute errors in which every group weighs the same and one unseen group counts
    as infinitely bad (hierarchical conformal prediction: Lee, Barber, Willett 2023, "Distribution-free inference with
    hierarchical data"). If groups are exchangeable, a unit of a *new* group falls inside with probability `coverage`,
    up to the slack of cross-fitting; units of a group that was measured are covered more often than that.

    Attributes:
        half_width: on the transformed scale.
        coverage: what was asked for.
        n_groups: how many groups were held out in turn.
        guaranteed: False if there were too few groups for any finite width to be safe (`n_groups / (n_groups + 1)`
            below `coverage`): the width is then the largest error seen, widened by `1 / n_groups`.
    """

    half_width: float
    coverage: float
    n_groups: int
    guaranteed: bool

    @classmethod
    def learn(cls, errors: np.ndarray, keys: np.ndarray, coverage: float) -> "Calibration":
        """The calibration of these out-of-group errors (`(n_rows,)`, any sign) of rows in groups `keys`."""
        size = np.abs(errors)
        _, inverse, counts = np.unique(keys, return_inverse=True, return_counts=True)
        n_groups = len(counts)
        order = np.argsort(size, kind="stable")
        weight = np.cumsum(1.0 / ((n_groups + 1) * counts[inverse[order]]))
        # The slack keeps a sum such as 9 x 0.1 from missing 0.9 by one rounding.
        position = int(np.searchsorted(weight, coverage - 1e-12))
        if position < len(size):
            return cls(float(size[order][position]), coverage, n_groups, True)
        return cls(float(size.max()) * (1.0 + 1.0 / n_groups), coverage, n_groups, False)

    @classmethod
    def unknown(cls, span: float, coverage: float) -> "Calibration":
        """The calibration when nothing could be held out: intervals as wide as the labels themselves."""
        return cls(float(span), coverage, 0, False)

    def interval(self, z: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """Lower and upper end of each prediction, on the transformed scale."""
        return z - self.half_width, z + self.half_width

    def to_json(self) -> dict[str, Any]:
        """Plain JSON of this calibration."""
        return {
            "half_width": self.half_width,
            "coverage": self.coverage,
            "n_groups": self.n_groups,
            "guaranteed": self.guaranteed,
        }

    @classmethod
    def from_json(cls, value: Mapping[str, Any]) -> "Calibration":
        """The calibration that `to_json` wrote."""
        return cls(
            float(value["half_width"]), float(value["coverage"]), int(value["n_groups"]), bool(value["guaranteed"])
        )
