"""Scores of channels dealt out among their weights, so that any criterion can say which single weights go."""

import numpy as np
import torch
from torch import Tensor

from compress.errors import CompressError
from compress.prunable_weights import prunable_weights
from compress.structure import Structure


def share_scores(structure: Structure, scores: np.ndarray) -> dict[str, Tensor]:
    """Layer name -> float64 importance of each weight, of its shape.

    All weights that make or read a channel (or head) share the size of its score by their squares, so that their shares
    add up to it. A weight makes one channel and reads another: it has a share of both. The sign of a score is left out:
    of single weights a first-order gain is noise, and by it the largest weights of a channel would go first (Molchanov,
    Tyree, Karras, Aila, Kautz 2017, arXiv:1611.06440, take the size of such scores too). A weight that makes and reads
    only what cannot be removed has no score to share; its square counts as that of an average weight with one.

    Args:
        structure: the analysed model.
        scores: `(n_removable,)` of its channels and heads, such as `Criterion.score` gives them.

    Raises:
        CompressError: for scores of another number of units.
    """
    n = structure.n_removable
    values = np.abs(np.asarray(scores, dtype=np.float64))
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
    usual = float(values[energy > 0].sum() / energy.sum()) if energy.any() else 1.0
    found = {}
    for name, square in weights.items():
        factor, scored = torch.zeros_like(square), torch.zeros(square.shape, dtype=torch.bool)
        for dim, rows in _rows(structure, name):
            along = [-1 if i == dim else 1 for i in range(square.dim())]
            own = np.where(rows >= 0, of_square[np.maximum(rows, 0)], 0.0)
            factor += torch.from_numpy(own).reshape(along)
            scored |= torch.from_numpy(rows >= 0).reshape(along)
        found[name] = square * torch.where(scored, factor, usual)
    return found


def _rows(structure: Structure, layer: str) -> list[tuple[int, np.ndarray]]:
    """`(dimension, (size,) unit rows, -1 for none)` of a layer's weight where it makes or reads removable units."""
    n, parameter = structure.n_removable, layer if layer in structure.parameters else f"{layer}.weight"
    rows = [np.where((own >= 0) & (own < n), own, -1) for own in structure.parameters.get(parameter, ())]
    return [(dim, own) for dim, own in enumerate(rows) if (own >= 0).any()]
