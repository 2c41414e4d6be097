"""L0: the expected number of weights that are not zero, through hard-concrete gates."""

from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import Tensor, nn

from compress.hard_concrete import add_gates_, bake_gates_, check_gates, gates_of
from compress.penalty import WeightPenalty


@dataclass
class L0Penalty(WeightPenalty):
    """`strength` times the expected number of weights whose gate is open: the objective `L(W) + lambda ||W||_0`.

    Louizos, Welling, Kingma 2018, "Learning Sparse Neural Networks through L0 Regularization" (ICLR, arXiv:1712.01312).
    The gates are put into the model when training starts, train with it, and are multiplied into its weights at the
    end, where closed gates leave exact zeros.

    Attributes:
        strength: nats per weight, at least 0.
        layers: names of the layers; None for all.
        per: `"weight"`, or `"channel"`: one gate for all weights of an output channel.
        initial: sigmoid(log_alpha) of the gates at the start, in (0, 1); from 11/12 on they start fully open.
    """

    name: ClassVar[str] = "l0"

    strength: float = 1e-6
    per: str = "weight"
    initial: float = 0.95

    def __post_init__(self) -> None:
        super().__post_init__()
        check_gates(self.per, self.initial)

    def prepare(self, model: nn.Module) -> None:
        """Gate the layers. Raises CompressError for an unknown layer, or one whose weight is shared or gated."""
        add_gates_(model, per=self.per, layers=self.layers, initial=self.initial)

    def penalty(self, model: nn.Module) -> Tensor | None:
        counts = [gate.expected_count() for gate in gates_of(model)]
        return self.strength * torch.stack(counts).sum() if counts else None

    def release(self, model: nn.Module) -> None:
        """Multiply the gates into the weights and take them away."""
        bake_gates_(model)
