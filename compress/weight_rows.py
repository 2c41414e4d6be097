"""A weight as rows that each have their own parameters, and back."""

from dataclasses import dataclass

import torch
from torch import Tensor
from torch.nn import functional as F


@dataclass(frozen=True)
class RowLayout:
    """How a weight is cut into rows.

    Attributes:
        shape: of the weight.
        granularity: `"tensor"` (one row), `"channel"`, or `"group"`.
        axis: the dimension that counts channels.
        group_size: weights of a group; the last group of a channel may have less and is padded.
    """

    shape: tuple[int, ...]
    granularity: str
    axis: int = 0
    group_size: int | None = None

    def rows(self, weight: Tensor) -> Tensor:
        """`(n_rows, n)` of a tensor of this shape; zeros, or False, are the padding."""
        if self.granularity == "tensor":
            return weight.reshape(1, -1)
        channels = weight.movedim(self.axis, 0).flatten(1)
        if self.granularity == "channel":
            return channels
        return F.pad(channels, (0, self._padding())).reshape(-1, self._width())

    def real(self, device: torch.device) -> Tensor:
        """`(n_rows, n)` bool, False where a row is padded."""
        return self.rows(torch.ones(self.shape, dtype=torch.bool, device=device))

    def tensor(self, rows: Tensor) -> Tensor:
        """The tensor of this shape that these rows are of; padding is dropped."""
        if self.granularity == "tensor":
            return rows.reshape(self.shape)
        moved = torch.Size((self.shape[self.axis], *self.shape[: self.axis], *self.shape[self.axis + 1 :]))
        channels = rows.reshape(moved[0], -1)[:, : self._channel_size()]
        return channels.reshape(moved).movedim(0, self.axis)

    def _channel_size(self) -> int:
        size = 1
        for dimension, length in enumerate(self.shape):
            size *= 1 if dimension == self.axis else length
        return size

    def _width(self) -> int:
        return min(self.group_size or 1, self._channel_size())

    def _padding(self) -> int:
        return -self._channel_size() % self._width()
