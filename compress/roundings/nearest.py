"""Every weight by itself."""

from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import Tensor

from compress.rounding import Grid


@dataclass(frozen=True)
class NearestRounding:
    """The closest value of the grid, whatever the inputs: best where they are uncorrelated.

    (Jacob et al. 2018, "Quantization and Training of Neural Networks", CVPR, arXiv:1712.05877.)
    """

    name: ClassVar[str] = "nearest"

    def round(self, weight: Tensor, grid: Grid, moment: Tensor) -> Tensor:
        return torch.stack([grid.nearest(column, j) for j, column in enumerate(weight.unbind(-1))], dim=-1)
