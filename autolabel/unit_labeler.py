"""The seam of unit labelers: they order units by what their removal costs, within layers or across them."""

from collections.abc import Sequence
from typing import Protocol, runtime_checkable

import numpy as np

from autolabel.unit_board import UnitBoard


@runtime_checkable
class UnitLabeler(Protocol):
    """Learns from boards of many networks. Every file in `unit_labelers/` holds one, named like its file."""

    name: str

    def fit(self, boards: Sequence[UnitBoard], moment: str) -> "UnitLabeler":
        """Learn the damage at this moment from boards of one scope; returns itself.

        Raises:
            CompressError: without boards.
        """

    def predict(self, board: UnitBoard) -> np.ndarray:
        """`(n_units,)` score of each unit among those of its query, higher costs more; `board.damage` is not read."""
