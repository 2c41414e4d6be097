"""Where a unit stands in the network, and what its removal saves."""

from collections.abc import Mapping
from typing import ClassVar

import numpy as np

from autolabel.feature import log_size, ratio
from compress.counting import unit_costs
from compress.statistics import Statistics


class StructureFeatures:
    """Position, group, coupling, sizes and savings."""

    name: ClassVar[str] = "structure"
    choice: ClassVar[str] = "removed"
    columns: ClassVar[Mapping[str, str]] = {
        "depth": "position of the unit's first producing layer among all layers, 0 first to 1 last",
        "last_depth": "position of the last layer that reads the unit, 0 to 1",
        "is_head": "1 for an attention head, 0 for a channel",
        "has_batch_norm": "1 if a batch norm scales the unit",
        "log_group_size": "log10 of the number of units in the coupled group",
        "group_share": "units of the group as a part of all removable units",
        "n_producers": "layers that produce the unit (more than one: a residual sum)",
        "n_consumers": "weights that read the unit",
        "n_places": "places where the unit is summed or normalised over",
        "log_fan_in": "log10 of the number of weights that produce the unit",
        "log_fan_out": "log10 of the number of weights that read the unit",
        "producer_kernel": "largest kernel area of the producing layers, 1 for a linear layer",
        "consumer_kernel": "largest kernel area of the reading layers, 1 for a linear layer",
        "log_positions": "log10 of the unit's values per example at one place (pixels, tokens)",
        "log_macs_saved": "log10 of the MACs that removing this unit alone saves",
        "macs_saved_share": "MACs saved as a part of the dense network's",
        "log_bytes_saved": "log10 of the bytes that removing this unit alone saves",
        "bytes_saved_share": "bytes saved as a part of the dense network's",
        "log_macs_per_byte": "log10 of MACs saved per byte saved",
    }

    def compute(self, statistics: Statistics) -> np.ndarray:
        structure, n = statistics.structure, statistics.n_units
        layers = list(dict.fromkeys(layer.weight for layer in structure.traced.layers()))
        place = {weight: i / max(len(layers) - 1, 1) for i, weight in enumerate(layers)}
        first, last = np.full(n, np.inf), np.zeros(n)
        count, fan, kernel = np.zeros((2, n)), np.zeros((2, n)), np.ones((2, n))
        for side, places in enumerate((statistics.producer_places, statistics.consumer_places)):
            for parameter, dim in places:
                shape = tuple(len(rows) for rows in structure.parameters[parameter])
                rows = structure.parameters[parameter][dim]
                rows = rows[rows >= 0]
                units = np.unique(rows)
                count[side, units] += 1
                fan[side] += statistics.total(rows, np.full(len(rows), np.prod(shape) / shape[dim]))
                kernel[side, units] = np.maximum(kernel[side, units], np.prod(shape[2:]))
                depth = place.get(parameter, 0.0)
                first[units] = np.minimum(first[units], depth)
                last[units] = np.maximum(last[units], depth)
        sites = np.zeros(n)
        for site in structure.sites:
            sites[np.unique(site.rows[site.rows >= 0])] += 1
        size = np.zeros(n)
        for rows in statistics.group_rows.values():
            size[rows] = len(rows)
        costs = unit_costs(structure)
        macs, weight_bytes = costs.macs[:n, 0], costs.weight_bytes[:n, 0]
        return np.column_stack([
            np.where(np.isfinite(first), first, 0.0), last, statistics.units.kind[:n] == "head",
            ~np.isnan(statistics.bn_scale), np.log10(size), ratio(size, n), count[0], count[1], sites,
            log_size(fan[0], 1.0), log_size(fan[1], 1.0), kernel[0], kernel[1],
            log_size(statistics.need_activations().positions, 1.0), log_size(macs, 1.0), ratio(macs, costs.dense_macs),
            log_size(weight_bytes, 1.0), ratio(weight_bytes, costs.dense_weight_bytes),
            log_size(macs, 1.0) - log_size(weight_bytes, 1.0),
        ])  # fmt: skip
