"""Channels or heads removed one at a time, the layers that read them making up for each."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from compress.elimination import Reading, eliminate
from compress.errors import CompressError, PlanError
from compress.layer_moments import WeightReader, weight_readers
from compress.optimal_brain_surgeon import remove_columns
from compress.structure import Structure


@dataclass(frozen=True, eq=False)
class StructuredUpdate:
    """The order in which the units of a group go, and what their readers become.

    Attributes:
        order: `(n,)` unit rows, least important first.
        increases: `(n,)` float64, what each removal in this order adds to the squared error of the readers' outputs,
            as a part of these outputs' energy, summed over readers; the scores of the units.
        weights: name of each reader's weight -> it with the first `n_removed` of the order gone: zero for these, and
            updated for those that stay.
    """

    order: np.ndarray
    increases: np.ndarray
    weights: dict[str, Tensor]


def remove_units(
    structure: Structure, units: np.ndarray, moments: Mapping[str, Tensor], n_removed: int, damping: float = 0.01
) -> StructuredUpdate:
    """Remove channels or heads of one coupled group one at a time, the readers' other weights being updated each time.

    The structured score of Optimal Brain Surgeon, with the inverse kept up to date after every removal (Kurtic, Frantar
    and Alistarh 2023, "ZipLM", arXiv:2302.04089). All kernel positions and flattened places of a unit go together, and
    what they have in common with the others' counts. All removals together are the least-squares refit of the readers
    on what stays. The model is not changed.

    Args:
        structure: the model.
        units: `(n,)` unit rows of one group.
        moments: from `collect_layer_moments` of the structure's traced module.
        n_removed: how many of them the returned weights lack.
        damping: added to the diagonal of each moment, as a part of its mean.

    Raises:
        CompressError: for a bad number of units. PlanError: if no conv or linear with a weight of its own, and without
            groups, reads these units, or one of these has no moment.
    """
    if isinstance(n_removed, bool) or not 0 <= n_removed < len(units):
        raise CompressError(
            f"The 'n_removed' parameter of remove_units must be at least 0 and below the {len(units)} units. "
            f"Got {n_removed!r}."
        )
    found = _readers(structure, units)
    missing = [reader.parameter for reader, _ in found if reader.parameter not in moments]
    if missing or not found:
        raise PlanError(
            f"The 'moments' parameter has no moment of {missing[0]!r}. Collect them anew."
            if missing
            else f"No conv or linear that could be updated reads unit {structure.units.ids[units[0]]!r}."
        )
    weights = {reader.parameter: _weight(structure, reader) for reader, _ in found}
    readings = [
        Reading(columns, _array(moments[reader.parameter][0]), _array(_rows(weights[reader.parameter]).T),
                np.zeros(len(columns)), reader.node.name)
        for reader, columns in found
    ]  # fmt: skip
    order, increases = eliminate(readings, units, damping)
    for reader, columns in found:
        weight = weights[reader.parameter]
        gone = torch.from_numpy(np.isin(columns, order[:n_removed])).to(weight.device)
        moment = moments[reader.parameter][0].to(weight.device)
        weights[reader.parameter] = remove_columns(_rows(weight), moment, gone, damping).reshape(weight.shape)
    return StructuredUpdate(order, increases, weights)


def _readers(structure: Structure, units: np.ndarray) -> Sequence[tuple[WeightReader, np.ndarray]]:
    """The layers that read these units, each with the `(n_inputs,)` unit row of every column of its matrix."""
    readers = {reader.node: reader for reader in weight_readers(structure.traced.module)}
    found = []
    for site in structure.sites:
        reader = readers.get(site.node)
        if reader is None or site.argument != 0 or reader.map.groups != 1 or not np.isin(site.rows, units).any():
            continue
        found.append((reader, np.repeat(site.rows, int(np.prod(reader.map.kernel)))))
    return found


def _weight(structure: Structure, reader: WeightReader) -> Tensor:
    return structure.traced.module.get_parameter(reader.parameter).detach()


def _rows(weight: Tensor) -> Tensor:
    return weight.flatten(1)


def _array(values: Tensor) -> np.ndarray:
    return values.double().cpu().numpy()
