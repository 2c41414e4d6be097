"""The seam of distillation: what a student is to have in common with its teacher, as a loss."""

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Any, Protocol, runtime_checkable

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from compress.errors import CompressError

Pairs = tuple[tuple[str, str], ...]


@dataclass(frozen=True)
class Said:
    """What one model says of one batch.

    Attributes:
        outputs: what its forward returns.
        values: the value at its side of each pair of layers, each of shape `(batch, channels, *positions)`.
    """

    outputs: Any
    values: tuple[Tensor, ...] = ()


@runtime_checkable
class Distillation(Protocol):
    """Compares a student with its teacher.

    Attributes:
        name: file name, config name and tag.
        reads: `"outputs"`: outputs alone; `"layers"`: values of layers; `"maps"`: values of layers that have positions
            (images, sequences).
        pairs: `(student's layer, teacher's layer)` whose values are compared; None chooses among the common names.
    """

    name: str

    @property
    def reads(self) -> str: ...

    @property
    def pairs(self) -> Pairs | None: ...

    def settings(self) -> dict[str, Any]:
        """Plain JSON of what it was made with: a checkpoint of another distillation is refused."""

    def regressors(self, student: Said, teacher: Said) -> nn.ModuleList:
        """What is trained beside the student and thrown away afterwards, from what both say of a first batch."""

    def loss(self, student: Said, teacher: Said, regressors: nn.ModuleList) -> Tensor:
        """A scalar, the mean over the batch, differentiable in the student and the regressors."""


def as_pairs(pairs: Sequence[Any] | None, owner: str) -> Pairs | None:
    """Pairs of layer names, where a single name stands for both sides.

    Raises:
        CompressError: for anything else.
    """
    if pairs is None:
        return None
    if isinstance(pairs, (list, tuple)) and pairs:
        found = [(pair, pair) if isinstance(pair, str) else pair for pair in pairs]
        if all(isinstance(pair, (list, tuple)) and [type(name) for name in pair] == [str, str] for pair in found):
            return tuple(tuple(pair) for pair in found)
    raise CompressError(
        f"The 'pairs' parameter of {owner} must be None or a list of layer names or of (student's layer, teacher's "
        f"layer). Got {pairs!r}."
    )


def check_weight(weight: float, owner: str, name: str = "weight") -> None:
    """Raises CompressError unless `weight` is a finite number of at least 0."""
    if not 0 <= weight < float("inf"):
        raise CompressError(f"The '{name}' parameter of {owner} must be a finite number of at least 0. Got {weight!r}.")


def at_same_positions(left: Tensor, right: Tensor) -> tuple[Tensor, Tensor]:
    """Both values `(batch, channels, *positions)`, averaged over neighbours to the smaller of both sizes.

    Raises:
        CompressError: if one has more dimensions than the other.
    """
    sizes = [tuple(value.shape[2:]) for value in (left, right)]
    if len(sizes[0]) != len(sizes[1]):
        raise CompressError(
            f"A pair of layers must have values with as many dimensions of space. Got positions {sizes[0]} of the "
            f"student and {sizes[1]} of the teacher. Choose other 'pairs'."
        )
    if sizes[0] == sizes[1]:
        return left, right
    smaller = tuple(min(pair) for pair in zip(*sizes, strict=True))
    pools = {1: F.adaptive_avg_pool1d, 2: F.adaptive_avg_pool2d, 3: F.adaptive_avg_pool3d}
    if len(smaller) not in pools:
        raise CompressError(f"Values with {len(smaller)} dimensions of space cannot be averaged. Got {sizes}.")
    pool = pools[len(smaller)]
    return pool(left, smaller), pool(right, smaller)


def mean_of(losses: Iterable[Tensor]) -> Tensor:
    """The mean of scalars."""
    return torch.stack(tuple(losses)).mean()
