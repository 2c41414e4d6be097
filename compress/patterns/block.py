"""Rectangular blocks of the weight matrix."""

from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import Tensor

from compress.errors import CompressError


@dataclass(frozen=True)
class BlockPattern:
    """Blocks of the matrix `(out_ch, in_ch * kernel)`; those at the far edges may be smaller.

    Narang, Undersander, Diamos 2017, "Block-Sparse Recurrent Neural Networks" (arXiv:1711.02782).

    Attributes:
        rows: outputs of a block.
        columns: inputs (times kernel positions) of a block.
    """

    name: ClassVar[str] = "block"
    least_density: ClassVar[float] = 0.0

    rows: int = 4
    columns: int = 4

    def __post_init__(self) -> None:
        for name in ("rows", "columns"):
            value = getattr(self, name)
            if isinstance(value, bool) or not isinstance(value, int) or value < 1:
                raise CompressError(
                    f"The '{name}' parameter of BlockPattern must be an int of at least 1. Got {value}."
                )

    @property
    def text(self) -> str:
        """`"block4x4"`."""
        return f"block{self.rows}x{self.columns}"

    def cells(self, weight: Tensor) -> Tensor:
        n_columns = weight[0].numel()
        down = torch.arange(weight.shape[0]) // self.rows
        along = torch.arange(n_columns) // self.columns
        return (down[:, None] * -(-n_columns // self.columns) + along).reshape(weight.shape)

    def held(self, scores: Tensor) -> Tensor:
        return torch.zeros(scores.shape, dtype=torch.bool)
