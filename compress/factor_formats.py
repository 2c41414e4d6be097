"""Ranks and formats of a plan: layers become two first, and each of them takes the format then."""

from dataclasses import replace

from torch import Tensor, fx

from compress.low_rank import Factorization, factorize
from compress.plan import CompressionPlan, LayerFormat
from compress.splitting import find_splits, part_names


def factorize_plan(
    module: fx.GraphModule, plan: CompressionPlan, second_moments: dict[str, Tensor] | None = None
) -> fx.GraphModule:
    """The module in which every layer that the plan gives a rank is two; itself if there is none.

    A rank above the full rank of a layer, from which channels went after it was planned, is taken as the full rank.

    Args:
        module: from `apply_plan`.
        second_moments: see `factorize`.

    Raises:
        PlanError: for a layer that cannot be two.
    """
    wanted = {name: layer_format for name, layer_format in plan.layer_formats.items() if layer_format.rank}
    if not wanted:
        return module
    ranks = {}
    for name, layer_format in wanted.items():
        splits, _ = find_splits(module, layer_format.rank_scheme)
        most = splits[name].full_rank if name in splits else layer_format.rank
        ranks[name] = Factorization(min(layer_format.rank, most), layer_format.rank_scheme)
    return factorize(module, ranks, second_moments)


def part_formats(plan: CompressionPlan) -> dict[str, LayerFormat]:
    """Layer name -> format, of the layers that are there after `factorize_plan`, but for weights left in float32."""
    found: dict[str, LayerFormat] = {}
    for name, layer_format in plan.layer_formats.items():
        if layer_format.scheme == "float32" and layer_format.density == 1:
            continue
        parts = part_names(name) if layer_format.rank else (name,)
        found |= {part: replace(layer_format, rank=None, rank_scheme="channel") for part in parts}
    return found
