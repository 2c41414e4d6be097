"""The seam of classic importance criteria: statistics of a model in, one number per unit out."""

from typing import Protocol, runtime_checkable

import numpy as np

from compress.errors import CompressError, DataError
from compress.scores import Scores
from compress.statistics import Statistics
from compress.structure import Structure


@runtime_checkable
class Criterion(Protocol):
    """Orders channel and head units by how much they matter.

    Attributes:
        name: file name, config name and tag of the criterion.
        scale: `"nats"` if the formula estimates damage in the loss unit, else `"order"`.
        needs: the kinds of statistics it reads, out of `compress.statistics.KINDS`.
    """

    name: str
    scale: str
    needs: frozenset[str]

    def score(self, statistics: Statistics) -> np.ndarray:
        """`(n_units,)` float64 over the removable units of `statistics.units`, higher is more important."""


def score_units(structure: Structure, criterion: Criterion, statistics: Statistics) -> Scores:
    """What a criterion says of removing each unit of a model, as an allocator reads it.

    Args:
        structure: the analysed model.
        criterion: the formula.
        statistics: of the same model, with the kinds that `criterion.needs` names.

    Returns:
        Scores of all units with the single choice `"removed"`; NaN for layers, which cannot be removed.

    Raises:
        CompressError: if the statistics are of another model, or lack what the criterion needs.
        DataError: if a score is not finite; the unit is named.
    """
    units = structure.units
    if statistics.units.ids != units.ids:
        raise CompressError("These statistics belong to another model. Collect them from this structure.")
    values = np.full((len(units), 1), np.nan)
    found = np.asarray(criterion.score(statistics), dtype=np.float64)
    if found.shape != (structure.n_removable,):
        raise CompressError(
            f"Criterion {criterion.name!r} must give one score for each of {structure.n_removable} units. "
            f"Got shape {found.shape}."
        )
    if not np.isfinite(found).all():
        unit = units.ids[int(np.flatnonzero(~np.isfinite(found))[0])]
        raise DataError(f"Criterion {criterion.name!r} gives no finite score for {unit!r}. Check weights and data.")
    values[units.removable, 0] = found
    return Scores(units.ids, ("removed",), values, criterion.scale)
