"""Rounding up or down, learned."""

from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import Tensor

from compress.errors import CompressError
from compress.rounding import Grid

# The sigmoid is stretched to these ends and clipped to [0, 1], so that it can be 0 and 1.
_LOW, _HIGH = -0.1, 1.1
# The exponent of the regulariser falls from the first to the second, which drives all that is undecided to 0 or 1.
_EXPONENTS = 20.0, 2.0


@dataclass(frozen=True)
class AdaRounding:
    """Up or down for each weight by gradient descent on the error of the layer's outputs.

    Nagel, Amjad, van Baalen, Louizos and Blankevoort 2020, "Up or down? Adaptive rounding for post-training
    quantization" (ICML, arXiv:2004.10568). The error is a quadratic form of the second moment of the inputs, so no data
    is looped over; nothing is drawn at random. Each row's error is relative to that of independent rounding errors, so
    that one strength of the regulariser fits all layers.

    Attributes:
        steps: gradient steps.
        lr: of Adam.
        regularization: strength of `1 - |2 h - 1|^b`, which pulls each h to 0 or 1.
        warmup: part of the steps without it.

    Raises:
        CompressError: for settings out of range.
    """

    name: ClassVar[str] = "adaround"

    steps: int = 1000
    lr: float = 0.05
    regularization: float = 3.0
    warmup: float = 0.2

    def __post_init__(self) -> None:
        if isinstance(self.steps, bool) or not isinstance(self.steps, int) or self.steps < 1:
            raise CompressError(
                f"The 'steps' parameter of AdaRounding must be an int of at least 1. Got {self.steps!r}."
            )
        for name in ("lr", "regularization"):
            if not 0 < getattr(self, name) < float("inf"):
                raise CompressError(
                    f"The '{name}' parameter of AdaRounding must be positive. Got {getattr(self, name)!r}."
                )
        if not 0 <= self.warmup < 1:
            raise CompressError(f"The 'warmup' parameter of AdaRounding must be in [0, 1). Got {self.warmup!r}.")

    def round(self, weight: Tensor, grid: Grid, moment: Tensor) -> Tensor:
        below, above = (values.where(weight != 0, 0.0) for values in grid.neighbours(weight))
        step = above - below
        part = ((weight - below) / step.where(step > 0, 1.0)).clamp(0.0, 1.0)
        return torch.where(self._up(weight, below, step, part, moment), above, below)

    def _up(self, weight: Tensor, below: Tensor, step: Tensor, part: Tensor, moment: Tensor) -> Tensor:
        """Bool, of the weight's shape: which weights go up."""
        diagonal = moment.diagonal(dim1=-2, dim2=-1)
        typical = (step.double().square() * diagonal[..., None, :]).sum(-1) / 12
        # Float32 suffices for a search; each row's error is one per weight where rounding errors are independent.
        unit = (weight.shape[-1] / typical.clamp_min(torch.finfo(torch.float64).tiny)).sqrt()
        unit = torch.where(typical > 0, unit, 0.0)[..., None]
        step, offset, matrix = (step * unit).float(), ((below - weight) * unit).float(), moment.float()
        with torch.enable_grad():
            share = ((part.float() - _LOW) / (_HIGH - _LOW)).detach()
            logits = torch.log(share / (1 - share)).requires_grad_()
            optimizer = torch.optim.Adam([logits], lr=self.lr)
            for number in range(self.steps):
                h = (torch.sigmoid(logits) * (_HIGH - _LOW) + _LOW).clamp(0.0, 1.0)
                error = offset + h * step
                loss = ((error @ matrix) * error).sum() + self._penalty(h, number / self.steps)
                (logits.grad,) = torch.autograd.grad(loss, logits)
                optimizer.step()
        return logits.detach() >= 0

    def _penalty(self, h: Tensor, progress: float) -> Tensor:
        """The regulariser, `progress` in [0, 1) through the steps; its exponent falls along half a cosine."""
        if progress < self.warmup:
            return h.new_zeros(())
        along = torch.tensor(torch.pi * (progress - self.warmup) / (1 - self.warmup))
        first, last = _EXPONENTS
        exponent = float(last + 0.5 * (first - last) * (1 + torch.cos(along)))
        return self.regularization * (1 - (2 * h - 1).abs().pow(exponent)).sum()
