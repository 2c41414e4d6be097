"""Size of a unit's activations."""

from dataclasses import dataclass
from typing import ClassVar

import numpy as np

from compress.errors import CompressError
from compress.normalization import NormalizedCriterion
from compress.statistics import Statistics


@dataclass(frozen=True)
class ActivationCriterion(NormalizedCriterion):
    """Mean magnitude or root mean square of a unit's values where they are consumed.

    Polyak, Wolf 2015, "Channel-Level Acceleration of Deep Face Representations" (IEEE Access); compared under this name
    in Molchanov et al. 2017 (arXiv:1611.06440).

    Attributes:
        p: 1 for the mean magnitude, 2 for the root mean square.
    """

    name: ClassVar[str] = "activation"
    needs: ClassVar[frozenset[str]] = frozenset({"activations"})

    p: int = 2

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.p not in (1, 2):
            raise CompressError(f"The 'p' parameter of ActivationCriterion must be 1 or 2. Got {self.p!r}.")

    def raw(self, statistics: Statistics) -> np.ndarray:
        activations = statistics.need_activations()
        return activations.mean_abs if self.p == 1 else np.sqrt(activations.mean_square)
