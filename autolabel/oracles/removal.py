"""Damage of removing one channel or head at a time, looked at at once."""

from collections.abc import Collection, Iterator, MutableMapping

import numpy as np

from autolabel.oracle import Measurement, by_group
from autolabel.strata import StratifiedMoments, hardest_first
from compress.errors import CompressError
from compress.replay import Replay
from compress.structure import Structure
from compress.suffix import Suffix


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
    least_batches = 1
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

    def measure(
        self, structure: Structure, replay: Replay, rows: np.ndarray, done: Collection[tuple[str, str]] = (),
        notes: MutableMapping[str, list[float]] | None = None,
    ) -> Iterator[Measurement]:  # fmt: skip
        """One measurement per row, group by group."""
        n_hard = len(replay.batches)
        if self.relative_error > 0:
            replay, n_hard = hardest_first(replay, self.hard_fraction)
        groups = by_group(structure.units, (row for row in rows if (structure.units.ids[row], "removed") not in done))
        suffixes = {group: replay.group_suffix(group) for group in groups}
        together = replay.keep(list(suffixes.values()))
        for group, members in groups.items():
            suffix = suffixes[group]
            if not together:
                replay.forget()
                replay.keep([suffix])
            hard = replay.calls(suffix, range(n_hard))
            for row in members:
                yield self._measure_unit(structure, replay, suffix, row, hard)

    def _measure_unit(
        self, structure: Structure, replay: Replay, suffix: Suffix, row: int, hard: list[list[int]]
    ) -> Measurement:
        """One row on all hard batches, several in one call, and then on as many of the others as it needs."""
        n_hard = sum(map(len, hard))
        found = StratifiedMoments(sum(replay.sizes[:n_hard]), sum(replay.sizes[n_hard:]))
        for call in [*hard, *([number] for number in range(n_hard, len(replay.batches)))]:
            losses = replay.removal_losses(suffix, [(row, number) for number in call])
            for number, changed in zip(call, losses, strict=True):
                moments = found.hard if number < n_hard else found.rest
                moments.add(changed - replay.dense[number])
            if call[0] >= n_hard and self._clear(found):
                break
        return Measurement(structure.units.ids[row], "removed", found.mean, found.std_err, found.n,
                           suffix.macs * found.n, replay.full_macs * replay.n_examples)  # fmt: skip

    def _clear(self, moments: StratifiedMoments) -> bool:
        return moments.sampling_error <= self.relative_error * abs(moments.mean)
