"""First-order change of the loss when a unit's gate closes."""

from dataclasses import dataclass
from typing import ClassVar

import numpy as np

from compress.errors import CompressError
from compress.normalization import NormalizedCriterion
from compress.statistics import Statistics

MODES = ("signed", "abs_mean", "mean_abs")


@dataclass(frozen=True)
class TaylorCriterion(NormalizedCriterion):
    """First-order expansion in the gate of a unit; `t` is an example's sum of activation x gradient over the unit.

    Molchanov, Tyree, Karras, Aila, Kautz 2017, "Pruning Convolutional Neural Networks for Resource Efficient Inference"
    (ICLR, arXiv:1611.06440).

    Attributes:
        mode: `"signed"`: -E[t], the expected change of the loss. `"abs_mean"`: |E[t]|, its size. `"mean_abs"`: E|t|,
            the mean size of the change of single examples (the paper's choice). All are in nats; only the first is an
            estimate of damage, the others bound its size to first order.
    """

    name: ClassVar[str] = "taylor"
    needs: ClassVar[frozenset[str]] = frozenset({"gradients"})

    mode: str = "mean_abs"

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.mode not in MODES:
            raise CompressError(f"The 'mode' parameter of TaylorCriterion must be one of {MODES}. Got {self.mode!r}.")

    @property
    def estimates_damage(self) -> bool:
        return True

    def raw(self, statistics: Statistics) -> np.ndarray:
        t = statistics.need_gradients()
        if self.mode == "mean_abs":
            return np.abs(t).mean(axis=0)
        mean = t.mean(axis=0)
        return -mean if self.mode == "signed" else np.abs(mean)
