"""Bias correction: the mean of every output channel brought back to that of the dense model."""

import logging
from collections.abc import Sequence
from typing import Any

import numpy as np
import torch
from torch import fx

from compress.attributes import parameter_uses, value_of
from compress.graph import layers_of
from compress.lockstep import Lockstep
from compress.patches import linear_map
from compress.refit import changed_values, locate
from compress.structure import Structure

_log = logging.getLogger(__name__)


def correct_biases_(
    small: fx.GraphModule, structure: Structure, removed: np.ndarray, batches: Sequence[tuple[Any, ...]]
) -> list[str]:
    """Change biases (or the shifts of batch norms), in place, until every layer's mean output is the dense one's.

    In execution order: each layer is corrected for what the corrected layers before it give (Nagel et al. 2019,
    "Data-free quantization through weight equalization and bias correction", with data in place of the formula).

    Args:
        small: sliced from `structure`.
        structure: the dense model.
        removed: `(n_units,)` bool, the units that `small` lacks.
        batches: flat inputs of the forward, for each batch.

    Returns:
        Names of the parameters that were changed; empty, with a warning in the log, if there is none to change.
    """
    uses = parameter_uses(small)
    changed = changed_values(small, structure, removed)
    places: dict[str, tuple[Any, str]] = {}
    for layer in layers_of(small):
        how = linear_map(layer.node, value_of(small, layer.weight))
        if how is None or layer.node.name not in changed:
            continue
        place = locate(small, layer, how, False, uses)
        if place.shift is not None:
            places[place.at.name] = (place.map, place.shift)
    run = Lockstep(structure, removed, small, batches)
    with torch.no_grad():
        for node in run.nodes():
            if node.name not in places:
                continue
            how, name = places[node.name]
            total, count = 0.0, 0
            for number, values in enumerate(run.small.values):
                gap = (run.target(node.name, number) - values[node.name]).movedim(how.channel_dim, -1).double()
                total = total + gap.reshape(-1, gap.shape[-1]).sum(0)
                count += gap.numel() // gap.shape[-1]
            shift = value_of(small, name)
            shift += (total / count).to(shift.dtype)
            offset = (total / count).to(shift.dtype).view(-1, *[1] * how.dims)
            for values in run.small.values:
                values[node.name] = values[node.name] + offset
    if not places:
        _log.warning("No layer with changed inputs has a bias or batch norm: there is nothing to correct.")
    return [name for _, name in places.values()]
