"""What a plan keeps of every group, in numbers that need no forward pass: the features of plan labels."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace

import numpy as np

from autolabel.feature import log_size
from autolabel.reader_errors import ERRORS, REMEDIES, ReaderErrors
from autolabel.signal_paths import SignalPaths
from compress.costs import CostTable
from compress.criterion import Criterion
from compress.elimination import readings
from compress.errors import CompressError
from compress.output_sensitivity import OutputSensitivity
from compress.statistics import Statistics

# Raised with every change of what the columns mean: stored summaries of another version are made anew.
FEATURES_VERSION = 4


@dataclass(frozen=True, eq=False)
class PlanSummary:
    """Numbers of several plans on one network.

    Attributes:
        groups: names of the coupled groups, in graph order, `n_groups`.
        names: `n_columns` names of what is known of a group under a plan.
        values: `(n_plans, n_groups, n_columns)` float32, finite.
        plan_names: `n_plan_columns` names of what is known of a plan as a whole.
        plan_values: `(n_plans, n_plan_columns)` float32, finite.
    """

    groups: tuple[str, ...]
    names: tuple[str, ...]
    values: np.ndarray
    plan_names: tuple[str, ...]
    plan_values: np.ndarray

    def __post_init__(self) -> None:
        n_plans = len(self.plan_values)
        for name, shape in (
            ("values", (n_plans, len(self.groups), len(self.names))),
            ("plan_values", (n_plans, len(self.plan_names))),
        ):
            if getattr(self, name).shape != shape:
                raise CompressError(f"PlanSummary.{name} must have shape {shape}. Got {getattr(self, name).shape}.")
            if not np.isfinite(getattr(self, name)).all():
                raise CompressError(f"PlanSummary.{name} must be finite.")


def join_summaries(first: PlanSummary, second: PlanSummary) -> PlanSummary:
    """Plans of one network, one after another.

    Raises:
        CompressError: for summaries of other groups or columns.
    """
    for name in ("groups", "names", "plan_names"):
        if getattr(first, name) != getattr(second, name):
            raise CompressError(f"Only summaries of the same {name} can be joined.")
    return replace(
        first,
        values=np.concatenate([first.values, second.values]),
        plan_values=np.concatenate([first.plan_values, second.plan_values]),
    )


class PlanSummarizer:
    """Summarises plans of one network; what does not depend on the plan is computed once.

    Per group: its size, place, shares of cost and of sensitivity; the fraction kept; of every criterion the share that
    stays, as it is and between the worst and the best share that so many units could keep; the damage in nats that the
    formulas add up to; and of the layers that read the group the error left if the units that go are silenced, replaced
    by their mean, or made up for by least squares (as parts of these layers' variance, and carried to the end: as parts
    of the variance of the network's outputs, and in nats), and the effective rank of what stays (Roy and Vetterli 2007,
    "The effective rank"). Errors of a whole plan are added up over reading layers, and followed through the graph as
    parts of what each layer passes on (`SignalPaths`).

    Args:
        statistics: of the model, with activations, gradients and moments.
        sensitivity: of the same model.
        costs: of the model.
        criteria: name -> criterion.
        ridge: of the least squares, as a part of the mean variance.
    """

    def __init__(
        self, statistics: Statistics, sensitivity: OutputSensitivity, costs: CostTable,
        criteria: Mapping[str, Criterion], ridge: float = 1e-3,
    ) -> None:  # fmt: skip
        self.statistics, self.costs, self.ridge = statistics, costs, ridge
        self.forward_macs = sensitivity.forward_macs
        self.n = statistics.n_units
        self.rows = list(statistics.group_rows.values())
        self.groups = tuple(statistics.group_rows)
        self.scores = {name: np.asarray(c.score(statistics), dtype=np.float64) for name, c in criteria.items()}
        gates = statistics.need_gradients().astype(np.float64)
        self.nats = {
            "fisher": 0.5 * (gates**2).mean(axis=0),
            "second_order": -gates.mean(axis=0) + 0.5 * (gates**2).mean(axis=0),
        }
        places = readings(statistics)
        self.readers = [ReaderErrors(reading, sensitivity, self.n, ridge) for reading in places]
        self.calls = [reading.call for reading in places]
        self.paths = SignalPaths(statistics.structure, sensitivity.variances)
        self.fixed = self._fixed()
        self.expect(self.scores)

    def expect(self, scores: Mapping[str, np.ndarray]) -> None:
        """Be quick about plans that keep the best units of every group by one of these `(n_removable,)` scores."""
        for reader in self.readers:
            for values in scores.values():
                reader.expect(values)

    def summarize(self, removed: np.ndarray) -> PlanSummary:
        """The summary of `(n_plans, n_units)` bool masks."""
        removed = np.asarray(removed, dtype=bool)
        kept = ~removed[:, : self.n]
        columns: dict[str, np.ndarray] = {}
        for name, values in self.fixed.items():
            columns[name] = np.broadcast_to(values, (len(kept), len(self.rows)))
        errors = [reader.errors(kept) for reader in self.readers]
        columns |= self._counts(kept) | self._shares(kept) | self._damages(kept) | self._errors(errors, len(kept))
        plan = self._whole(removed, columns) | self._removed_shares(kept) | self._sums(errors, len(kept))
        return PlanSummary(
            self.groups,
            tuple(columns),
            np.stack([np.asarray(c, dtype=np.float64) for c in columns.values()], axis=2).astype(np.float32),
            tuple(plan),
            np.stack(list(plan.values()), axis=1).astype(np.float32),
        )

    def _by_group(self, values: np.ndarray) -> np.ndarray:
        """`(..., n_groups)` sums over the units of each group."""
        return np.stack([values[..., rows].sum(axis=-1) for rows in self.rows], axis=-1)

    def _fixed(self) -> dict[str, np.ndarray]:
        """Name -> `(n_groups,)` of what no plan changes."""
        statistics, costs = self.statistics, self.costs
        sizes = np.array([len(rows) for rows in self.rows], dtype=np.float64)
        alone = np.zeros((2, len(self.rows)))
        for i, rows in enumerate(self.rows):
            mask = np.zeros(len(statistics.units), dtype=bool)
            mask[rows] = True
            alone[:, i] = costs.total(mask)
        weights = list(dict.fromkeys(layer.weight for layer in statistics.structure.traced.layers()))
        place = {weight: i / max(len(weights) - 1, 1) for i, weight in enumerate(weights)}
        makers, users = np.zeros(self.n), np.zeros(self.n)
        first, last = np.full(self.n, 1.0), np.zeros(self.n)
        for count, places in ((makers, statistics.producer_places), (users, statistics.consumer_places)):
            for parameter, dim in places:
                rows = statistics.structure.parameters[parameter][dim]
                rows = np.unique(rows[(rows >= 0) & (rows < self.n)])
                count[rows] += 1
                first[rows] = np.minimum(first[rows], place.get(parameter, 1.0))
                last[rows] = np.maximum(last[rows], place.get(parameter, 0.0))
        nats = self._by_group(np.maximum(self.nats["fisher"], 0.0))
        mean = {name: self._by_group(v) / sizes for name, v in (("m", makers), ("u", users), ("f", first), ("l", last))}
        return {
            "log_units": np.log10(sizes),
            "first_layer": mean["f"],
            "last_layer": mean["l"],
            "n_makers": mean["m"],
            "n_readers": mean["u"],
            "is_head": np.array([statistics.units.kind[rows[0]] == "head" for rows in self.rows], dtype=np.float64),
            "macs_share": 1.0 - alone[0] / costs.dense_macs,
            "bytes_share": 1.0 - alone[1] / costs.dense_weight_bytes,
            "sensitivity_share": nats / max(float(nats.sum()), 1e-30),
            "log1p_group_nats": np.log1p(nats),
        }

    def _counts(self, kept: np.ndarray) -> dict[str, np.ndarray]:
        left = self._by_group(kept.astype(np.float64))
        total = np.array([len(rows) for rows in self.rows], dtype=np.float64)
        return {"kept": left / total, "log_kept_units": np.log10(left), "log_kept": np.log10(left / total)}

    def _shares(self, kept: np.ndarray) -> dict[str, np.ndarray]:
        """Retained share of every criterion, and where it lies between the worst and the best choice of so many."""
        columns = {}
        left = self._by_group(kept.astype(np.int64))
        for name, score in self.scores.items():
            score = np.maximum(score, 0.0)
            share, place = np.ones(left.shape), np.ones(left.shape)
            for g, rows in enumerate(self.rows):
                own = np.sort(score[rows])
                total = max(float(own.sum()), 1e-30)
                lowest = np.concatenate([[0.0], np.cumsum(own)])[left[:, g]] / total
                highest = np.concatenate([[0.0], np.cumsum(own[::-1])])[left[:, g]] / total
                share[:, g] = (kept[:, rows] * score[rows]).sum(axis=1) / total if own.sum() > 0 else 1.0
                gap = highest - lowest
                place[:, g] = np.where(gap > 1e-9, (share[:, g] - lowest) / np.maximum(gap, 1e-9), 1.0)
            columns[f"{name}_share"] = share
            columns[f"{name}_place"] = place
        return columns

    def _damages(self, kept: np.ndarray) -> dict[str, np.ndarray]:
        """Damage in nats that the formulas add up to over what goes."""
        return {f"{name}_nats": self._by_group(~kept * values) for name, values in self.nats.items()}

    def _errors(self, errors: Sequence[Mapping[str, np.ndarray]], n_plans: int) -> dict[str, np.ndarray]:
        """What the readers of each group see of what goes; the mean over its readers."""
        total = {name: np.zeros((n_plans, len(self.rows))) for name in ReaderErrors.NAMES}
        count = np.zeros(len(self.rows))
        of_unit = np.full(self.n, -1)
        for g, rows in enumerate(self.rows):
            of_unit[rows] = g
        for reader, found in zip(self.readers, errors, strict=True):
            groups = np.unique(of_unit[reader.units])
            groups = groups[groups >= 0]
            count[groups] += 1
            for name, values in found.items():
                total[name][:, groups] += values[:, None]
        # A group that no linear layer reads has no error and loses no rank.
        mean = {name: np.where(count > 0, values / np.maximum(count, 1), float(name in ("effective_rank", "rank_kept")))
                for name, values in total.items()}  # fmt: skip
        for remedy in REMEDIES:
            for what in ("output", "loss"):
                mean[f"{remedy}_{what}"] = log_size(np.maximum(mean[f"{remedy}_{what}"], 0.0), 1e-6)
        return mean

    def _sums(self, errors: Sequence[Mapping[str, np.ndarray]], n_plans: int) -> dict[str, np.ndarray]:
        """Errors of whole plans, added up and along the graph; each reader counts once, whatever it reads."""
        found: dict[str, np.ndarray] = {}
        none = np.zeros((1, n_plans))
        for remedy in REMEDIES:
            of = {what: np.stack([*none, *(e[f"{remedy}_{what}"] for e in errors)]) for what in ERRORS}
            found[f"{remedy}_kept_variance"] = np.log(np.clip(1.0 - of["error"], 1e-3, 1.0)).sum(axis=0)
            found[f"{remedy}_output_sum"] = log_size(np.maximum(of["output"].sum(axis=0), 0.0), 1e-6)
            found[f"{remedy}_output_largest"] = log_size(np.maximum(of["output"].max(axis=0), 0.0), 1e-6)
            found[f"{remedy}_output_capped"] = np.log1p(np.maximum(of["output"], 0.0)).sum(axis=0)
            found[f"{remedy}_loss_sum"] = log_size(np.maximum(of["loss"].sum(axis=0), 0.0), 1e-6)
        for what in ERRORS:
            parts = {call: e[f"refitted_{what}"] / reader.whole(what)
                     for call, reader, e in zip(self.calls, self.readers, errors, strict=True)}  # fmt: skip
            found[f"path_{what}"] = self.paths.lost(parts, n_plans)
        return found

    def _removed_shares(self, kept: np.ndarray) -> dict[str, np.ndarray]:
        """Share of every criterion, over all groups together, that goes."""
        found = {}
        for name, score in self.scores.items():
            score = np.maximum(score, 0.0)
            found[f"log_removed_{name}"] = np.log(np.maximum(~kept @ score / max(float(score.sum()), 1e-30), 1e-9))
        return found

    def _whole(self, removed: np.ndarray, columns: Mapping[str, np.ndarray]) -> dict[str, np.ndarray]:
        costs = np.array([self.costs.total(mask) for mask in removed])
        plan = {
            "macs": costs[:, 0] / self.costs.dense_macs,
            "weight_bytes": costs[:, 1] / self.costs.dense_weight_bytes,
            "log_dense_macs": np.full(len(removed), np.log10(self.costs.dense_macs)),
            "log_dense_bytes": np.full(len(removed), np.log10(self.costs.dense_weight_bytes)),
            "n_groups": np.full(len(removed), float(len(self.rows))),
        }
        for name in ("fisher_nats", "second_order_nats"):
            plan[f"log_{name}"] = log_size(np.maximum(columns[name].sum(axis=1), 0.0), 1e-6)
        return plan
