"""How often a unit is not zero."""

from dataclasses import dataclass
from typing import ClassVar

import numpy as np

from compress.normalization import NormalizedCriterion
from compress.statistics import Statistics


@dataclass(frozen=True)
class ApozCriterion(NormalizedCriterion):
    """1 - average percentage of zeros of a unit's activations.

    Hu, Peng, Tai, Tang 2016, "Network Trimming: A Data-Driven Neuron Pruning Approach towards Efficient Deep
    Architectures" (arXiv:1607.03250). All units tie at 1 where no rectifier makes zeros.
    """

    name: ClassVar[str] = "apoz"
    needs: ClassVar[frozenset[str]] = frozenset({"activations"})

    def raw(self, statistics: Statistics) -> np.ndarray:
        return 1.0 - statistics.need_activations().zero_fraction
