"""The seam of oracles: they measure the damage that one choice does."""

from collections.abc import Collection, Iterable, Iterator, MutableMapping
from dataclasses import dataclass
from typing import Protocol, runtime_checkable

import numpy as np

from compress.replay import Replay
from compress.structure import Structure
from compress.units import UnitTable


@dataclass(frozen=True)
class Measurement:
    """One measured damage.

    Attributes:
        unit_id, choice: what was done.
        damage: mean increase of the per-example loss over the examples looked at.
        std_err: standard error of that mean over the examples.
        n_examples: how many examples were looked at.
        forward_macs: MACs spent on it; naive_macs: those of full forwards of all examples.
    """

    unit_id: str
    choice: str
    damage: float
    std_err: float
    n_examples: int
    forward_macs: float
    naive_macs: float


@runtime_checkable
class Oracle(Protocol):
    """Measures damage on the examples of a replay. Variants differ in when they look.

    Attributes:
        name: file name, config name and tag.
        kind: which units it can measure: `"removable"` or `"layer"`.
        choices: the choices it measures for each of them.
        least_batches: how many batches of examples it needs; two where one half repairs and the other judges.
    """

    name: str
    kind: str
    least_batches: int
    choices: tuple[str, ...]

    def measure(
        self, structure: Structure, replay: Replay, rows: np.ndarray, done: Collection[tuple[str, str]] = (),
        notes: MutableMapping[str, list[float]] | None = None,
    ) -> Iterator[Measurement]:  # fmt: skip
        """Measurements of the units in these rows, each as soon as it is known.

        Args:
            done: `(unit id, choice)` of what was measured before and is left out.
            notes: name -> numbers that an oracle which knows its rows only at once found on the way, also in an earlier
                process; what is set is kept at once.
        """


class Moments:
    """Mean and standard error of a stream of paired differences, accumulated in float64."""

    def __init__(self) -> None:
        self.n, self.total, self.square = 0, 0.0, 0.0

    def add(self, differences: np.ndarray) -> None:
        """Take in one difference per example."""
        self.n += len(differences)
        self.total += float(differences.sum())
        self.square += float((differences**2).sum())

    @property
    def mean(self) -> float:
        """Mean of the differences."""
        return self.total / max(self.n, 1)

    @property
    def std_err(self) -> float:
        """Standard error of the mean; infinite with fewer than two examples."""
        if self.n < 2:
            return float("inf")
        variance = max(self.square - self.total**2 / self.n, 0.0) / (self.n - 1)
        return float(np.sqrt(variance / self.n))


def by_group(units: UnitTable, rows: Iterable[int]) -> dict[str, list[int]]:
    """Group name -> its rows among `rows`, in order."""
    groups: dict[str, list[int]] = {}
    for row in rows:
        groups.setdefault(str(units.group[row]), []).append(int(row))
    return groups
