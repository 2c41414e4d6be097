"""The rows of a layer's least-squares problem, and what became of the layer."""

from collections.abc import Iterable
from dataclasses import dataclass

import torch
from torch import Tensor

from compress.patches import LinearMap


@dataclass(frozen=True)
class LayerRepair:
    """What became of one layer.

    Attributes:
        layer: its name.
        error_before, error_after: mean squared difference to the dense model where it was looked at, on the rows used,
            as a part of the dense values' variance.
        ridge: the penalty that was used.
    """

    layer: str
    error_before: float
    error_after: float
    ridge: float


class Rows:
    """The rows of one least-squares problem: the same positions of inputs, values and targets."""

    def __init__(
        self, how: LinearMap, inputs: list[Tensor], shapes: Iterable[torch.Size], max_rows: int,
        generator: torch.Generator,
    ) -> None:  # fmt: skip
        self.how, self.inputs, self.shapes = how, inputs, list(shapes)
        n_examples = sum(shape[0] for shape in self.shapes)
        wanted = max(1, max_rows // n_examples)
        self.chosen = []
        for shape in self.shapes:
            n = how.positions(shape)
            self.chosen.append(torch.randperm(n, generator=generator)[:wanted] if wanted < n else None)

    def of_inputs(self) -> Tensor:
        parts = zip(self.inputs, self.shapes, self.chosen, strict=True)
        return torch.cat([self.how.input_rows(x, shape, chosen) for x, shape, chosen in parts], dim=1)

    def second_half(self) -> Tensor:
        """`(n_rows,)` bool: every second example, so that an order of the data makes no difference between halves."""
        found = []
        for shape, chosen in zip(self.shapes, self.chosen, strict=True):
            each = self.how.positions(shape) if chosen is None else len(chosen)
            found.append((torch.arange(shape[0]) % 2 == 1).repeat_interleave(each))
        return torch.cat(found).to(self.inputs[0].device)

    def of_outputs(self, values: Iterable[Tensor]) -> Tensor:
        parts = zip(values, self.chosen, strict=True)
        return torch.cat([self.how.output_rows(y, chosen) for y, chosen in parts], dim=1)
