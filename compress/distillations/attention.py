"""Attention transfer: the student looks where the teacher looks."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, ClassVar

from torch import Tensor, nn
from torch.nn import functional as F

from compress.distillation import Pairs, Said, as_pairs, at_same_positions, check_weight, mean_of
from compress.errors import CompressError


@dataclass(frozen=True)
class AttentionDistillation:
    """`weight` times the squared distance of the normalised attention maps, mean over the examples and the pairs.

    Zagoruyko, Komodakis 2017, "Paying More Attention to Attention" (ICLR, arXiv:1612.03928). The map of a value is
    `sum over channels |value|^p` at each position, divided by its Euclidean norm over all positions, so the numbers of
    channels may differ; positions of different number are averaged to the fewer. The paper writes the distance itself;
    squared, its gradient vanishes where student and teacher agree.

    Attributes:
        pairs: layer names, or `(student's layer, teacher's layer)`; None chooses among the common names.
        p: power of the magnitudes, above 0.
        weight: factor of the loss, at least 0.
    """

    name: ClassVar[str] = "attention"
    reads: ClassVar[str] = "maps"

    pairs: Sequence[Any] | None = None
    p: float = 2.0
    weight: float = 1.0

    def __post_init__(self) -> None:
        pairs: Pairs | None = as_pairs(self.pairs, "AttentionDistillation")
        object.__setattr__(self, "pairs", pairs)
        check_weight(self.weight, "AttentionDistillation")
        if not 0 < self.p < float("inf"):
            raise CompressError(f"The 'p' parameter of AttentionDistillation must be above 0. Got {self.p!r}.")

    def settings(self) -> dict[str, Any]:
        return {"pairs": self.pairs, "p": self.p, "weight": self.weight}

    def regressors(self, student: Said, teacher: Said) -> nn.ModuleList:
        return nn.ModuleList()

    def loss(self, student: Said, teacher: Said, regressors: nn.ModuleList) -> Tensor:
        pairs = zip(student.values, teacher.values, strict=True)
        return self.weight * mean_of(self._distance(value, other) for value, other in pairs)

    def _distance(self, value: Tensor, other: Tensor) -> Tensor:
        value, other = at_same_positions(self._energy(value), self._energy(other))
        difference = F.normalize(value.flatten(1), dim=1) - F.normalize(other.flatten(1), dim=1)
        return difference.square().sum(1).mean()

    def _energy(self, value: Tensor) -> Tensor:
        """`(batch, 1, *positions)`."""
        return value.abs().pow(self.p).sum(1, keepdim=True)
