"""Weights of a whole module pruned layer after layer, what stays making up for what goes."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, fx

from compress.attributes import value_of
from compress.errors import CompressError, PlanError
from compress.layer_moments import WeightReader, weight_readers
from compress.optimal_brain_surgeon import remove_weights, solve_for_mask
from compress.second_order_update import Keep, check_keep, sweep_columns
from compress.weight_rounding import each_moment, grid_of, relative_error

METHODS = ("sweep", "solve", "exact")


@dataclass(frozen=True, eq=False)
class LayerPruning:
    """What pruning did to one layer.

    Attributes:
        layer: its name.
        parameter: qualified name of its weight.
        kept: bool, of the weight's shape.
        error_masked, error: mean squared error of its outputs, on the inputs that were looked at, as a part of their
            energy (without the bias): if the same weights were zero and the others as they were, and as it is now.
    """

    layer: str
    parameter: str
    kept: Tensor
    error_masked: float
    error: float


def prune_weights_(
    module: fx.GraphModule,
    keep: Mapping[str, Keep],
    batches: Sequence[Any] | None = None,
    *,
    moments: Mapping[str, Tensor] | None = None,
    method: str = "sweep",
    damping: float = 0.01,
    max_rows: int = 50_000,
    seed: int = 0,
) -> list[LayerPruning]:
    """Prune single weights, in place, and update those that stay so that each layer's outputs change least.

    In a module from `prepare_quantized`, a layer whose weight is fake-quantised is pruned and rounded in one pass.

    Args:
        module: a traced module, in float or prepared.
        keep: layer name -> density, `(n, m)` for n of every m consecutive inputs of a row of its matrix (in_ch x
            kernel), or a bool mask of the weight's shape.
        batches: calibration data, tuples or dicts of the forward's inputs: each layer sees what it gets from the layers
            pruned before it.
        moments: in place of batches, of all layers at once, from `collect_layer_moments`.
        method: `"sweep"`: SparseGPT, see `sweep_columns`. `"solve"`: its mask, but all weights that stay are solved for
            once more, row by row. `"exact"`: the mask too is that of Optimal Brain Surgeon, weight after weight, see
            `remove_weights`; for a given mask the same as "solve". The last two cost n_inputs^3 for each row.
        damping: see `damped`.
        max_rows, seed: see `collect_layer_moments`.

    Returns:
        Masks and errors, in execution order. Nothing holds the masks afterwards.

    Raises:
        CompressError: for a bad setting. DataError: for unfit batches.
        PlanError: for a layer that the module lacks, or whose weight cannot be updated.
    """
    if method not in METHODS:
        raise CompressError(f"The 'method' parameter of prune_weights_ must be one of {METHODS}. Got {method!r}.")
    # An update would write where a mask holds zeros.
    readers = {reader.layer: reader for reader in weight_readers(module) if reader.mask is None}
    for name, kept in keep.items():
        if name not in readers:
            raise PlanError(
                f"Layer {name!r} cannot be pruned with an update: it is no conv or linear with a weight of its own and "
                f"no mask. Those of this model look like {sorted(readers)[:3]}."
            )
        check_keep(kept, value_of(module, readers[name].parameter).shape)
        if method != "sweep" and readers[name].quantized is not None:
            raise CompressError(
                f"The 'method' parameter of prune_weights_ must be 'sweep' for the quantised layer {name!r}, which is "
                f"rounded in the same pass. Got {method!r}."
            )
    chosen, found = [reader for name, reader in readers.items() if name in keep], []
    with torch.no_grad():
        for reader, moment in each_moment(module, chosen, batches, moments, max_rows, seed):
            weight = value_of(module, reader.parameter)
            wanted, rows = keep[reader.layer], reader.rows(weight.detach()).clone()
            wanted = reader.rows(wanted.to(weight.device)) if isinstance(wanted, Tensor) else wanted
            new, kept = _prune(module, reader, rows, moment, wanted, method, damping)
            weight.copy_(new.reshape(weight.shape))
            errors = (relative_error(value, rows, moment) for value in (rows.where(kept, 0.0), new))
            found.append(LayerPruning(reader.layer, reader.parameter, kept.reshape(weight.shape), *errors))
    return found


def _prune(
    module: fx.GraphModule, reader: WeightReader, rows: Tensor, moment: Tensor, keep: Keep, method: str, damping: float
) -> tuple[Tensor, Tensor]:
    """`(weight, kept)` of all groups of one layer."""
    if method == "exact" and not isinstance(keep, Tensor):
        groups = [remove_weights(w, h, keep, damping)[:2] for w, h in zip(rows, moment, strict=True)]
        new, kept = (torch.stack(parts) for parts in zip(*groups, strict=True))
        return new, kept
    nearest = None if reader.quantized is None else grid_of(module, reader).nearest
    # Weights n of m lie side by side, so these are swept as they are.
    order = not isinstance(keep, tuple)
    new, kept = sweep_columns(rows, moment, keep=keep, nearest=nearest, damping=damping, activation_order=order)
    return (solve_for_mask(rows, moment, kept, damping) if method != "sweep" else new), kept
