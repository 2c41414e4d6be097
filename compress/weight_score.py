"""The seam of weight scores: how much each single weight matters."""

from collections.abc import Collection, Sequence
from typing import Protocol, runtime_checkable

import numpy as np
import torch
from torch import Tensor, nn

from compress.errors import DataError
from compress.normalization import check_normalization, normalize_groups
from compress.task import Batch, Task
from compress.weight_statistics import WeightStatistics, collect_weight_statistics


@runtime_checkable
class WeightScore(Protocol):
    """Orders the weights of a layer by how much they matter.

    Attributes:
        name: file name, config name and tag.
        needs: the kinds of statistics it reads, see `collect_weight_statistics`; nothing needs no data.
    """

    name: str
    needs: frozenset[str]

    def score(self, statistics: WeightStatistics) -> Tensor:
        """float64 of the weight's shape, higher is more important."""


def score_weights(
    model: nn.Module, score: WeightScore, task: Task | None = None, batches: Sequence[Batch] = (),
    normalize: str | None = None, skip: Collection[str] = (),
) -> dict[str, Tensor]:  # fmt: skip
    """Layer name -> float64 importance of each weight, of its shape; model, gradients and RNG stay as they are.

    Args:
        model: traced or not.
        score: the formula.
        task, batches: calibration data, for scores that need it.
        normalize: scale within each layer, one of `compress.normalization.NORMALIZATIONS`; None leaves scores as they
            are.
        skip: layers to leave out, with wildcards.

    Raises:
        DataError: if data is needed and missing, or a score is not finite. CompressError: for a layer whose inputs are
            needed and unknown.
    """
    check_normalization(normalize, "score_weights")
    scores = {}
    for name, statistics in collect_weight_statistics(model, score.needs, task, batches, skip).items():
        found = score.score(statistics)
        if not torch.isfinite(found).all():
            raise DataError(f"Score {score.name!r} is not finite for layer {name!r}. Check weights and data.")
        if normalize is not None:
            flat = found.flatten().numpy()
            scaled = normalize_groups(flat, {name: np.arange(len(flat))}, normalize)
            found = torch.from_numpy(scaled).reshape(found.shape)
        scores[name] = found
    return scores
