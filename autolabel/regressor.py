"""The seam inside labelers: numbers in, one number out."""

from typing import Protocol, runtime_checkable

import numpy as np


class Regressor(Protocol):
    """A fitted regression of transformed damage on the columns of a `Problem`."""

    def predict(self, x: np.ndarray) -> np.ndarray:
        """`(n_rows,)` float64, finite."""

    def dump(self) -> bytes:
        """The content of a file from which the same regressor can be read: text or safetensors, never code."""


@runtime_checkable
class AdditiveRegressor(Protocol):
    """A regressor that can split a prediction into what each column contributed."""

    def contributions(self, x: np.ndarray) -> np.ndarray:
        """`(n_rows, n_columns + 1)` float64 whose rows sum to `predict(x)`; the last column is the average."""
