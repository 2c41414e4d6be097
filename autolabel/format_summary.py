"""What is known of plans that store layers in few bits, in numbers that need no forward pass."""

import copy
from collections.abc import Sequence
from dataclasses import replace

import numpy as np
import torch
from torch import Tensor

from autolabel.choice_bench import ChoiceBench
from autolabel.feature import log_size, ratio
from autolabel.format_sampling import bits_by_row, guided_bits
from autolabel.plan_summary import PlanSummary
from compress.costs import CostTable
from compress.errors import CompressError
from compress.quantizer import FLOAT_BITS
from compress.structure import Structure
from compress.task import Batch, Task

_FLOOR = 1e-6
# Whose share of the weights is a number of plans, whatever is offered.
_FEWEST = 2
# A number of whole plans that only plans with bits have.
FORMAT_COLUMN = "mean_bits"
# The error in nats that the refit leaves, and what rounding adds to it: a formula for such plans.
FORMATTED_NATS = "log_refit_and_format_nats"


class FormatSummarizer:
    """Adds to summaries of plans what their bits do; no forward pass per plan.

    Per group, over the layers that make or read it: the mean and the least bits, the squared error that rounding leaves
    in what stays of their weights, as a part of its energy and, times half the diagonal of the empirical Fisher matrix,
    in nats. Per plan the same over all layers, and those nats together with those that the refit leaves. Eight bits are
    taken as they are, also where `reduce_range` rounds to seven.

    Args:
        structure, costs: of the network.
        task, batches: see `ChoiceBench.fisher`.
        bench: of the network; its choices are numbers of bits.

    Attributes:
        widths: numbers of bits that are offered.
        layers: ids of the layer units, `n_layers`.
        sensitivity: `(n_layers,)` how much an error of the same part of each weight's variance hurts.
        guide: `(n_layers,)` see `guided_bits`.
    """

    def __init__(
        self, structure: Structure, costs: CostTable, task: Task, batches: Sequence[Batch], bench: ChoiceBench
    ) -> None:  # fmt: skip
        self._units, self._costs = structure.units, costs
        fisher = bench.fisher(batches)
        self._tried = [choice.bits for choice in bench.choices]
        self.widths = tuple(self._tried)
        self.layers = bench.layers
        weights = {layer.name: layer.weight for layer in structure.traced.layers()}
        groups = structure.units.group.astype(str)
        self._groups: dict[str, list[int]] = {}
        self._places: list[list[np.ndarray]] = []
        self._tables: list[dict[str, Tensor]] = []
        for number, name in enumerate(self.layers):
            rows = structure.parameters[weights[name]]
            dims = [dim for dim, own in enumerate(rows) if (own >= 0).any()]
            self._places.append([rows[dim] for dim in dims])
            for group in {str(groups[row]) for dim in dims for row in rows[dim][rows[dim] >= 0]}:
                self._groups.setdefault(group, []).append(number)
            dense, errors = bench.dense_weight(name), [bench.squared_error(name, i) for i in range(len(self._tried))]
            self._tables.append({
                "nats": torch.stack([_over(error * fisher[name], dims) for error in errors]),
                "error": torch.stack([_over(error, dims) for error in errors]),
                "energy": _over(dense.square(), dims)[None],
                "weights": _over(torch.ones_like(dense), dims)[None],
            })  # fmt: skip
        curvature = np.array([float(fisher[name].mean()) for name in self.layers])
        ranges = np.array([float(bench.dense_weight(name).square().mean()) for name in self.layers])
        self.sensitivity = curvature * ranges
        self.guide = guided_bits(self.sensitivity)

    def offering(self, widths: Sequence[int]) -> "FormatSummarizer":
        """The same of the same network, with only these of the numbers of bits on offer.

        Raises:
            CompressError: for one that the bench does not have.
        """
        unknown = sorted(set(widths) - set(self._tried))
        if unknown:
            raise CompressError(f"The 'widths' parameter must be out of {self._tried}. Got {unknown[0]}.")
        found = copy.copy(self)
        found.widths = tuple(widths)
        return found

    def rows(self, bits: np.ndarray) -> np.ndarray:
        """Bits as `CostTable.total` takes them, see `bits_by_row`."""
        return bits_by_row(self._costs, self._units, bits)

    def extend(self, summary: PlanSummary, removed: np.ndarray, bits: np.ndarray) -> PlanSummary:
        """The summary of the same plans with the columns of their bits.

        Args:
            summary: of the plans, see `PlanSummarizer`.
            removed: `(n_plans, n_units)` bool.
            bits: `(n_plans, n_layers)` of the layer units, in their order.

        Raises:
            CompressError: for a number of bits that the bench does not offer.
        """
        unknown = sorted(set(np.unique(bits).tolist()) - set(self._tried))
        if unknown:
            raise CompressError(f"The 'bits' parameter must be out of {self._tried}. Got {unknown[0]}.")
        found = self._of_layers(removed, bits)
        error = ratio(found["error"], found["energy"])
        columns = {"bits": [], "least_bits": [], "log_format_nats": [], "format_error": []}  # type: dict[str, list]
        for group in summary.groups:
            own = self._groups.get(group, [])
            if not own:
                values = [np.full(len(bits), value) for value in (FLOAT_BITS, FLOAT_BITS, np.log10(_FLOOR), 0.0)]
            else:
                values = [
                    _mean(bits[:, own], found["weights"][:, own]), bits[:, own].min(axis=1),
                    log_size(found["nats"][:, own].sum(axis=1), _FLOOR), error[:, own].mean(axis=1),
                ]  # fmt: skip
            for column, value in zip(columns.values(), values, strict=True):
                column.append(value)
        nats = found["nats"].sum(axis=1)
        refit = summary.plan_values[:, summary.plan_names.index("refitted_loss_sum")].astype(np.float64)
        second_order = summary.plan_values[:, summary.plan_names.index("log_second_order_nats")].astype(np.float64)
        whole = {
            FORMAT_COLUMN: _mean(bits, found["weights"]),
            "least_bits": bits.min(axis=1),
            "log_format_nats": log_size(nats, _FLOOR),
            "log_format_nats_largest": log_size(found["nats"].max(axis=1), _FLOOR),
            "format_error": error.mean(axis=1),
            "format_kept_variance": np.log(np.clip(1 - error, 1e-3, 1)).sum(axis=1),
            "fewest_bits_share": _mean(bits <= _FEWEST, found["weights"]),
            "log_kept_weights": np.log10(found["weights"].sum(axis=1) / self._all_weights),
            FORMATTED_NATS: log_size(10**refit + nats, _FLOOR),
            "log_second_order_and_format_nats": log_size(10**second_order + nats, _FLOOR),
        }
        stacked = np.stack([np.stack(column, axis=1) for column in columns.values()], axis=2)
        return replace(
            summary, names=(*summary.names, *columns),
            values=np.concatenate([summary.values, stacked], axis=2).astype(np.float32),
            plan_names=(*summary.plan_names, *whole),
            plan_values=np.concatenate([summary.plan_values, np.stack(list(whole.values()), axis=1)], axis=1).astype(
                np.float32
            ),
        )  # fmt: skip

    def layer_nats(self) -> np.ndarray:
        """`(n_widths, n_layers)` float64: what each of the offered bits adds to the loss while nothing is removed, see
        the class."""
        bits = np.repeat(np.array(self.widths)[:, None], len(self.layers), axis=1)
        return self._of_layers(np.zeros((len(bits), len(self._units)), dtype=bool), bits)["nats"]

    @property
    def _all_weights(self) -> float:
        return float(sum(table["weights"].sum() for table in self._tables))

    def _of_layers(self, removed: np.ndarray, bits: np.ndarray) -> dict[str, np.ndarray]:
        """Name -> `(n_plans, n_layers)` float64 sums over the weights that stay."""
        kept = torch.from_numpy(~np.asarray(removed, dtype=bool)).double()
        found = {name: np.empty(bits.shape) for name in ("nats", "error", "energy", "weights")}
        for number, (table, places) in enumerate(zip(self._tables, self._places, strict=True)):
            stays = [torch.where(torch.from_numpy(rows) >= 0, kept[:, np.maximum(rows, 0)], 1.0) for rows in places]
            taken = [self._tried.index(width) for width in bits[:, number].tolist()]
            for name, values in table.items():
                left = values[None]
                for own in reversed(stays):
                    # A product of matrices over the last dimension first: `(n_plans, n_widths, ...)`.
                    over = "pw...i,pi->pw..." if len(left) > 1 else "xw...i,pi->pw..."
                    left = torch.einsum(over, left, own)
                left = left.expand(len(bits), -1)
                picked = left[:, 0] if left.shape[1] == 1 else left[torch.arange(len(bits)), torch.tensor(taken)]
                found[name][:, number] = picked.numpy()
        return found


def _over(values: Tensor, dims: Sequence[int]) -> Tensor:
    """Sums over all other dimensions, where masks are: on the CPU."""
    others = [dim for dim in range(values.ndim) if dim not in dims]
    return (values.sum(dim=others) if others else values).cpu()


def _mean(values: np.ndarray, weights: np.ndarray) -> np.ndarray:
    """Weighted over the last axis; plain where nothing weighs."""
    weights = np.maximum(weights, 1e-9)
    return (values * weights).sum(axis=-1) / weights.sum(axis=-1)
