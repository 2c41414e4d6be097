"""Relations: examples lie to each other in the student as they do in the teacher."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, ClassVar

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from compress.distillation import Pairs, Said, as_pairs, check_weight, mean_of
from compress.errors import CompressError


@dataclass(frozen=True)
class RelationDistillation:
    """Huber losses of the distances of all pairs and the angles of all triples of examples, compared with the teacher.

    Park, Kim, Lu, Cho 2019, "Relational Knowledge Distillation" (CVPR, arXiv:1904.05068). Distances are divided by
    their mean over the batch, angles are cosines; so widths, scales and rotations may differ. Both losses are means
    over distinct examples; a batch of one gives zero.

    Attributes:
        pairs: layer names, or `(student's layer, teacher's layer)`, whose values are compared example by example; None
            compares the outputs.
        distance, angle: factors of the two losses, at least 0.
        most_angles: angles are those of the first so many examples of a batch: their number grows with its cube.
    """

    name: ClassVar[str] = "relation"

    pairs: Sequence[Any] | None = None
    distance: float = 1.0
    angle: float = 2.0
    most_angles: int = 128

    def __post_init__(self) -> None:
        pairs: Pairs | None = as_pairs(self.pairs, "RelationDistillation")
        object.__setattr__(self, "pairs", pairs)
        check_weight(self.distance, "RelationDistillation", "distance")
        check_weight(self.angle, "RelationDistillation", "angle")
        if self.most_angles < 3:
            raise CompressError(
                f"The 'most_angles' parameter of RelationDistillation must be at least 3. Got {self.most_angles!r}."
            )

    @property
    def reads(self) -> str:
        return "outputs" if self.pairs is None else "layers"

    def settings(self) -> dict[str, Any]:
        return {
            "pairs": self.pairs, "distance": self.distance, "angle": self.angle, "most_angles": self.most_angles
        }  # fmt: skip

    def regressors(self, student: Said, teacher: Said) -> nn.ModuleList:
        return nn.ModuleList()

    def loss(self, student: Said, teacher: Said, regressors: nn.ModuleList) -> Tensor:
        if self.pairs is None:
            return self._difference(_as_tensor(student.outputs), _as_tensor(teacher.outputs))
        pairs = zip(student.values, teacher.values, strict=True)
        return mean_of(self._difference(value, other) for value, other in pairs)

    def _difference(self, value: Tensor, other: Tensor) -> Tensor:
        products, expected = _products(value), _products(other)
        total = self.distance * _huber(_distances(products), _distances(expected), 2)
        if self.angle:
            n = self.most_angles
            total = total + self.angle * _huber(_cosines(products[:n, :n]), _cosines(expected[:n, :n]), 3)
        return total.to(value.dtype)


def _as_tensor(outputs: Any) -> Tensor:
    if not isinstance(outputs, Tensor):
        raise CompressError(f"Relations need a tensor as outputs, or 'pairs'. Got {type(outputs).__name__}.")
    return outputs


def _products(value: Tensor) -> Tensor:
    """`(batch, batch)` float64 inner products of the examples, measured from their mean so that little cancels."""
    rows = value.flatten(1).double()
    rows = rows - rows.mean(0)
    return rows @ rows.T


def _lengths(products: Tensor) -> Tensor:
    """`(batch, batch)` distances of the examples; equal ones have none, and no gradient."""
    norms = products.diagonal()
    squares = norms[:, None] + norms[None, :] - 2 * products
    apart = squares > 1e-14 * (norms[:, None] + norms[None, :])
    return torch.where(apart, torch.where(apart, squares, 1.0).sqrt(), 0.0)


def _distances(products: Tensor) -> Tensor:
    """Distances, relative to their mean over distinct examples."""
    lengths = _lengths(products)
    n = len(lengths)
    mean = lengths.sum() / max(n * (n - 1), 1)
    return lengths / torch.where(mean > 0, mean, 1.0)


def _cosines(products: Tensor) -> Tensor:
    """`[i, j, k]`: cosine of the angle at example j between examples i and k; 0 where an example equals j."""
    inner = products[:, None, :] - products[:, :, None] - products[None, :, :] + products.diagonal()[None, :, None]
    lengths = _lengths(products)
    sides = lengths[:, :, None] * lengths[None, :, :]
    return torch.where(sides > 0, inner / torch.where(sides > 0, sides, 1.0), 0.0)


def _huber(found: Tensor, expected: Tensor, order: int) -> Tensor:
    """Mean Huber loss over the entries whose `order` indices all differ; 0 if there are none."""
    n = len(found)
    same = torch.eye(n, dtype=torch.bool, device=found.device)
    distinct = ~same if order == 2 else ~(same[:, :, None] | same[None, :, :] | same[:, None, :])
    losses = F.smooth_l1_loss(found, expected, reduction="none")
    return torch.where(distinct, losses, 0.0).sum() / distinct.sum().clamp(min=1)
