"""Ranges that clip nothing."""

from torch import Tensor

from compress.quantizer import Histogram, row_ends


class MinMaxQuantizer:
    """The smallest and the largest value are the ends of the range: no clipping, the coarsest rounding.

    (Jacob et al. 2018, "Quantization and Training of Neural Networks", CVPR, arXiv:1712.05877.)
    """

    name = "minmax"

    def weight_limit(self, weight: Tensor, largest: float, kept: Tensor | None = None) -> Tensor:
        return row_ends(weight.abs(), kept)[1]

    def weight_range(self, weight: Tensor, levels: int, kept: Tensor | None = None) -> tuple[Tensor, Tensor]:
        return row_ends(weight, kept)

    def activation_range(self, histogram: Histogram) -> tuple[float, float]:
        return histogram.low, histogram.high
