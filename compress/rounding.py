"""The seam of rounding: which of the values that a number format has a weight takes."""

from dataclasses import dataclass
from typing import Protocol, runtime_checkable

import torch
from torch import Tensor

from compress.quantizer import fake_quantize_weight


@runtime_checkable
class Grid(Protocol):
    """The values that a number format has for each weight of a layer, `(..., out_ch, n_inputs)`."""

    def nearest(self, values: Tensor, column: int) -> Tensor:
        """`(..., out_ch)` of the grid, closest to the given values of one column (input)."""

    def neighbours(self, weight: Tensor) -> tuple[Tensor, Tensor]:
        """The next values of the grid, not above and not below each weight; the same one where it is clipped."""


@runtime_checkable
class Rounding(Protocol):
    """Puts a weight on a grid."""

    name: str

    def round(self, weight: Tensor, grid: Grid, moment: Tensor) -> Tensor:
        """The weight on the grid, of the same shape and dtype. A weight that is zero stays zero: masks are held.

        Args:
            weight: `(..., out_ch, n_inputs)`; leading dimensions are independent layers, such as the groups of a conv.
            grid: what values there are.
            moment: `(..., n_inputs, n_inputs)` E[x x^T] of what the layer multiplies its weight with.
        """


@dataclass(frozen=True, eq=False)
class SymmetricGrid:
    """Integers from `-largest` to `largest` times the scale of their row, as `fake_quantize_weight` has them.

    Attributes:
        scale: `(..., out_ch)` positive.
        largest: the largest integer.
    """

    scale: Tensor
    largest: int

    def nearest(self, values: Tensor, column: int) -> Tensor:
        flat = values.reshape(-1).float()
        return fake_quantize_weight(flat, self.scale.reshape(-1).float(), self.largest).reshape(values.shape).to(values)

    def neighbours(self, weight: Tensor) -> tuple[Tensor, Tensor]:
        scale = self.scale[..., None].to(weight.dtype)
        below = torch.floor(weight / scale)
        ends = -self.largest, self.largest
        return below.clamp(*ends) * scale, (below + 1).clamp(*ends) * scale

    def integers(self, values: Tensor) -> Tensor:
        """int8 of values on the grid."""
        return torch.round(values / self.scale[..., None].to(values.dtype)).to(torch.int8)
