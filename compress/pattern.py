"""The seam of sparsity patterns: which weights can only stay or go together, and which must stay."""

from typing import Protocol, runtime_checkable

from torch import Tensor


@runtime_checkable
class SparsityPattern(Protocol):
    """Divides a weight into cells, each of which is kept or removed as a whole.

    Attributes:
        name: file name and config name.
        text: how plans write it, such as `"unstructured"`, `"2:4"`, `"block4x4"`, `"channel"`.
        least_density: the fraction of weights below which the pattern cannot go; 0 where there is no such bound.
    """

    name: str
    text: str
    least_density: float

    def cells(self, weight: Tensor) -> Tensor:
        """int64 of the weight's shape `(out_ch, in_ch, *kernel)`: the number of each weight's cell, from 0 on."""

    def held(self, scores: Tensor) -> Tensor:
        """bool of the shape of `scores` `(out_ch, in_ch, *kernel)`: weights that stay, whatever the density.

        The scores of weights that are gone already are minus infinity.
        """
