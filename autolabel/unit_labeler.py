"""The seam of unit labelers: they order the units of a layer by what their removal costs."""

from collections.abc import Sequence
from typing import Protocol, runtime_checkable

import numpy as np

from autolabel.unit_board import UnitBoard


@runtime_checkable
class UnitLabeler(Protocol):
    """Learns from boards of many networks. Every file in `unit_labelers/` holds one, named like its file."""

    name: str

    def fit(self, boards: Sequence[UnitBoard], moment: str) -> "UnitLabeler":
        """Learn the damage at this moment; returns itself. Raises CompressError without boards."""

    def predict(self, board: UnitBoard) -> np.ndarray:
        """`(n_units,)` score of each unit among those of its group, higher costs more; `board.damage` is not read."""
