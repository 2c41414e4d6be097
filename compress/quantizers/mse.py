"""Ranges that make the squared error of clipping and rounding together the smallest."""

import numpy as np
import torch
from torch import Tensor

from compress.errors import CompressError
from compress.quantizer import ACTIVATION_LEVELS, Histogram, affine_parameters


class MseQuantizer:
    """Searches the range on a grid between (almost) nothing and the min-max range.

    Args:
        steps: grid points for each end of the range. 2 or more.

    Raises:
        CompressError: for fewer steps.
    """

    name = "mse"

    def __init__(self, steps: int = 80) -> None:
        if isinstance(steps, bool) or not isinstance(steps, int) or steps < 2:
            raise CompressError(f"The 'steps' parameter of MseQuantizer must be an int of at least 2. Got {steps!r}.")
        self.steps = steps

    def weight_limit(self, weight: Tensor, largest: int) -> Tensor:
        limit = weight.abs().amax(dim=1)
        best, best_error = limit.clone(), torch.full_like(limit, torch.inf, dtype=torch.float64)
        for fraction in torch.linspace(1.0, 1.0 / self.steps, self.steps).tolist():
            scale = (limit * fraction / largest).clamp(min=torch.finfo(torch.float32).tiny)[:, None]
            error = (
                ((weight / scale).round().clamp(-largest, largest) * scale - weight)
                .square()
                .sum(dim=1, dtype=torch.float64)
            )
            better = error < best_error
            best[better], best_error[better] = limit[better] * fraction, error[better]
        return best

    def activation_range(self, histogram: Histogram) -> tuple[float, float]:
        fractions = np.linspace(1.0, 1.0 / self.steps, self.steps)
        low, high = min(histogram.low, 0.0), max(histogram.high, 0.0)
        # One end after the other, twice: a full grid over both ends costs steps^2 and finds the same to a level or two.
        for _ in range(2):
            high = (
                min(
                    (self._error(histogram, low, histogram.high * f), f, histogram.high * f)
                    for f in fractions
                    if histogram.high > 0
                )[2]
                if histogram.high > 0
                else 0.0
            )
            low = (
                min((self._error(histogram, histogram.low * f, high), f, histogram.low * f) for f in fractions)[2]
                if histogram.low < 0
                else 0.0
            )
        return low, high

    def _error(self, histogram: Histogram, low: float, high: float) -> float:
        """Squared error summed over the histogram when [low, high] is the range."""
        scale, zero_point = affine_parameters(low, high)
        values = histogram.centers
        levels = np.clip(np.rint(values / scale) + zero_point, 0, ACTIVATION_LEVELS)
        return float(histogram.counts @ np.square((levels - zero_point) * scale - values))
