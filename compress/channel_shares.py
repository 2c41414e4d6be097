"""Scores of channels dealt out among their weights, so that any criterion can say which single weights go."""

import numpy as np
import torch
from torch import Tensor

from compress.errors import CompressError
from compress.prunable_weights import prunable_weights
from compress.structure import Structure


def share_scores(structure: Structure, scores: np.ndarray) -> dict[str, Tensor]:
    """Layer name -> float64 importance of each weight, of its shape.

    All weights that make or read a channel (or head) share its score by their squares, so their shares add up to it. A
    weight makes one channel and reads another: it has a share of both. A layer between channels that cannot be removed
    has no score to share; its squares count as those of an average channel.

    Args:
        structure: the analysed model.
        scores: `(n_removable,)` of its channels and heads, such as `Criterion.score` gives them.

    Raises:
        CompressError: for scores of another number of units.
    """
    n = structure.n_removable
    values = np.asarray(scores, dtype=np.float64)
    if values.shape != (n,):
        raise CompressError(f"The 'scores' parameter of share_scores must be {n} numbers. Got shape {values.shape}.")
    weights = {name: weight.tensor.detach().cpu().double().square()
               for name, weight in prunable_weights(structure.traced.module).items()}  # fmt: skip
    energy = np.zeros(n)
    for name, square in weights.items():
        for dim, rows in _rows(structure, name):
            known = rows >= 0
            sums = square.sum([i for i in range(square.dim()) if i != dim]).numpy()
            energy += np.bincount(rows[known], sums[known], minlength=n)
    of_square = np.divide(values, energy, out=np.zeros(n), where=energy > 0)
    usual = float(of_square[energy > 0].mean()) if (energy > 0).any() else 1.0
    found = {}
    for name, square in weights.items():
        parts = _rows(structure, name)
        factor = torch.zeros_like(square) if parts else torch.full_like(square, usual)
        for dim, rows in parts:
            own = torch.from_numpy(np.where(rows >= 0, of_square[np.maximum(rows, 0)], 0.0))
            factor += own.reshape([-1 if i == dim else 1 for i in range(square.dim())])
        found[name] = square * factor
    return found


def _rows(structure: Structure, layer: str) -> list[tuple[int, np.ndarray]]:
    """`(dimension, (size,) unit rows, -1 for none)` of a layer's weight where it makes or reads removable units."""
    n, parameter = structure.n_removable, layer if layer in structure.parameters else f"{layer}.weight"
    rows = [np.where((own >= 0) & (own < n), own, -1) for own in structure.parameters.get(parameter, ())]
    return [(dim, own) for dim, own in enumerate(rows) if (own >= 0).any()]
