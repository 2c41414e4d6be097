"""Damage of removing one channel or head at a time, looked at at once."""

from collections.abc import Iterator

import numpy as np

from autolabel.oracle import Measurement, by_group
from autolabel.strata import StratifiedMoments, hardest_first
from compress.errors import CompressError
from compress.replay import Replay, Suffix
from compress.structure import Structure


class RemovalOracle:
    """Removes one unit and measures the increase of the loss: the single-removal oracle (Molchanov et al. 2017).

    Only what the unit reaches is computed again. With `relative_error` above zero a unit is looked at on fewer
    examples: on the hardest (highest loss of the unchanged model), where most of the damage falls, and then on the
    others in random order, batch after batch, until the estimate is off from that over all examples by no more than
    this fraction of it (one standard error; stratified sampling, Cochran 1977, "Sampling Techniques", chapter 5). It
    stops by what it has seen, so damage that rests on rare examples outside the hardest is taken for too small.

    Args:
        relative_error: 0 for exact measuring on all examples, e.g. 0.3 for adaptive measuring.
        hard_fraction: of the examples that adaptive measuring always looks at.
    """

    name = "removal"
    kind = "removable"
    choices = ("removed",)

    def __init__(self, relative_error: float = 0.0, hard_fraction: float = 0.25) -> None:
        if relative_error < 0:
            raise CompressError(f"The 'relative_error' parameter of RemovalOracle must be >= 0. Got {relative_error}.")
        if not 0 < hard_fraction <= 1:
            raise CompressError(
                f"The 'hard_fraction' parameter of RemovalOracle must be in (0, 1]. Got {hard_fraction}."
            )
        self.relative_error = relative_error
        self.hard_fraction = hard_fraction

    def measure(self, structure: Structure, replay: Replay, rows: np.ndarray) -> Iterator[Measurement]:
        """One measurement per row, group by group."""
        n_hard = len(replay.batches)
        if self.relative_error > 0:
            replay, n_hard = hardest_first(replay, self.hard_fraction)
        groups = by_group(structure.units, rows)
        suffixes = {group: replay.group_suffix(group) for group in groups}
        together = replay.keep(list(suffixes.values()))
        for group, members in groups.items():
            if not together:
                replay.forget()
                replay.keep([suffixes[group]])
            k = replay.units_per_call(suffixes[group], int(np.argmax(replay.sizes)))
            for start in range(0, len(members), k):
                yield from self._measure_units(structure, replay, suffixes[group], members[start : start + k], n_hard)

    def _measure_units(
        self, structure: Structure, replay: Replay, suffix: Suffix, rows: list[int], n_hard: int
    ) -> Iterator[Measurement]:
        """All rows on the first `n_hard` batches, and on as many of the others as each needs."""
        sizes = sum(replay.sizes[:n_hard]), sum(replay.sizes[n_hard:])
        moments = {row: StratifiedMoments(*sizes) for row in rows}
        active = list(rows)
        for number in range(len(replay.batches)):
            losses = replay.removal_losses(suffix, active, number)
            for row, changed in zip(active, losses, strict=True):
                part = moments[row].hard if number < n_hard else moments[row].rest
                part.add(changed - replay.dense[number])
            if number >= n_hard:
                active = [row for row in active if not self._clear(moments[row])]
            if not active:
                break
        for row in rows:
            found = moments[row]
            yield Measurement(structure.units.ids[row], "removed", found.mean, found.std_err, found.n,
                              suffix.macs * found.n, replay.full_macs * replay.n_examples)  # fmt: skip

    def _clear(self, moments: StratifiedMoments) -> bool:
        return moments.sampling_error <= self.relative_error * abs(moments.mean)
