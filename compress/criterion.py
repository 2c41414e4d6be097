"""The seam of classic importance criteria: statistics of a model in, one number per unit out."""

from typing import Protocol, runtime_checkable

import numpy as np

from compress.statistics import Statistics


@runtime_checkable
class Criterion(Protocol):
    """Orders channel and head units by how much they matter.

    Attributes:
        name: file name, config name and tag of the criterion.
        scale: `"nats"` if the formula estimates damage in the loss unit, else `"order"`.
        needs: the kinds of statistics it reads: subset of `{"weights", "activations", "gradients"}`.
    """

    name: str
    scale: str
    needs: frozenset[str]

    def score(self, statistics: Statistics) -> np.ndarray:
        """`(n_units,)` float64 over the removable units of `statistics.units`, higher is more important."""
