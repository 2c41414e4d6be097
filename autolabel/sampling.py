"""Which units to measure next."""

from collections.abc import Collection

import numpy as np

from compress.errors import CompressError
from compress.units import UnitTable

STRATEGIES = ("uniform", "stratified")
KINDS = ("removable", "layer", "all")
# Within-layer order can only be learned from layers with at least two measured units.
_FLOOR = 2


def sample_units(
    units: UnitTable,
    n: int | None,
    seed: int = 0,
    strategy: str = "uniform",
    kind: str = "removable",
    known: Collection[str] = (),
) -> np.ndarray:
    """Rows of `units` to measure: sorted int64 positions, at most `n`, all of them if there are no more than that.

    Args:
        units: the units of a model.
        n: how many; None for all.
        seed: the same seed gives the same units. A larger uniform sample contains the smaller ones.
        strategy: `"uniform"`, or `"stratified"`: groups in proportion to their size, but two units of every group as
            long as `n` allows (then one, then of some groups).
        kind: `"removable"` for channels and heads, `"layer"`, or `"all"`.
        known: ids that are already measured and must not be drawn.

    Raises:
        CompressError: for an unknown strategy or kind, or a negative `n`.
    """
    if strategy not in STRATEGIES:
        raise CompressError(f"The 'strategy' parameter of sample_units must be one of {STRATEGIES}. Got {strategy!r}.")
    if kind not in KINDS:
        raise CompressError(f"The 'kind' parameter of sample_units must be one of {KINDS}. Got {kind!r}.")
    if n is not None and (isinstance(n, bool) or n != int(n) or n < 0):
        raise CompressError(f"The 'n' parameter of sample_units must be an int of at least 0, or None. Got {n!r}.")
    wanted = {"removable": units.removable, "layer": ~units.removable, "all": np.ones(len(units), dtype=bool)}[kind]
    known = set(known)
    candidates = np.array([row for row in np.flatnonzero(wanted) if units.ids[row] not in known], dtype=np.int64)
    if n is None or n >= len(candidates):
        return candidates
    generator = np.random.default_rng(seed)
    shuffled = generator.permutation(candidates)
    if strategy == "uniform":
        return np.sort(shuffled[:n])
    names, position, sizes = np.unique(units.group[shuffled], return_inverse=True, return_counts=True)
    quota = _quotas(sizes, int(n), generator)
    return np.sort(np.concatenate([shuffled[position == g][: quota[g]] for g in range(len(names))] or [candidates[:0]]))


def _quotas(sizes: np.ndarray, n: int, generator: np.random.Generator) -> np.ndarray:
    """How many to draw from groups of these sizes: floors first, the rest in proportion (largest remainder)."""
    quota = np.zeros(len(sizes), dtype=np.int64)
    for _ in range(_FLOOR):
        # If not every group can have one more, the lucky ones are drawn.
        open_groups = generator.permutation(np.flatnonzero(quota < sizes))[: n - int(quota.sum())]
        quota[open_groups] += 1
    while (left := n - int(quota.sum())) > 0:
        room = sizes - quota
        # What each group still lacks of its proportional share; groups above their share get nothing yet.
        lack = np.minimum(np.maximum(n * sizes / sizes.sum() - quota, 0.0), room)
        lack = lack if lack.sum() >= 1.0 else room.astype(np.float64)
        share = lack * min(1.0, left / lack.sum())
        whole = np.floor(share).astype(np.int64)
        extra = generator.permutation(len(sizes))
        extra = extra[np.argsort(-(share - whole)[extra], kind="stable")]
        extra = extra[(whole < room)[extra] & (share > 0.0)[extra]][: left - int(whole.sum())]
        whole[extra] += 1
        quota += whole
    return quota
