"""Examples dealt anew, the hardest first: on them falls most of the damage that a removal does."""

import math
from collections.abc import Sequence

import numpy as np
import torch
from torch import Tensor
from torch.utils import _pytree as pytree

from autolabel.oracle import Moments
from compress.replay import Replay
from compress.task import Batch


def hardest_first(replay: Replay, fraction: float, seed: int = 0) -> tuple[Replay, int]:
    """A replay of the same examples in other batches, and how many of its first batches hold the hardest.

    Hardest are the examples with the highest loss of the unchanged model; the others follow in random order. Batches
    that cannot be divided (something in them has not one row per example) or that are of several shapes (sentences of
    other lengths) cannot be dealt at random: they stay as they are and all count as hard, which is measuring exactly.

    Args:
        replay: as it was made; it stays.
        fraction: of the examples that count as hard, in (0, 1].
        seed: of the order of the others.
    """
    rows = [_rows(batch, size) for batch, size in zip(replay.batches, replay.sizes, strict=True)]
    if rows[0] is None or any(row != rows[0] for row in rows):
        return replay, len(rows)
    ranks = np.argsort(-np.concatenate(replay.dense), kind="stable")
    n_hard = math.ceil(fraction * len(ranks))
    rest = np.random.default_rng(seed).permutation(ranks[n_hard:])
    hard, others = _deal(replay, ranks[:n_hard]), _deal(replay, rest)
    batches, dense = zip(*hard, *others, strict=True)
    return Replay(replay.structure, replay.task, batches, replay.cache_bytes, dense), len(hard)


class StratifiedMoments:
    """Mean of paired differences when all hard examples were looked at and only some of the others.

    Args:
        n_hard, n_rest: examples of each kind that there are.
    """

    def __init__(self, n_hard: int, n_rest: int) -> None:
        self.n_hard, self.n_rest = n_hard, n_rest
        self.hard, self.rest = Moments(), Moments()

    @property
    def n(self) -> int:
        """Examples looked at."""
        return self.hard.n + self.rest.n

    @property
    def mean(self) -> float:
        """Estimate of the mean over all examples, unbiased if how many are looked at was fixed beforehand."""
        return (self.hard.total + self.n_rest * self.rest.mean) / (self.n_hard + self.n_rest)

    @property
    def sampling_error(self) -> float:
        """Standard error against looking at all examples."""
        share = self.n_rest / (self.n_hard + self.n_rest)
        left = 1 - self.rest.n / max(self.n_rest, 1)
        return share * self.rest.std_err * math.sqrt(left) if share and left else 0.0

    @property
    def std_err(self) -> float:
        """Standard error against the population that the examples were drawn from."""
        if self.n < 2:
            return float("inf")
        n = self.n_hard + self.n_rest
        square = (self.hard.square + self.n_rest * self.rest.square / max(self.rest.n, 1)) / n
        variance = max(square - self.mean**2, 0.0) * n / max(n - 1, 1)
        return math.sqrt(variance / n + self.sampling_error**2)


def _rows(batch: Batch, size: int) -> list[tuple[int, ...]] | None:
    """Shapes of a batch's tensors without the example dimension; None if it cannot be divided."""
    leaves = pytree.tree_leaves(batch)
    if not all(isinstance(leaf, Tensor) and leaf.dim() and leaf.shape[0] == size for leaf in leaves):
        return None
    return [tuple(leaf.shape[1:]) for leaf in leaves]


def _deal(replay: Replay, positions: Sequence[int]) -> list[tuple[Batch, np.ndarray]]:
    """Batches of the examples at these positions, in order, and their dense losses."""
    starts, dense = np.cumsum([0, *replay.sizes]), np.concatenate(replay.dense)
    found: list[tuple[Batch, float]] = []
    for position in positions:
        number = int(np.searchsorted(starts, position, side="right")) - 1
        row = int(position - starts[number])
        example = pytree.tree_map(lambda leaf, row=row: leaf[row : row + 1], replay.batches[number])
        found.append((example, dense[position]))
    size = max(replay.sizes)
    parts = [found[i : i + size] for i in range(0, len(found), size)]
    return [
        (
            pytree.tree_map(lambda *leaves: torch.cat(leaves), *(e for e, _ in part)),
            np.array([loss for _, loss in part]),
        )
        for part in parts
    ]
