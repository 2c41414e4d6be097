"""Weights drawn to their quantised values."""

from collections.abc import Iterator
from typing import Any

import torch
from torch import Tensor, fx, nn

from compress.attributes import value_of
from compress.errors import CompressError
from compress.fake_quantization import quantized_weights
from compress.formatted_weight import formatted_weights
from compress.quantizer import fake_quantize_weight


class QuantizationPenalty:
    """`alpha` times the squared distance of all quantised weights from what they are rounded to.

    With the loss of the rounded weights this is the objective L(Wq) + alpha D(W, Wq), D = ||W - Wq||^2: float weights
    come to rest on their levels. Wq is held while the gradient is taken. (The squared distance: Yin et al. 2018,
    "BinaryRelax", arXiv:1801.06313; Bai et al. 2019, "ProxQuant", arXiv:1810.00861.)

    Args:
        alpha: nats for each unit of squared distance, 0 or more.

    Raises:
        CompressError: for an `alpha` out of range; and when a training begins whose model has no quantised weight.
    """

    name = "quantization"
    needs_formats = True

    def __init__(self, alpha: float = 1e-3) -> None:
        if isinstance(alpha, bool) or not isinstance(alpha, (int, float)) or not 0 <= alpha < float("inf"):
            raise CompressError(
                f"The 'alpha' parameter of QuantizationPenalty must be a number of at least 0. Got {alpha!r}."
            )
        self.alpha = alpha

    def settings(self) -> dict[str, Any]:
        return {"alpha": self.alpha}

    def attach(self, model: nn.Module, step: int, total_steps: int) -> None:
        if not any(True for _ in _pairs(model)):
            raise CompressError(
                "QuantizationPenalty needs a model with quantised weights. Train what prepare_quantized gives."
            )

    def penalty(self, model: nn.Module) -> Tensor | None:
        distances = [(weight - rounded).square().sum(dtype=torch.float64) for weight, rounded in _pairs(model)]
        return self.alpha * torch.stack(distances).sum().float()

    def after_step(self, model: nn.Module, step: int) -> None:
        pass

    def settled(self, step: int) -> bool:
        return True


def _pairs(model: nn.Module) -> Iterator[tuple[Tensor, Tensor]]:
    """`(weight, its rounded values)` of every quantised weight, tied ones once; no gradient for the second."""
    seen: set[int] = set()
    for entry in quantized_weights(model) if isinstance(model, fx.GraphModule) else ():
        weight = value_of(model, entry.parameter)
        if id(weight) not in seen:
            seen.add(id(weight))
            scale = value_of(model, entry.scale)
            yield weight, fake_quantize_weight(weight.detach(), scale, entry.largest, entry.axis)
    for entry in formatted_weights(model):
        weight = value_of(model, entry.parameter)
        if id(weight) not in seen:
            seen.add(id(weight))
            with torch.no_grad():
                rounded = entry.module(weight)
            yield weight, rounded
