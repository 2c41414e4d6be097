"""Ranges that make the squared error of clipping and rounding together the smallest."""

from collections.abc import Callable, Iterable, Iterator

import numpy as np
import torch
from torch import Tensor

from compress.errors import CompressError
from compress.quantizer import ACTIVATION_LEVELS, Histogram, affine_parameters, nearest_level, row_ends


class MseQuantizer:
    """Searches the range on a grid between (almost) nothing and the min-max range.

    (Among others Nagel et al. 2021, "A White Paper on Neural Network Quantization", arXiv:2106.08295.)

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

    def weight_limit(self, weight: Tensor, largest: float, kept: Tensor | None = None) -> Tensor:
        limit = row_ends(weight.abs(), kept)[1]

        def error(candidate: Tensor) -> Tensor:
            scale = (candidate / largest).clamp(min=torch.finfo(torch.float32).tiny)[:, None]
            return _squared(nearest_level(weight / scale, largest) * scale - weight, kept)

        return self._best(self._between(limit, torch.zeros_like(limit)), error)

    def weight_range(self, weight: Tensor, levels: int, kept: Tensor | None = None) -> tuple[Tensor, Tensor]:
        def error(low: Tensor, high: Tensor) -> Tensor:
            step = ((high - low) / (levels - 1)).clamp(min=torch.finfo(torch.float32).tiny)[:, None]
            codes = ((weight - low[:, None]) / step).round().clamp(0, levels - 1)
            return _squared(low[:, None] + codes * step - weight, kept)

        lowest, highest = row_ends(weight, kept)
        # Both ends towards the middle together, then one after the other, twice: a full grid costs steps^2, and either
        # end alone stays where it is for the sake of the other.
        middle = (lowest + highest) / 2
        pairs = zip(self._between(lowest, middle), self._between(highest, middle), strict=True)
        low, high = self._best((torch.stack(pair) for pair in pairs), lambda pair: error(*pair))
        for _ in range(2):
            high = self._best((high, *self._between(highest, low)), lambda end, other=low: error(other, end))
            low = self._best((low, *self._between(lowest, high)), lambda end, other=high: error(end, other))
        return low, high

    def _between(self, start: Tensor, target: Tensor) -> Iterator[Tensor]:
        """Points from `start` (itself) on the way to `target` (without it)."""
        for fraction in torch.linspace(1.0, 1.0 / self.steps, self.steps).tolist():
            yield target + (start - target) * fraction if fraction < 1 else start

    def _best(self, candidates: Iterable[Tensor], error: Callable[[Tensor], Tensor]) -> Tensor:
        """Of the candidates, `(..., channels)` each, in each channel the first of least error."""
        best = least = None
        for candidate in candidates:
            found = error(candidate)
            better = torch.ones_like(found, dtype=torch.bool) if best is None else found < least
            best = candidate if best is None else torch.where(better, candidate, best)
            least = found if least is None else torch.where(better, found, least)
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


def _squared(error: Tensor, kept: Tensor | None) -> Tensor:
    """Sum of the squares of each row, float64."""
    return (error if kept is None else error.masked_fill(~kept, 0.0)).square().sum(dim=1, dtype=torch.float64)
