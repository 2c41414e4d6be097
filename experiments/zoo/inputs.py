"""What a network of the zoo takes and gives, known without loading its data."""

from dataclasses import dataclass

import torch
from torch import Tensor

KINDS = ("image", "signal", "tokens")


@dataclass(frozen=True)
class InputSpec:
    """The inputs of a task and its number of classes.

    Attributes:
        kind: `"image"` (channels, height, width), `"signal"` (channels, length) or `"tokens"` (length,).
        shape: of one example.
        classes: number of outputs.
        tokens: size of the vocabulary; 0 where there is none.
    """

    kind: str
    shape: tuple[int, ...]
    classes: int
    tokens: int = 0

    @property
    def size(self) -> tuple[int, ...]:
        """The extents that convolutions slide over: `(height, width)` or `(length,)`."""
        return self.shape if self.kind == "tokens" else self.shape[1:]

    @property
    def dims(self) -> int:
        """Number of these extents."""
        return len(self.size)

    def example(self, batch: int = 2) -> Tensor:
        """A batch for tracing, always the same: a ramp of floats, or tokens one after the other."""
        shape = (batch, *self.shape)
        if self.kind == "tokens":
            return (torch.arange(batch * self.shape[0]) % self.tokens).view(shape)
        return torch.linspace(-2.0, 2.0, shape[0] * int(torch.tensor(self.shape).prod())).view(shape)
