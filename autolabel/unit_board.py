"""Units of one network as unit labelers see them: each among the units of its layer and of its network.

Where ways to store layers are labelled, these stand in the place of units, those of a layer in that of a group.
"""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from scipy.stats import rankdata

from autolabel.label_bank import LabelBank
from autolabel.plan_board import normal_scores
from compress.errors import CompressError

# Which units of a network are ordered among one another: those of each coupled group, or all of them.
WITHIN_LAYERS, ACROSS_LAYERS = SCOPES = ("within_layers", "across_layers")


@dataclass(frozen=True, eq=False)
class UnitBoard:
    """The channels and heads of one network.

    Attributes:
        network, family, task: what the network is called, and the families that it and its data belong to.
        names: of the features.
        values: `(n_units, n_features)`.
        group: `(n_units,)` int, 0, 1, ...: coupled group.
        damage: moment -> `(n_units,)` measured damage in nats.
        scope: out of `SCOPES`.
    """

    network: str
    family: str
    task: str
    names: tuple[str, ...]
    values: np.ndarray
    group: np.ndarray
    damage: dict[str, np.ndarray]
    scope: str = WITHIN_LAYERS

    def __post_init__(self) -> None:
        if self.scope not in SCOPES:
            raise CompressError(f"The 'scope' parameter of UnitBoard must be one of {SCOPES}. Got {self.scope!r}.")

    def target(self, moment: str) -> np.ndarray:
        """`(n_units,)` normal scores of the damage within each query: 0 in the middle, higher costs more."""
        found = np.zeros(len(self.group))
        for rows in self.queries():
            found[rows] = normal_scores(self.damage[moment][rows])
        return found

    def queries(self) -> list[np.ndarray]:
        """Rows of each set of units that are ordered among one another."""
        return self.groups() if self.scope == WITHIN_LAYERS else [np.arange(len(self.group))]

    def groups(self) -> list[np.ndarray]:
        """Rows of each group."""
        order = np.argsort(self.group, kind="stable")
        return np.split(order, np.cumsum(np.bincount(self.group))[:-1])


def unit_boards_of(
    bank: LabelBank, moments: Sequence[str], scope: str = WITHIN_LAYERS, fewest: int = 8
) -> list[UnitBoard]:
    """Every network of a bank; queries with fewer units, and units that were not measured, are left out."""
    found = []
    for i, name in enumerate(bank.networks["name"].tolist()):
        rows = bank.rows("units", i)
        columns = [column for column in rows if column.startswith("feature_")]
        known = np.all([np.isfinite(rows[f"std_err_{moment}"]) for moment in moments], axis=0)
        group = rows["group"][known]
        query = group if scope == WITHIN_LAYERS else np.zeros(len(group))
        _queries, place, sizes = np.unique(query, return_inverse=True, return_counts=True)
        large = sizes[place] >= fewest
        if not large.any():
            continue
        values = np.stack([rows[column][known][large] for column in columns], axis=1).astype(np.float64)
        found.append(
            UnitBoard(
                name,
                str(bank.networks["family"][i]),
                str(bank.networks["task"][i]),
                tuple(column.removeprefix("feature_") for column in columns),
                values,
                np.unique(group[large], return_inverse=True)[1],
                {moment: rows[f"damage_{moment}"][known][large].astype(np.float64) for moment in moments},
                scope,
            )
        )
    return found


def unit_matrix(board: UnitBoard) -> np.ndarray:
    """`(n_units, 2 * n_features)` float32: every feature as a rank within the group and within the network.

    Ranks lie in [-0.5, 0.5], ties at the same place: what a feature's scale is in one network tells nothing in another.

    Raises:
        CompressError: if a feature is not finite.
    """
    if not np.isfinite(board.values).all():
        raise CompressError(f"Features of the units of {board.network} are not finite.")
    whole = (rankdata(board.values, axis=0) - 0.5) / len(board.values) - 0.5
    within = np.zeros_like(whole)
    for rows in board.groups():
        within[rows] = (rankdata(board.values[rows], axis=0) - 0.5) / len(rows) - 0.5
    return np.concatenate([within, whole], axis=1).astype(np.float32)
