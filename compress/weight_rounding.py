"""The weights of a prepared module moved to the integers that a rounding chooses."""

import logging
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, fx

from compress.attributes import value_of
from compress.errors import CompressError, PlanError
from compress.fake_quantization import quantized_weights
from compress.layer_moments import WeightReader, visit_readers, weight_readers
from compress.rounding import Grid, Rounding, SymmetricGrid
from compress.second_order_update import output_error

_log = logging.getLogger(__name__)


@dataclass(frozen=True)
class LayerRounding:
    """What rounding did to one layer.

    Attributes:
        layer: its name.
        error_nearest, error: mean squared error of its outputs, on the inputs that were looked at, as a part of their
            energy (without the bias): with nearest rounding, and as it is now.
    """

    layer: str
    error_nearest: float
    error: float


def round_weights_(
    prepared: fx.GraphModule,
    rounding: Rounding,
    batches: Sequence[Any] | None = None,
    *,
    moments: Mapping[str, Tensor] | None = None,
    max_rows: int = 50_000,
    seed: int = 0,
) -> list[LayerRounding]:
    """Move the weights of every fake-quantised layer, in place, to the values of its grid that `rounding` chooses.

    The fake-quantisers leave these values as they are, so that integers, exported files and later training start from
    them. Scales, biases, activation ranges and the mode stay. Layers whose weight is used more than once, transposed
    convs and embeddings (whose inputs are uncorrelated) keep nearest rounding. What masks remove stays exactly zero.

    Args:
        prepared: from `prepare_quantized`.
        rounding: who chooses.
        batches: calibration data, tuples or dicts of the forward's inputs: layer after layer is rounded for the inputs
            that it gets from the layers rounded before it, as GPTQ does.
        moments: in place of batches, of all layers at once, from `collect_layer_moments`: of the dense module, say.
        max_rows, seed: see `collect_layer_moments`.

    Returns:
        The errors of every layer that was rounded, in execution order.

    Raises:
        CompressError: for both or neither of `batches` and `moments`.
        PlanError: if nothing is quantised, or a layer has no moment. DataError: for unfit batches.
    """
    if not quantized_weights(prepared):
        raise PlanError("The module has no fake-quantised weight to round. Call prepare_quantized with formats first.")
    readers = [reader for reader in weight_readers(prepared) if reader.quantized is not None]
    if not readers:
        _log.warning("No conv or linear has a quantised weight of its own: all keep nearest rounding.")
    found = []
    with torch.no_grad():
        for reader, moment in each_moment(prepared, readers, batches, moments, max_rows, seed):
            weight, grid = value_of(prepared, reader.parameter), grid_of(prepared, reader)
            rows = reader.rows(reader.weight(prepared)).clone()
            rounded = rounding.round(rows, grid, moment)
            nearest = torch.stack([grid.nearest(column, j) for j, column in enumerate(rows.unbind(-1))], dim=-1)
            weight.copy_(rounded.reshape(weight.shape))
            errors = (relative_error(value, rows, moment) for value in (nearest, rounded))
            found.append(LayerRounding(reader.layer, *errors))
    return found


def each_moment(
    module: fx.GraphModule,
    readers: Sequence[WeightReader],
    batches: Sequence[Any] | None,
    moments: Mapping[str, Tensor] | None,
    max_rows: int,
    seed: int,
) -> Iterator[tuple[WeightReader, Tensor]]:
    """Each reader with its second moment: as measured when it is reached, or as given.

    Raises:
        CompressError: for both or neither of `batches` and `moments`. PlanError: if a layer has no moment.
    """
    if (batches is None) == (moments is None):
        raise CompressError("One of the parameters 'batches' and 'moments' must be given, and not both.")
    if moments is None:
        yield from visit_readers(module, batches, readers, max_rows=max_rows, seed=seed, changing=True)
        return
    for reader in readers:
        if reader.parameter not in moments:
            raise PlanError(f"The 'moments' parameter has no moment of {reader.parameter!r}. Collect them anew.")
    for reader in readers:
        yield reader, moments[reader.parameter]


def grid_of(prepared: fx.GraphModule, reader: WeightReader) -> Grid:
    """The values that the fake-quantiser of this reader's weight has, for the rows of its matrix."""
    scale = value_of(prepared, reader.quantized.scale)
    return SymmetricGrid(scale.reshape(reader.map.groups, -1), reader.quantized.largest)


def relative_error(new: Tensor, old: Tensor, moment: Tensor) -> float:
    """Mean squared difference of all outputs as a part of their energy; 0 where there is no energy."""
    energy = float(output_error(old, moment).sum())
    return float(output_error(new.double() - old.double(), moment).sum()) / energy if energy > 0 else 0.0
