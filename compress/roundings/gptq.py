"""Rounding whose errors are taken over by the columns that are rounded later."""

from dataclasses import dataclass
from typing import ClassVar

from torch import Tensor

from compress.rounding import Grid
from compress.second_order_update import sweep_columns


@dataclass(frozen=True)
class GptqRounding:
    """Column by column, the columns that are left being updated for the error (Optimal Brain Quantization's update).

    Frantar, Ashkboos, Hoefler and Alistarh 2023, "GPTQ: Accurate post-training quantization for generative pre-trained
    transformers" (ICLR, arXiv:2210.17323).

    Attributes:
        damping: added to the diagonal of the moment, as a part of its mean.
        activation_order: the inputs of largest energy first.
    """

    name: ClassVar[str] = "gptq"

    damping: float = 0.01
    activation_order: bool = True

    def round(self, weight: Tensor, grid: Grid, moment: Tensor) -> Tensor:
        rounded, _ = sweep_columns(
            weight,
            moment,
            keep=weight != 0,
            nearest=grid.nearest,
            damping=self.damping,
            activation_order=self.activation_order,
        )
        return rounded
