"""What one unit adds to the loss among random company: masks at random, and the difference that each unit makes."""

import numpy as np

from compress.errors import CompressError
from compress.units import UnitTable


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


def marginal_effects(removed: np.ndarray, losses: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """`(effect, std_err)`, each `(n_units,)`: mean loss of the masks without a unit minus that of the masks with it.

    With masks that are drawn unit by unit this is the Banzhaf value with every mask used for every unit (Wang and Jia
    2023, "Data Banzhaf", arXiv:2205.15466). A unit that is always there, or never, has effect 0 and an infinite error.

    Args:
        removed: `(n_masks, n_units)` bool.
        losses: `(n_masks,)`.
    """
    gone = removed.astype(np.float64)
    n_gone, n_there = gone.sum(axis=0), (1 - gone).sum(axis=0)
    known = (n_gone > 1) & (n_there > 1)
    # Around the mean, so that sums of squares lose nothing to cancellation.
    y = losses - losses.mean()
    means, errors = [], []
    for part, n in ((gone, n_gone), (1 - gone, n_there)):
        mean = (y @ part) / np.maximum(n, 1)
        variance = np.maximum((y**2) @ part / np.maximum(n, 1) - mean**2, 0.0) * n / np.maximum(n - 1, 1)
        means.append(mean)
        errors.append(variance / np.maximum(n, 1))
    effect = np.where(known, means[0] - means[1], 0.0)
    return effect, np.where(known, np.sqrt(errors[0] + errors[1]), np.inf)
