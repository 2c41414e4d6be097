"""Ranges that clip a fixed fraction of the values."""

import math

import numpy as np
import torch
from torch import Tensor

from compress.errors import CompressError
from compress.quantizer import Histogram


class PercentileQuantizer:
    """The range holds `percent` of the values (nearest rank: an observed one is its end); the rest is clipped.

    Of magnitudes the largest go, of a range with two ends as many at either end. (Percentile calibration: Wu et al.
    2020, "Integer Quantization for Deep Learning Inference", arXiv:2004.09602.)

    Args:
        percent: in (50, 100]; 100 clips nothing.

    Raises:
        CompressError: for a value out of range.
    """

    name = "percentile"

    def __init__(self, percent: float = 99.9) -> None:
        if isinstance(percent, bool) or not isinstance(percent, (int, float)) or not 50 < percent <= 100:
            raise CompressError(
                f"The 'percent' parameter of PercentileQuantizer must be a number in (50, 100]. Got {percent!r}."
            )
        self.percent = percent

    def weight_limit(self, weight: Tensor, largest: float, kept: Tensor | None = None) -> Tensor:
        return self._ends(weight.abs(), kept)[1]

    def weight_range(self, weight: Tensor, levels: int, kept: Tensor | None = None) -> tuple[Tensor, Tensor]:
        return self._ends(weight, kept)

    def activation_range(self, histogram: Histogram) -> tuple[float, float]:
        total = histogram.counts.sum()
        if total <= 0:
            return histogram.low, histogram.high
        share = np.cumsum(histogram.counts) / total
        width = (histogram.high - histogram.low) / len(histogram.counts)
        outside = 1 - self.percent / 100
        # A bin is cut off only if all of its values may go.
        first = int(np.searchsorted(share, outside, side="right"))
        last = int(np.searchsorted(share, 1 - outside, side="left"))
        return histogram.low + first * width, min(histogram.low + (last + 1) * width, histogram.high)

    def _ends(self, values: Tensor, kept: Tensor | None) -> tuple[Tensor, Tensor]:
        """The kept values of each row with as many of them outside as the percentage allows; 0 where none is kept."""
        ordered = (values if kept is None else values.masked_fill(~kept, torch.inf)).sort(dim=1).values
        count = torch.full_like(values[:, 0], values.shape[1]) if kept is None else kept.sum(dim=1)
        rank = torch.tensor([math.ceil(self.percent / 100 * n - 1e-9) for n in count.tolist()], device=values.device)
        high = ordered.gather(1, (rank - 1).clamp(min=0)[:, None])[:, 0]
        low = ordered.gather(1, (count.long() - rank).clamp(0, values.shape[1] - 1)[:, None])[:, 0]
        return low.masked_fill(count == 0, 0.0), high.masked_fill(count == 0, 0.0)
