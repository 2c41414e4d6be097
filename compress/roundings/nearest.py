"""Every weight by itself."""

from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import Tensor

from compress.rounding import Grid


@dataclass(frozen=True)
class NearestRounding:
    """The closest value of the grid, whatever the inputs: best where they are uncorrelated."""

    name: ClassVar[str] = "nearest"

    def round(self, weight: Tensor, grid: Grid, moment: Tensor) -> Tensor:
        return torch.stack([grid.nearest(column, j) for j, column in enumerate(weight.unbind(-1))], dim=-1)
