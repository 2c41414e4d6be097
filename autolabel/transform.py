"""Transforms learned from data: damages to a scale where errors are comparable, features to one where sizes are."""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np

# A scale below this part of the largest damage only magnifies rounding.
_SMALLEST_SCALE = 1e-6
# Predictions may leave the range of the labels by this much on the transformed scale: a factor of e in nats.
_MARGIN = 1.0
# Standardised features beyond this are outliers (or a constant that moved): they must not dominate a linear model.
_FEATURE_LIMIT = 6.0


@dataclass(frozen=True)
class TargetTransform:
    """Signed logarithm of damages, `asinh(damage / scale)`: linear below `scale`, logarithmic above, invertible.

    Damages are heavy-tailed (a few units carry most of it) and slightly negative where removal does no harm, so neither
    the raw number nor its logarithm is a sensible regression target.

    Attributes:
        scale: where the curve bends, in the task's loss unit; None leaves damages as they are.
        low, high: range of the transformed labels it was learned from.
    """

    scale: float | None
    low: float
    high: float

    @classmethod
    def learn(cls, damage: np.ndarray, std_err: np.ndarray | None = None) -> "TargetTransform":
        """The transform of these finite damages: bends at their lower quartile, or at their noise if larger."""
        size = np.abs(np.asarray(damage, dtype=np.float64))
        largest = float(size.max())
        noise = np.array([]) if std_err is None else std_err[np.isfinite(std_err)]
        scale = max(float(np.quantile(size, 0.25)), float(np.median(noise)) if noise.size else 0.0)
        scale = max(scale, _SMALLEST_SCALE * largest)
        # Denormal damages would overflow the quotient; all-zero damages have no scale of their own.
        return cls._over(damage, scale if scale > np.finfo(np.float64).tiny else 1.0)

    @classmethod
    def identity(cls, damage: np.ndarray) -> "TargetTransform":
        """The transform that leaves damages as they are."""
        return cls._over(damage, None)

    @classmethod
    def _over(cls, damage: np.ndarray, scale: float | None) -> "TargetTransform":
        z = cls(scale, 0.0, 0.0).forward(damage)
        return cls(scale, float(z.min()), float(z.max()))

    @property
    def span(self) -> float:
        """Half-width that covers the labels and zero from any clipped prediction, on the transformed scale."""
        return max(self.high, 0.0) - min(self.low, 0.0) + self._margin

    @property
    def _margin(self) -> float:
        return 0.0 if self.scale is None else _MARGIN

    def forward(self, damage: np.ndarray) -> np.ndarray:
        """Damages on the transformed scale, float64."""
        damage = np.asarray(damage, dtype=np.float64)
        return damage if self.scale is None else np.arcsinh(damage / self.scale)

    def inverse(self, z: np.ndarray) -> np.ndarray:
        """Damages in the task's loss unit, float64: undoes `forward`."""
        z = np.asarray(z, dtype=np.float64)
        return z if self.scale is None else self.scale * np.sinh(z)

    def clip(self, z: np.ndarray) -> np.ndarray:
        """Predictions kept near the labels: nothing is known beyond them, and `inverse` is exponential there."""
        return np.clip(z, self.low - self._margin, self.high + self._margin)

    def to_json(self) -> dict[str, float | None]:
        """Plain JSON of this transform."""
        return {"scale": self.scale, "low": self.low, "high": self.high}

    @classmethod
    def from_json(cls, value: Mapping[str, Any]) -> "TargetTransform":
        """The transform that `to_json` wrote."""
        scale = None if value["scale"] is None else float(value["scale"])
        return cls(scale, float(value["low"]), float(value["high"]))


@dataclass(frozen=True, eq=False)
class FeatureScaler:
    """Columns on comparable scales for linear models and nets: signed logarithm, then mean 0 and deviation 1, clipped.

    Attributes:
        bend: `(n_features,)` where each column's asinh bends: the median of its absolute values.
        mean, deviation: `(n_features,)` of the bent columns; a constant column has deviation 1 and becomes zero.
    """

    bend: np.ndarray
    mean: np.ndarray
    deviation: np.ndarray

    @classmethod
    def learn(cls, x: np.ndarray) -> "FeatureScaler":
        """The scaler of these `(n_rows, n_features)` training rows."""
        x = np.asarray(x, dtype=np.float64)
        bend = np.median(np.abs(x), axis=0)
        bend = np.where(bend > np.finfo(np.float32).tiny, bend, 1.0)
        bent = np.arcsinh(x / bend)
        deviation = bent.std(axis=0)
        return cls(bend, bent.mean(axis=0), np.where(deviation > 1e-9, deviation, 1.0))

    def apply(self, x: np.ndarray) -> np.ndarray:
        """`(n_rows, n_features)` float64 rows on the common scale."""
        z = (np.arcsinh(np.asarray(x, dtype=np.float64) / self.bend) - self.mean) / self.deviation
        return np.clip(z, -_FEATURE_LIMIT, _FEATURE_LIMIT)

    def arrays(self) -> dict[str, np.ndarray]:
        """The numbers of this scaler, by name, for a file."""
        return {"bend": self.bend, "mean": self.mean, "deviation": self.deviation}
