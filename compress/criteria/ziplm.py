"""What a channel costs that the others cannot make up for, all weights that read it taken together."""

from dataclasses import dataclass
from typing import ClassVar

import numpy as np

from compress.elimination import elimination_damage, joint_readings
from compress.normalization import NormalizedCriterion
from compress.statistics import Statistics


@dataclass(frozen=True)
class ZipLMCriterion(NormalizedCriterion):
    """Increase of the reading layers' squared error when the unit goes after all that are less important.

    The weights that stay are updated: the structured score of Optimal Brain Surgeon, its inverse kept up to date after
    every removal (Kurtic, Frantar and Alistarh 2023, "ZipLM: Inference-Aware Structured Pruning of Language Models",
    arXiv:2302.04089). All kernel offsets and flattened places of a unit go together, and what they have in common
    counts, where `reconstruction` takes every offset of a convolution by itself; errors are measured from zero, not
    from the mean. It costs n_inputs^2 for every row seen, and n_inputs^3 once, where n_inputs counts channels times
    kernel offsets. Each group's errors are brought to nats as in `reconstruction`: by the geometric mean of its units'
    Fisher damage over that of the errors of silencing them.

    Attributes:
        ridge: added to the diagonal of each second moment, as a part of its mean.
    """

    name: ClassVar[str] = "ziplm"
    needs: ClassVar[frozenset[str]] = frozenset({"gradients", "layer_moments"})

    ridge: float = 0.01

    @property
    def estimates_damage(self) -> bool:
        return True

    def raw(self, statistics: Statistics) -> np.ndarray:
        return elimination_damage(statistics, joint_readings(statistics), self.ridge)
