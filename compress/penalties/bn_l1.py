"""Network slimming: magnitudes of the scales of batch norms, which drives channels to silence."""

import logging
from collections.abc import Iterator
from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import Tensor, fx, nn

from compress.attributes import value_of
from compress.graph import ATEN, is_parameter
from compress.penalty import Penalty

_log = logging.getLogger(__name__)


@dataclass
class BatchNormL1Penalty(Penalty):
    """`strength` times the sum of |gamma| of all batch norms.

    Liu, Li, Shen, Huang, Yan, Zhang 2017, "Learning Efficient Convolutional Networks through Network Slimming" (ICCV,
    arXiv:1708.06519).

    Attributes:
        strength: nats per unit of scale, at least 0.
    """

    name: ClassVar[str] = "bn_l1"

    strength: float = 1e-4

    def attach(self, model: nn.Module, step: int, total_steps: int) -> None:
        super().attach(model, step, total_steps)
        if not set(_scales(model)):
            _log.warning("Penalty 'bn_l1' has no effect: the model has no batch norm with a scale.")

    def penalty(self, model: nn.Module) -> Tensor | None:
        sums = [value_of(model, name).abs().sum(dtype=torch.float64) for name in dict.fromkeys(_scales(model))]
        return self.strength * torch.stack(sums).sum() if sums else None


def _scales(model: nn.Module) -> Iterator[str]:
    """Qualified names of the scales of all batch norms."""
    if isinstance(model, fx.GraphModule):
        for node in model.graph.nodes:
            if node.target is ATEN.batch_norm.default and is_parameter(node.args[1]):
                yield node.args[1].target
        return
    for name, module in model.named_modules():
        if isinstance(module, nn.modules.batchnorm._BatchNorm) and module.weight is not None:
            yield f"{name}.weight" if name else "weight"
