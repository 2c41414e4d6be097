"""Error of a layer's outputs that the other weights cannot make up for."""

from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import Tensor

from compress.errors import CompressError
from compress.weight_statistics import WeightStatistics


@dataclass(frozen=True)
class ObsWeightScore:
    """w^2 / [H^-1]_jj, H the mean products of the layer's inputs.

    It is the mean squared error of the output when the weight is zero and the other weights of that output are adjusted
    in the best way. Hassibi and Stork 1992, "Second order derivatives for network pruning: Optimal Brain Surgeon"
    (NIPS), layer by layer as in Frantar and Alistarh 2022, "Optimal Brain Compression" (NeurIPS, arXiv:2208.11580). The
    others are not adjusted here.

    Attributes:
        ridge: added to the diagonal of H, as a part of its mean.
    """

    name: ClassVar[str] = "obs"
    needs: ClassVar[frozenset[str]] = frozenset({"hessian"})

    ridge: float = 1e-2

    def __post_init__(self) -> None:
        if not self.ridge > 0:
            raise CompressError(f"The 'ridge' parameter of ObsWeightScore must be above 0. Got {self.ridge!r}.")

    def score(self, statistics: WeightStatistics) -> Tensor:
        how, weight = statistics.need("layout"), statistics.weight
        moment = statistics.need("input_moment")
        level = moment.diagonal(dim1=1, dim2=2).mean(1).clamp_min(torch.finfo(torch.float64).tiny)
        ridge = self.ridge * level[:, None, None] * torch.eye(moment.shape[1], dtype=torch.float64)
        inverse = torch.linalg.inv(moment + ridge).diagonal(dim1=1, dim2=2)
        return how.weight(how.matrix(weight).square() / inverse[:, :, None], weight.shape)
