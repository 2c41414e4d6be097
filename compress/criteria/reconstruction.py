"""What a channel costs that the channels beside it cannot make up for."""

from dataclasses import dataclass
from typing import ClassVar

import numpy as np

from compress.elimination import eliminate, readings, silencing_errors
from compress.normalization import NormalizedCriterion
from compress.statistics import Statistics

_FLOOR = 1e-6


@dataclass(frozen=True)
class ReconstructionCriterion(NormalizedCriterion):
    """Increase of the reading layers' least-squares error when the unit goes after all that are less important.

    Units of a group are removed backwards one after the other, the weights of those that stay being refitted each time
    (Hassibi and Stork 1992, "Second order derivatives for network pruning: Optimal Brain Surgeon", NIPS, for whole
    channels; Luo, Wu and Lin 2017, "ThiNet", arXiv:1707.06342, for the objective). So of two channels that are alike
    the first to go is cheap and the second is not, and the sum over those removed is the error after the refit that
    follows pruning. Each group's errors are brought to nats by the geometric mean of its units' Fisher damage over that
    of the errors of silencing them.

    Attributes:
        ridge: added to the diagonal of the covariance, as a part of its mean.
    """

    name: ClassVar[str] = "reconstruction"
    needs: ClassVar[frozenset[str]] = frozenset({"gradients", "moments"})

    ridge: float = 1e-3

    @property
    def estimates_damage(self) -> bool:
        return True

    def raw(self, statistics: Statistics) -> np.ndarray:
        fisher = 0.5 * (statistics.need_gradients() ** 2).mean(axis=0)
        places = readings(statistics)
        scores = np.zeros(statistics.n_units)
        for units in statistics.group_rows.values():
            order, increases = eliminate(places, units, self.ridge)
            level = _mean_log(fisher[units]) - _mean_log(silencing_errors(places, units))
            scores[order] = np.maximum.accumulate(increases) * np.exp(level)
        return scores


def _mean_log(values: np.ndarray) -> float:
    """Mean logarithm, dead units counted as a millionth of the largest; that of 1 where all are dead."""
    largest = float(values.max(initial=0.0))
    return float(np.log(np.maximum(values, _FLOOR * largest)).mean()) if largest > 0 else 0.0
