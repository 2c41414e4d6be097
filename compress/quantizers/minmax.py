"""Ranges that clip nothing."""

from torch import Tensor

from compress.quantizer import Histogram


class MinMaxQuantizer:
    """The smallest and the largest value are the ends of the range: no clipping, the coarsest rounding."""

    name = "minmax"

    def weight_limit(self, weight: Tensor, largest: int) -> Tensor:
        return weight.abs().amax(dim=1)

    def activation_range(self, histogram: Histogram) -> tuple[float, float]:
        return histogram.low, histogram.high
