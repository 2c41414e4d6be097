"""Scores made comparable between groups: one normalisation, an option of every criterion."""

from abc import ABC, abstractmethod
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import ClassVar

import numpy as np

from compress.errors import CompressError
from compress.statistics import Statistics

NORMALIZATIONS = (None, "mean", "l2", "max", "rank", "standard")


def normalize_groups(values: np.ndarray, group_rows: Mapping[str, np.ndarray], how: str | None) -> np.ndarray:
    """The values, scaled within each group; a group without spread or size becomes zeros (or ties).

    Args:
        values: `(n_units,)` float64.
        group_rows: group name -> rows of its units.
        how: `"mean"`, `"l2"`, `"max"`: divided by the group's mean magnitude, root of its mean square (so that groups
            of all sizes weigh the same), largest magnitude. `"rank"`: rank / (size - 1) in [0, 1], ties share their
            mean rank. `"standard"`: mean 0 and deviation 1. None: as they are.

    Raises:
        CompressError: for an unknown normalisation.
    """
    check_normalization(how, "normalize_groups")
    if how is None:
        return values
    out = np.zeros_like(values, dtype=np.float64)
    for rows in group_rows.values():
        out[rows] = _normalize(np.asarray(values[rows], dtype=np.float64), how)
    return out


def check_normalization(how: str | None, owner: str) -> None:
    """Raises CompressError unless `how` is a normalisation."""
    if how not in NORMALIZATIONS:
        raise CompressError(f"The 'normalize' parameter of {owner} must be one of {NORMALIZATIONS}. Got {how!r}.")


def _normalize(x: np.ndarray, how: str) -> np.ndarray:
    largest = float(np.abs(x).max(initial=0.0))
    if how == "rank":
        _, inverse, counts = np.unique(x, return_inverse=True, return_counts=True)
        ranks = np.cumsum(counts) - (counts + 1) / 2
        return ranks[inverse] / max(len(x) - 1, 1)
    if largest == 0.0:
        return np.zeros_like(x)
    # Scaled first, so that squares of tiny or huge scores neither vanish nor overflow.
    x = x / largest
    if how == "standard":
        deviation = x.std()
        return (x - x.mean()) / deviation if deviation > 1e-12 else np.zeros_like(x)
    size = {"mean": np.abs(x).mean(), "l2": np.sqrt((x**2).mean()), "max": 1.0}[how]
    return x / size


@dataclass(frozen=True)
class NormalizedCriterion(ABC):
    """A criterion with per-group normalisation as its last step.

    Attributes:
        normalize: one of `NORMALIZATIONS`. Normalised scores are an order, whatever the formula gives.
    """

    name: ClassVar[str]
    needs: ClassVar[frozenset[str]]

    normalize: str | None = field(default=None, kw_only=True)

    def __post_init__(self) -> None:
        check_normalization(self.normalize, type(self).__name__)

    @property
    def scale(self) -> str:
        """`"nats"` if the scores estimate damage in the loss unit, else `"order"`."""
        return "nats" if self.normalize is None and self.estimates_damage else "order"

    @property
    def estimates_damage(self) -> bool:
        """Whether the formula, not normalised, is in the loss unit."""
        return False

    def score(self, statistics: Statistics) -> np.ndarray:
        """`(n_units,)` float64 over the removable units of `statistics.units`, higher is more important."""
        return normalize_groups(self.raw(statistics), statistics.group_rows, self.normalize)

    @abstractmethod
    def raw(self, statistics: Statistics) -> np.ndarray:
        """The formula, `(n_units,)` float64."""
