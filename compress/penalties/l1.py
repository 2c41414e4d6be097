"""L1: the sum of magnitudes, which drives single weights to zero."""

from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import Tensor, nn

from compress.layer_weights import layer_weights
from compress.penalty import WeightPenalty


@dataclass
class L1Penalty(WeightPenalty):
    """`strength` times the sum of |w|.

    Tibshirani 1996, "Regression Shrinkage and Selection via the Lasso" (J. R. Stat. Soc. B 58); of networks: Han, Pool,
    Tran, Dally 2015, "Learning both Weights and Connections for Efficient Neural Networks" (NIPS, arXiv:1506.02626).

    Attributes:
        strength: nats per unit of magnitude, at least 0.
        layers: names of the layers; None for all.
    """

    name: ClassVar[str] = "l1"

    def penalty(self, model: nn.Module) -> Tensor | None:
        sums = [w.rows(model).abs().sum(dtype=torch.float64) for w in layer_weights(model, self.layers)]
        return self.strength * torch.stack(sums).sum() if sums else None
