"""Refit of layers that are used more than once (siamese towers, heads on every level): one weight for all its uses."""

from collections.abc import Sequence
from typing import Any

import numpy as np
import torch
from torch import Tensor, fx

from compress.attributes import parameter_uses, value_of
from compress.graph import Layer, layers_of
from compress.layer_repair import LayerRepair, Rows
from compress.least_squares import solve_change
from compress.lockstep import Lockstep
from compress.patches import linear_map
from compress.structure import Structure


def shared_layers(small: fx.GraphModule, wanted: set[str]) -> tuple[list[list[Layer]], list[str]]:
    """`(groups, others)`: the uses of each shared weight, and names of shared layers that cannot be refitted.

    Args:
        wanted: names of the nodes that may be refitted.
    """
    uses = parameter_uses(small)
    found: dict[int, list[Layer]] = {}
    for layer in layers_of(small):
        weight = value_of(small, layer.weight)
        if uses[id(weight)] > 1 and linear_map(layer.node, weight) is not None:
            found.setdefault(id(weight), []).append(layer)
    reached = [(key, layers) for key, layers in found.items() if any(layer.node.name in wanted for layer in layers)]
    # A weight that is also read in another way (an embedding, a transpose) is left alone.
    groups = [layers for key, layers in reached if len(layers) == uses[key]]
    others = [layers[0].name for key, layers in reached if len(layers) != uses[key]]
    return groups, others


def refit_shared_(
    small: fx.GraphModule, structure: Structure, removed: np.ndarray, batches: Sequence[tuple[Any, ...]],
    layers: Sequence[Layer], *, ridge: float | None, max_rows: int, generator: torch.Generator,
) -> LayerRepair:  # fmt: skip
    """Solve one weight (and bias) for what the dense model gives at all its uses, in place.

    Args:
        small, structure, removed, batches, ridge, max_rows: see `compress.refit.refit_`.
        layers: the uses of the weight.
    """
    parts = _rows(Lockstep(structure, removed, small, batches), layers, max_rows // len(layers), generator)
    weight, bias = value_of(small, layers[0].weight), layers[0].bias
    uses = parameter_uses(small)
    own = bias is not None and uses[id(value_of(small, bias))] == uses[id(weight)]
    inputs, values, targets, second_half = (torch.cat(found, dim=-2) for found in zip(*parts, strict=True))
    change = solve_change(inputs, values, targets, ridge=ridge, offset=own, second_half=second_half[:, 0])
    how = linear_map(layers[0].node, weight)
    with torch.no_grad():
        weight += how.weight(change.matrix, weight.shape).to(weight.dtype)
        if own:
            value = value_of(small, bias)
            value += change.offset.reshape(-1).to(value.dtype)
    return LayerRepair(layers[0].name, change.error_before, change.error_after, change.ridge)


def _rows(
    run: Lockstep, layers: Sequence[Layer], max_rows: int, generator: torch.Generator
) -> list[tuple[Tensor, Tensor, Tensor, Tensor]]:
    """Inputs, values, targets and the halves of the cross-validation, of every use."""
    weight = value_of(run.small.module, layers[0].weight)
    left, parts = {layer.node.name: layer for layer in layers}, []
    with torch.no_grad():
        for node in run.nodes():
            layer = left.pop(node.name, None)
            if layer is None:
                continue
            found = [values[node.args[0].name] for values in run.small.values]
            made = [values[node.name] for values in run.small.values]
            rows = Rows(linear_map(node, weight), found, [value.shape for value in made], max_rows, generator)
            targets = (run.target(node.name, number) for number in range(len(made)))
            parts.append((rows.of_inputs(), rows.of_outputs(made), rows.of_outputs(targets),
                          rows.second_half()[:, None]))  # fmt: skip
            if not left:
                break
    return parts
