"""Folds that never split a group: rows of one layer (or one network) look alike, so random rows would flatter."""

import numpy as np

from autolabel.tables import FeatureTable

# With this many networks, generalising to a new one can be checked, and that is what a labeler is for.
_MODELS_TO_SPLIT_BY = 3


def group_keys(features: FeatureTable) -> np.ndarray:
    """`(n_units,)` int64: the block each row must stay with: its network if there are at least 3, else its group."""
    models = np.asarray(features.model).astype(str)
    _, model_code = np.unique(models, return_inverse=True)
    if model_code.max(initial=0) + 1 >= _MODELS_TO_SPLIT_BY:
        return model_code.astype(np.int64)
    _, group_code = np.unique(np.asarray(features.group).astype(str), return_inverse=True)
    _, keys = np.unique(model_code * (group_code.max(initial=0) + 1) + group_code, return_inverse=True)
    return keys.astype(np.int64)


def assign_folds(keys: np.ndarray, n_folds: int, seed: int) -> np.ndarray:
    """`(n_rows,)` int64 fold of each row: whole keys, the largest first, each into the emptiest fold.

    There are `min(n_folds, number of keys)` folds, so a single key leaves one fold: nothing can be held out.
    """
    names, sizes = np.unique(keys, return_counts=True)
    order = np.random.default_rng(seed).permutation(len(names))
    order = order[np.argsort(-sizes[order], kind="stable")]
    filled = np.zeros(min(n_folds, len(names)), dtype=np.int64)
    fold_of = np.zeros(len(names), dtype=np.int64)
    for i in order:
        fold_of[i] = int(np.argmin(filled))
        filled[fold_of[i]] += sizes[i]
    return fold_of[np.searchsorted(names, keys)]
