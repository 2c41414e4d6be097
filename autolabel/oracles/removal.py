"""Damage of removing one channel or head at a time, looked at at once."""

from collections.abc import Iterator

import numpy as np

from autolabel.oracle import Measurement, Moments, by_group
from compress.errors import CompressError
from compress.replay import Replay, Suffix
from compress.structure import Structure


class RemovalOracle:
    """Removes one unit and measures the increase of the loss: the single-removal oracle (Molchanov et al. 2017).

    Only what the unit reaches is computed again. With `relative_error` above zero a unit is looked at on fewer
    examples: batch after batch, until the standard error of its damage is below that fraction of the damage.

    Args:
        relative_error: 0 for exact measuring on all examples, e.g. 0.3 for adaptive measuring.
        min_examples: adaptive measuring looks at no fewer than these.
    """

    name = "removal"
    kind = "removable"
    choices = ("removed",)

    def __init__(self, relative_error: float = 0.0, min_examples: int = 64) -> None:
        if relative_error < 0:
            raise CompressError(f"The 'relative_error' parameter of RemovalOracle must be >= 0. Got {relative_error}.")
        self.relative_error = relative_error
        self.min_examples = min_examples

    def measure(self, structure: Structure, replay: Replay, rows: np.ndarray) -> Iterator[Measurement]:
        """One measurement per row, group by group."""
        groups = by_group(structure.units, rows)
        suffixes = {group: replay.group_suffix(group) for group in groups}
        together = replay.keep(list(suffixes.values()))
        for group, members in groups.items():
            if not together:
                replay.forget()
                replay.keep([suffixes[group]])
            k = replay.units_per_call(suffixes[group], 0)
            for start in range(0, len(members), k):
                yield from self._measure_units(structure, replay, suffixes[group], members[start : start + k])

    def _measure_units(
        self, structure: Structure, replay: Replay, suffix: Suffix, rows: list[int]
    ) -> Iterator[Measurement]:
        moments = {row: Moments() for row in rows}
        active = list(rows)
        for number in range(len(replay.batches)):
            losses = replay.removal_losses(suffix, active, number)
            for row, changed in zip(active, losses, strict=True):
                moments[row].add(changed - replay.dense[number])
            active = [row for row in active if not self._clear(moments[row])]
            if not active:
                break
        for row in rows:
            found = moments[row]
            yield Measurement(structure.units.ids[row], "removed", found.mean, found.std_err, found.n,
                              suffix.macs * found.n, replay.full_macs * replay.n_examples)  # fmt: skip

    def _clear(self, moments: Moments) -> bool:
        enough = moments.n >= self.min_examples
        return self.relative_error > 0 and enough and moments.std_err <= self.relative_error * abs(moments.mean)
