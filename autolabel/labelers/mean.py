"""The floor: every unit is said to suffer the mean damage of its choice."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import ClassVar

import numpy as np
from safetensors import SafetensorError
from safetensors.numpy import load, save

from autolabel.choice_rows import BITS
from autolabel.tabular import TabularLabeler


@dataclass(frozen=True, eq=False)
class _Mean:
    """Means by the value of the bits column (`bits`, `means`: `(n_choices,)`); one mean if `column` is -1."""

    column: int
    bits: np.ndarray
    means: np.ndarray

    def predict(self, x: np.ndarray) -> np.ndarray:
        """`(n_rows,)` mean of the known bit-width nearest to each row's own."""
        if self.column < 0:
            return np.full(len(x), self.means[0])
        return self.means[np.abs(x[:, self.column][:, None] - self.bits).argmin(axis=1)]

    def dump(self) -> bytes:
        """This mean as safetensors."""
        return save({"column": np.array([self.column]), "bits": self.bits, "means": self.means})

    def contributions(self, x: np.ndarray) -> np.ndarray:
        """No feature matters: everything is the average."""
        return np.column_stack([np.zeros(x.shape), self.predict(x)])


@dataclass
class MeanLabeler(TabularLabeler):
    """Predicts the arithmetic mean of the measured damages of each choice.

    Any labeler must beat it. Its held-out rank correlation over all layers tends to be *negative*: leaving a harmful
    layer out lowers the mean of the others.
    """

    name: ClassVar[str] = "mean"
    transformed_target: ClassVar[bool] = False

    def _regress(self, x: np.ndarray, z: np.ndarray, keys: np.ndarray, columns: Sequence[str]) -> _Mean:
        if BITS not in columns:
            return _Mean(-1, np.zeros(1), np.array([z.mean()]))
        column = list(columns).index(BITS)
        bits = np.unique(x[:, column])
        return _Mean(column, bits, np.array([z[x[:, column] == b].mean() for b in bits]))

    @classmethod
    def _parse(cls, content: bytes) -> _Mean:
        try:
            arrays = load(content)
        except SafetensorError as error:
            raise ValueError(str(error)) from error
        return _Mean(int(arrays["column"][0]), arrays["bits"], arrays["means"])
