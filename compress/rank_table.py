"""What each rank of each layer costs and how far it errs, before anything is done: what a solver chooses from."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np
from torch import Tensor

from compress.attributes import value_of
from compress.counting import layer_macs
from compress.errors import CompressError
from compress.factors import RIDGE, factor_weight
from compress.splitting import Split, find_splits
from compress.structure import Structure

# Parts of the useful rank, and so about the parts of the layer's weights that stay.
LADDER = (0.75, 0.5, 0.35, 0.25, 0.15, 0.1)


@dataclass(frozen=True, eq=False)
class RankTable:
    """Ranks that the layers may take; `(n_layers, n_choices)` where not said otherwise.

    Attributes:
        layers: names of the layers for which some rank saves both MACs and weights.
        choices: `"rank0.5"`: half of the layer's useful rank.
        ranks: int64, at least 1.
        weight_error, output_error: float64, see `Factors`; the latter NaN where no second moments were given.
        macs: float64, MACs of one example in the two layers.
        weights: int64, weights of the two layers. The bias is as before.
        dense_macs, dense_weights: `(n_layers,)` of the layer as it is.
        refused: (layer name, reason) of every other layer.
    """

    layers: tuple[str, ...]
    choices: tuple[str, ...]
    ranks: np.ndarray
    weight_error: np.ndarray
    output_error: np.ndarray
    macs: np.ndarray
    weights: np.ndarray
    dense_macs: np.ndarray
    dense_weights: np.ndarray
    refused: tuple[tuple[str, str], ...]


def tabulate_ranks(
    structure: Structure,
    second_moments: Mapping[str, Tensor] | None = None,
    ladder: Sequence[float] = LADDER,
    scheme: str = "channel",
    ridge: float = RIDGE,
) -> RankTable:
    """Costs and errors of a ladder of ranks for every layer that can be factorised, without a forward pass.

    Args:
        structure: the analysed model.
        second_moments: from `collect_input_moments` of `structure.traced.module`.
        ladder: parts of the useful rank, each in (0, 1].
        scheme: see `compress.factorizers`.
        ridge: see `factor_weight`.

    Raises:
        CompressError: for a ladder that is empty or out of range. PlanError: for an unknown scheme.
    """
    given = second_moments or {}
    choices = rank_choices(ladder)
    splits, others = find_splits(structure.traced.module, scheme)
    useful = {name: useful_rank(structure, split) for name, split in splits.items()}
    names = tuple(name for name in splits if useful[name])
    refused = (*others, *((name, "no rank saves both MACs and weights") for name in splits if not useful[name]))
    shape = len(names), len(choices)
    ranks = np.array([ladder_ranks(useful[name], ladder) for name in names], dtype=np.int64).reshape(shape)
    errors = np.full((2, *shape), np.nan)
    for row, name in enumerate(names):
        split = splits[name]
        weight = value_of(structure.traced.module, split.layer.weight)
        for column, found in enumerate(
            factor_weight(weight, split.first_dims, ranks[row].tolist(), given.get(name), ridge)
        ):
            errors[:, row, column] = found.weight_error, found.output_error
    each = np.array([rank_costs(structure, splits[name]) for name in names]).reshape(-1, 2)
    dense_macs = np.array([layer_macs(structure, splits[name].layer) for name in names])
    dense_weights = np.array([splits[name].n_weights for name in names], dtype=np.int64)
    return RankTable(names, choices, ranks, *errors, ranks * each[:, :1], ranks * each[:, 1:].astype(np.int64),
                     dense_macs, dense_weights, refused)  # fmt: skip


def rank_choices(ladder: Sequence[float]) -> tuple[str, ...]:
    """Names of the choices of a ladder, `"rank0.5"`.

    Raises:
        CompressError: if it is empty, has an entry twice or one that is not in (0, 1].
    """
    if not ladder or len(set(ladder)) < len(ladder) or not all(0 < part <= 1 for part in ladder):
        raise CompressError(f"A ladder of ranks must hold different numbers in (0, 1]. Got {tuple(ladder)!r}.")
    return tuple(f"rank{part:g}" for part in ladder)


def ladder_ranks(useful: int, ladder: Sequence[float]) -> list[int]:
    """The rank of each choice: these parts of the useful rank, rounded down, and at least 1."""
    return [max(1, int(part * useful + 1e-9)) for part in ladder]


def rank_costs(structure: Structure, split: Split) -> tuple[float, int]:
    """`(macs, weights)` that each rank costs: both are proportional to the rank. MACs are those of one example."""
    first, second = split.per_rank
    positions = layer_macs(structure, split.layer) / split.n_weights
    node = split.layer.node
    sizes = structure.traced.shapes[node.args[0].name], structure.traced.shapes[node.name]
    # What belongs to the second layer still has the size of the input between the two.
    stretch = 1.0
    for d in set(range(split.map.dims)) - set(split.first_dims):
        stretch *= sizes[0][d - split.map.dims] / sizes[1][d - split.map.dims]
    return positions * (first * stretch + second), first + second


def useful_rank(structure: Structure, split: Split) -> int:
    """The largest rank at which the two layers have fewer MACs and fewer weights than the one, 0 if there is none."""
    macs, weights = rank_costs(structure, split)
    by_macs = int(np.ceil(layer_macs(structure, split.layer) / macs - 1e-9)) - 1
    return min(by_macs, (split.n_weights - 1) // weights, split.full_rank)
