"""Damage of replacing one layer by two of low rank, looked at at once."""

from collections.abc import Iterator, Sequence

import numpy as np

from autolabel.oracle import Measurement, Moments
from compress.attributes import value_of
from compress.factors import RIDGE, factor_weight
from compress.input_moments import collect_input_moments
from compress.rank_table import LADDER, ladder_ranks, rank_choices, useful_rank
from compress.replay import Replay
from compress.splitting import find_splits
from compress.structure import Structure


class RankOracle:
    """Gives one layer the weight that two of low rank compute together, and measures the increase of the loss.

    Layers that cannot be factorised, or for which no rank saves anything, get no measurement.

    Args:
        ladder: the ranks to measure, as parts of the largest that saves both MACs and weights.
        scheme: how a layer becomes two, `"channel"` or `"spatial"`.
        activation_aware: the outputs on the replay's examples come closest, not the weights.
        ridge: see `compress.factors.factor_weight`.
    """

    name = "rank"
    kind = "layer"

    def __init__(
        self,
        ladder: Sequence[float] = LADDER,
        scheme: str = "channel",
        activation_aware: bool = True,
        ridge: float = RIDGE,
    ) -> None:
        self.ladder = tuple(ladder)
        self.choices = rank_choices(self.ladder)
        self.scheme = scheme
        self.activation_aware = activation_aware
        self.ridge = ridge

    def measure(self, structure: Structure, replay: Replay, rows: np.ndarray) -> Iterator[Measurement]:
        """One measurement per row and rank."""
        module = structure.traced.module
        splits, _ = find_splits(module, self.scheme)
        names = [name for name in (structure.units.ids[row] for row in rows) if name in splits]
        second = {}
        if names and self.activation_aware:
            second = collect_input_moments(module, [replay.task.inputs(batch) for batch in replay.batches], names)
            replay.forward_macs += replay.full_macs * replay.n_examples
        for name in names:
            split, useful = splits[name], useful_rank(structure, splits[name])
            if not useful:
                continue
            suffix = replay.layer_suffix(name)
            replay.forget()
            replay.keep([suffix])
            ranks = ladder_ranks(useful, self.ladder)
            weight = value_of(module, split.layer.weight)
            found = factor_weight(weight, split.first_dims, ranks, second.get(name), self.ridge)
            for choice, factors in zip(self.choices, found, strict=True):
                moments = Moments()
                for number in range(len(replay.batches)):
                    moments.add(replay.layer_losses(suffix, factors.weight, number)[0] - replay.dense[number])
                yield Measurement(name, choice, moments.mean, moments.std_err, moments.n,
                                  suffix.macs * moments.n, replay.full_macs * replay.n_examples)  # fmt: skip
