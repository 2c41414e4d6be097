"""Hints: the student's inner values predict the teacher's."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, ClassVar

from torch import Tensor, nn

from compress.distillation import Pairs, Said, as_pairs, at_same_positions, check_weight, mean_of


@dataclass(frozen=True)
class HintDistillation:
    """`weight / 2` times the mean square of (regressor of the student's value - teacher's value), mean over the pairs.

    Romero, Ballas, Kahou, Chassang, Gatta, Bengio 2015, "FitNets: Hints for Thin Deep Nets" (ICLR, arXiv:1412.6550).
    Where the numbers of channels differ, a regressor that mixes channels (a 1 x 1 convolution with bias) is learned
    beside the student; positions of different number are averaged to the fewer.

    Attributes:
        pairs: layer names, or `(student's layer, teacher's layer)`; None chooses among the common names.
        weight: factor of the loss, at least 0.
    """

    name: ClassVar[str] = "hints"
    reads: ClassVar[str] = "layers"

    pairs: Sequence[Any] | None = None
    weight: float = 1.0

    def __post_init__(self) -> None:
        pairs: Pairs | None = as_pairs(self.pairs, "HintDistillation")
        object.__setattr__(self, "pairs", pairs)
        check_weight(self.weight, "HintDistillation")

    def settings(self) -> dict[str, Any]:
        return {"pairs": self.pairs, "weight": self.weight}

    def regressors(self, student: Said, teacher: Said) -> nn.ModuleList:
        widths = [(s.shape[1], t.shape[1]) for s, t in zip(student.values, teacher.values, strict=True)]
        return nn.ModuleList(nn.Identity() if s == t else nn.Linear(s, t) for s, t in widths)

    def loss(self, student: Said, teacher: Said, regressors: nn.ModuleList) -> Tensor:
        triples = zip(student.values, teacher.values, regressors, strict=True)
        return self.weight * mean_of(_misfit(value, hint, regressor) for value, hint, regressor in triples)


def _misfit(value: Tensor, hint: Tensor, regressor: nn.Module) -> Tensor:
    value, hint = at_same_positions(value, hint)
    return (regressor(value.movedim(1, -1)) - hint.movedim(1, -1)).square().mean() / 2
