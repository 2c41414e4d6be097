"""How a unit's weights bear rounding."""

from collections.abc import Mapping
from typing import ClassVar

import numpy as np

from autolabel.feature import ratio
from compress.costs import BIT_CHOICES
from compress.statistics import Statistics


class QuantizationFeatures:
    """Relative squared error of the producing weights, symmetric, one scale per channel of each producing layer."""

    name: ClassVar[str] = "quantization"
    choice: ClassVar[str] = "removed"
    columns: ClassVar[Mapping[str, str]] = {
        f"weight_error_{bits}bit": f"|dW|^2 / |W|^2 of the producing weights rounded to {bits} bits by min-max"
        for bits in BIT_CHOICES
    }

    def compute(self, statistics: Statistics) -> np.ndarray:
        energy, errors = np.zeros(statistics.n_units), np.zeros((len(BIT_CHOICES), statistics.n_units))
        for rows, values in statistics.slices(statistics.producer_places):
            energy += statistics.total(rows, (values**2).sum(axis=1))
            limit = np.abs(values).max(axis=1, keepdims=True, initial=0.0)
            for i, bits in enumerate(BIT_CHOICES):
                scale = np.where(limit > 0, limit, 1.0) / (2 ** (bits - 1) - 1)
                error = np.round(values / scale) * scale - values
                errors[i] += statistics.total(rows, (error**2).sum(axis=1))
        return ratio(errors, energy).T
