"""What one unit adds to the loss among random company: masks at random, and the difference that each unit makes."""

import numpy as np

from compress.errors import CompressError
from compress.units import UnitTable

# Fewer say too little of how much blocks differ.
_ENOUGH_BLOCKS = 8


def random_masks(units: UnitTable, kept: float, n_masks: int, rng: np.random.Generator) -> np.ndarray:
    """`(n_masks, n_units)` bool, True where a unit is removed: each stays by itself with probability `kept`.

    Units are drawn independently: with a fixed number of them, one that goes would let another stay, and its effect
    would be told too small. Where all of a group would go, one of it stays.

    Raises:
        CompressError: if `kept` is not in (0, 1).
    """
    if not 0 < kept < 1:
        raise CompressError(f"The 'kept' parameter must be in (0, 1). Got {kept}.")
    removed = (rng.random((n_masks, len(units))) >= kept) & units.removable
    groups = units.group.astype(str)
    for group in units.groups:
        rows = np.flatnonzero((groups == group) & units.removable)
        empty = np.flatnonzero(removed[:, rows].all(axis=1))
        removed[empty, rng.choice(rows, len(empty))] = False
    return removed


def marginal_effects(
    removed: np.ndarray, losses: np.ndarray, blocks: np.ndarray | None = None
) -> tuple[np.ndarray, np.ndarray]:
    """`(effect, std_err)`, each `(n_units,)`: what a unit's removal adds to the loss on average over the masks.

    With masks that are drawn unit by unit this is the Banzhaf value, every mask being used for every unit (Wang and Jia
    2023, "Data Banzhaf", arXiv:2205.15466). Where there are at least twice as many masks as units, all effects are
    solved for together by least squares, so that what the other units of a mask do is not noise any more; else each is
    the difference between the masks without the unit and those with it. A unit that is always there, or never, has
    effect 0 and an infinite error.

    Args:
        removed: `(n_masks, n_units)` bool.
        losses: `(n_masks,)`.
        blocks: `(n_masks,)` which masks were judged on the same examples; what differs between blocks is taken out
            where there are enough masks to solve for all effects.
    """
    gone = removed.astype(np.float64)
    n_gone, n_there = gone.sum(axis=0), (1 - gone).sum(axis=0)
    known = (n_gone > 1) & (n_there > 1)
    # Around the mean, so that sums of squares lose nothing to cancellation.
    y = losses - losses.mean()
    n_blocks = 1 if blocks is None else len(np.unique(blocks))
    free = len(y) - n_blocks - int(known.sum())
    if len(y) >= 2 * known.sum() + n_blocks and free > 0:
        block = np.zeros(len(y), dtype=np.int64) if blocks is None else np.unique(blocks, return_inverse=True)[1]
        size = np.bincount(block)
        means = np.zeros((n_blocks, gone.shape[1]))
        np.add.at(means, block, gone)
        within = y - (np.bincount(block, y) / size)[block]
        return _regression(gone - (means / size[:, None])[block], within, known, free, block)
    means, errors = [], []
    for part, n in ((gone, n_gone), (1 - gone, n_there)):
        mean = (y @ part) / np.maximum(n, 1)
        variance = np.maximum((y**2) @ part / np.maximum(n, 1) - mean**2, 0.0) * n / np.maximum(n - 1, 1)
        means.append(mean)
        errors.append(variance / np.maximum(n, 1))
    effect = np.where(known, means[0] - means[1], 0.0)
    return effect, np.where(known, np.sqrt(errors[0] + errors[1]), np.inf)


def _regression(
    x: np.ndarray, y: np.ndarray, known: np.ndarray, free: int, block: np.ndarray
) -> tuple[np.ndarray, np.ndarray]:
    effect, error = np.zeros(len(known)), np.full(len(known), np.inf)
    x = x[:, known]
    inverse = np.linalg.pinv(x.T @ x, hermitian=True)
    effect[known] = inverse @ (x.T @ y)
    left = y - x @ effect[known]
    variance = np.maximum(inverse.diagonal(), 0.0) * float((left**2).sum()) / free
    n_blocks = int(block.max()) + 1
    if n_blocks >= _ENOUGH_BLOCKS:
        # A unit's effect differs between examples, so that masks of one block err together: the sandwich estimator of
        # clusters (Liang and Zeger 1986, Biometrika 73).
        scores = np.zeros((n_blocks, x.shape[1]))
        np.add.at(scores, block, x * left[:, None])
        variance = (((inverse @ scores.T) ** 2).sum(axis=1)) * n_blocks / (n_blocks - 1)
    error[known] = np.sqrt(variance)
    return effect, error
