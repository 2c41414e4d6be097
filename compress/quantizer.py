"""The seam of quantisation: how a float range is chosen, and the integers that follow from it."""

from dataclasses import dataclass
from typing import Protocol, runtime_checkable

import numpy as np
import torch
from torch import Tensor

from compress.errors import CompressError, DataError

# Widths that integers can have; the second are those that are offered where none are named.
INTEGER_BITS = (8, 7, 6, 5, 4, 3, 2)
WEIGHT_BITS = (8, 6, 4, 3, 2)
# Of a weight that no format was chosen for.
FLOAT_BITS = 32
# Kind of layer -> the axis of its weight that counts output channels, each of which has a scale.
OUTPUT_AXIS = {"conv": 0, "linear": 0, "conv_transpose": 1, "embedding": 0}
ACTIVATION_LEVELS = 255


@dataclass(frozen=True, eq=False)
class Histogram:
    """How often the values of one activation fall into equal bins.

    Attributes:
        low, high: smallest and largest value seen.
        counts: `(n_bins,)` float64, values per bin between `low` and `high`.
    """

    low: float
    high: float
    counts: np.ndarray

    @property
    def centers(self) -> np.ndarray:
        """`(n_bins,)` float64, the middle of each bin."""
        width = (self.high - self.low) / len(self.counts)
        return self.low + width * (np.arange(len(self.counts)) + 0.5)


@runtime_checkable
class Quantizer(Protocol):
    """Chooses ranges: what lies outside is clipped, what lies inside is rounded."""

    name: str

    def weight_limit(self, weight: Tensor, largest: float, kept: Tensor | None = None) -> Tensor:
        """`(channels,)` the magnitude of each row that the integer `largest` stands for.

        Args:
            weight: `(channels, n)` float.
            largest: the largest integer, 2^(bits-1) - 1; or 0.5 for one bit, whose levels are -0.5 and 0.5.
            kept: `(channels, n)` bool, False where the weight is zero and stays so whatever the range; None: all count.
        """

    def weight_range(self, weight: Tensor, levels: int, kept: Tensor | None = None) -> tuple[Tensor, Tensor]:
        """`(low, high)`, each `(channels,)`: the ends of the range of each row that `levels` equal steps divide.

        Args:
            weight: `(channels, n)` float.
            levels: 2 or more, both ends among them.
            kept: as of `weight_limit`.
        """

    def activation_range(self, histogram: Histogram) -> tuple[float, float]:
        """`(low, high)` that the 256 levels of an activation span; zero is made to lie inside afterwards."""


def largest_integer(bits: int) -> int:
    """2^(bits-1) - 1: weights take the integers from minus this to plus this.

    Raises:
        CompressError: for bits other than 2 to 8.
    """
    if isinstance(bits, bool) or bits not in INTEGER_BITS:
        instead = " A plan can store a layer in one bit: LayerFormat(1, 'binary')." if bits == 1 else ""
        raise CompressError(
            f"The 'bits' parameter of a weight format must be one of {INTEGER_BITS}. Got {bits!r}.{instead}"
        )
    return 2 ** (bits - 1) - 1


def nearest_level(x: Tensor, largest: float) -> Tensor:
    """`x` rounded to the integers from `-largest` to `largest`; to -0.5 or 0.5 if `largest` is 0.5 (one bit)."""
    return (torch.floor(x) + 0.5 if largest == 0.5 else torch.round(x)).clamp(-largest, largest)


def row_ends(weight: Tensor, kept: Tensor | None = None) -> tuple[Tensor, Tensor]:
    """`(low, high)`: smallest and largest kept value of each row of a `(channels, n)` weight; 0 where none is kept."""
    if kept is None:
        return torch.aminmax(weight, dim=1)
    empty = ~kept.any(dim=1)
    low = weight.masked_fill(~kept, torch.inf).amin(dim=1).masked_fill(empty, 0.0)
    return low, weight.masked_fill(~kept, -torch.inf).amax(dim=1).masked_fill(empty, 0.0)


def weight_scale(
    weight: Tensor, largest: float, quantizer: Quantizer, axis: int = 0, kept: Tensor | None = None
) -> Tensor:
    """`(channels,)` float32, the value of the integer 1 in each channel along `axis`; always positive.

    A channel of zeros gets the largest scale of the others, so that nothing later divides by zero.

    Raises:
        DataError: if the weight has NaN or infinite values.
    """
    if not torch.isfinite(weight).all():
        raise DataError("A weight with NaN or infinite values cannot be quantised. Load a sound checkpoint.")
    rows = weight.detach().movedim(axis, 0).flatten(1).float()
    kept = None if kept is None else kept.movedim(axis, 0).flatten(1)
    scale = (quantizer.weight_limit(rows, largest, kept) / largest).float()
    tiny = torch.finfo(torch.float32).tiny
    dead = scale <= tiny
    alive = scale[~dead]
    scale[dead] = alive.max() if alive.numel() else 1.0 / largest
    return scale


def quantize_weight(weight: Tensor, bits: int, quantizer: Quantizer, axis: int = 0) -> tuple[Tensor, Tensor]:
    """`(integers, scale)` of a weight: int8 of its shape in [-(2^(bits-1)-1), 2^(bits-1)-1], float32 per channel.

    Args:
        weight: any float tensor of two dimensions or more.
        bits: 2 to 8.
        quantizer: who chooses the scale.
        axis: the dimension with one scale per index (the outputs).

    Raises:
        CompressError: for other bits. DataError: for NaN or infinite values.
    """
    largest = largest_integer(bits)
    scale = weight_scale(weight, largest, quantizer, axis)
    return round_weight(weight, scale, largest, axis), scale


def round_weight(weight: Tensor, scale: Tensor, largest: int, axis: int = 0) -> Tensor:
    """int8 integers of a weight under given scales: exactly those that `fake_quantize_weight` uses."""
    simulated = fake_quantize_weight(weight.detach().float(), scale, largest, axis)
    return torch.round(simulated / _spread(scale, weight.dim(), axis)).to(torch.int8)


def dequantize_weight(integers: Tensor, scale: Tensor, axis: int = 0) -> Tensor:
    """float32 weight, integers times the scale of their channel."""
    return integers.float() * _spread(scale, integers.dim(), axis)


def fake_quantize_weight(weight: Tensor, scale: Tensor, largest: int, axis: int = 0) -> Tensor:
    """The weight rounded to its integers, as floats; the gradient passes straight through where nothing is clipped."""
    zero = torch.zeros_like(scale, dtype=torch.int32)
    return torch.fake_quantize_per_channel_affine(weight, scale, zero, axis, -largest, largest)


def affine_parameters(low: float, high: float) -> tuple[float, int]:
    """`(scale, zero_point)` of uint8 levels over [low, high]; zero is always a level, exactly.

    Raises:
        DataError: if the range is not finite.
    """
    if not (np.isfinite(low) and np.isfinite(high)):
        raise DataError(f"The range of an activation must be finite. Got [{low}, {high}]. Check the calibration data.")
    low, high = min(low, 0.0), max(high, 0.0)
    scale = float(np.float32((high - low) / ACTIVATION_LEVELS))
    if scale <= np.finfo(np.float32).tiny:
        return 1.0 / ACTIVATION_LEVELS, 0
    return scale, int(np.clip(np.rint(-low / scale), 0, ACTIVATION_LEVELS))


def _spread(scale: Tensor, dims: int, axis: int) -> Tensor:
    """`scale` shaped to multiply a tensor of `dims` dimensions along `axis`."""
    shape = [1] * dims
    shape[axis] = -1
    return scale.reshape(shape)
