"""A board: plans of one network and one size, what is known of them, and what became of them."""

from collections.abc import Sequence
from dataclasses import dataclass, field

import numpy as np
from scipy.special import ndtri
from scipy.stats import rankdata

from autolabel.label_bank import LabelBank
from autolabel.plan_summary import PlanSummary
from compress.errors import CompressError

# Beside the moments: labels of all that come after the repair.
AFTER_REPAIR = "after_repair"
_REPAIRED = ("refitted", "briefly_tuned", "finetuned")
# How the numbers of a group become numbers of a plan.
_POOLS = ("min", "mean", "max", "spread", "first", "last", "by_macs", "by_sensitivity")
_FIXED = ("log_units", "first_layer", "last_layer", "n_makers", "n_readers", "is_head", "macs_share", "bytes_share",
          "sensitivity_share", "log1p_group_nats")  # fmt: skip
_WHOLE = ("log_dense_macs", "log_dense_bytes", "n_groups")


@dataclass(frozen=True, eq=False)
class PlanBoard:
    """Plans of one network and one size.

    Attributes:
        network, family, task: what the network is called, and the families that it and its data belong to.
        summary: of the plans.
        loss: moment -> `(n_plans,)` loss after it, on the data that labelers learn from.
        judged_loss, judged_metric: the same on the data that decide nothing.
        dense_loss: of the network itself, on the data of `loss`.
        macs: moment -> `(n_plans,)` MACs that measuring it took.
        judged_dense_loss: of the network itself, on the data of `judged_loss`.
    """

    network: str
    family: str
    task: str
    summary: PlanSummary
    loss: dict[str, np.ndarray]
    judged_loss: dict[str, np.ndarray]
    judged_metric: dict[str, np.ndarray]
    dense_loss: float
    macs: dict[str, np.ndarray] = field(default_factory=dict)
    judged_dense_loss: float = float("nan")

    def target(self, moment: str) -> np.ndarray:
        """`(n_plans,)` normal scores of the ranks of the loss: 0 in the middle, higher is worse.

        Args:
            moment: a key of `loss`; or `AFTER_REPAIR`, the mean of those after the repair, which is less noisy than
                each of them.
        """
        if moment == AFTER_REPAIR:
            return np.mean([normal_scores(self.loss[own]) for own in _REPAIRED if own in self.loss], axis=0)
        return normal_scores(self.loss[moment])

    def judged_target(self, moment: str) -> np.ndarray:
        """The same of the loss on the data that decide nothing."""
        return normal_scores(self.judged_loss[moment])


def boards_of(bank: LabelBank, moments: tuple[str, ...]) -> list[PlanBoard]:
    """Every network of a bank as a board; one with fewer than five plans is left out."""
    found = []
    for i, name in enumerate(bank.networks["name"].tolist()):
        rows = bank.rows("plans", i)
        if len(rows["network"]) < 5:
            continue
        found.append(
            PlanBoard(
                name,
                str(bank.networks["family"][i]),
                str(bank.networks["task"][i]),
                bank.summary(i),
                {moment: rows[f"loss_{moment}_validation"] for moment in moments},
                {moment: rows[f"loss_{moment}_test"] for moment in moments},
                {moment: rows[f"metric_{moment}_test"] for moment in moments},
                float(bank.networks["loss_validation"][i]),
                {moment: rows[f"macs_{moment}"] for moment in moments},
                float(bank.networks["loss_test"][i]),
            )
        )
    return found


def normal_scores(values: np.ndarray) -> np.ndarray:
    """Blom's normal scores of the ranks: what a sorted normal sample would be on average."""
    values = np.asarray(values, dtype=np.float64)
    return ndtri((rankdata(values) - 0.375) / (len(values) + 0.25))


def plan_matrix(summary: PlanSummary, reference: PlanSummary | None = None) -> tuple[np.ndarray, tuple[str, ...]]:
    """`(n_plans, n_features)` float64 with names: numbers of whole plans, pooled over groups.

    Each number comes as it is, standardised among the plans of the board, and as a rank among them: what matters in
    every network is how a plan differs from other plans of its size.

    Args:
        summary: of the plans.
        reference: of the plans that they are compared with; None for one another.

    Raises:
        CompressError: for fewer than two plans to compare with.
    """
    n = len((reference or summary).plan_values)
    if n < 2:
        raise CompressError("Plans are compared with one another: at least two are needed. Got one.")
    own, names = _pooled(summary)
    others = own if reference is None else _pooled(reference)[0]
    deviation = others.std(axis=0)
    standard = np.where(deviation > 1e-9, (own - others.mean(axis=0)) / np.maximum(deviation, 1e-9), 0.0)
    context = _fixed_values(summary)
    context_names = [f"network_{name}_{pool}" for pool in ("mean", "spread") for name in _FIXED]
    matrix = np.concatenate(
        [own, standard, _ranks(own, others), np.broadcast_to(context, (len(own), len(context)))], axis=1
    )
    return matrix, (*names, *(f"z_{x}" for x in names), *(f"rank_{x}" for x in names), *context_names)


def select_columns(matrix: np.ndarray, names: Sequence[str], wanted: Sequence[str]) -> np.ndarray:
    """Columns by name, in the order wanted: a labeler reads what it learned from, whatever else is known by now.

    Raises:
        CompressError: if one is missing.
    """
    if tuple(names) == tuple(wanted):
        return matrix
    place = {name: i for i, name in enumerate(names)}
    missing = [name for name in wanted if name not in place]
    if missing:
        raise CompressError(
            f"This plan labeler was fitted on other columns: {missing[0]!r} is missing. Summarise plans with the same "
            "criteria."
        )
    return matrix[:, [place[name] for name in wanted]]


def _pooled(summary: PlanSummary) -> tuple[np.ndarray, list[str]]:
    """`(n_plans, n_numbers)` and their names, each plan by itself."""
    moving = [i for i, name in enumerate(summary.names) if name not in _FIXED]
    weights = {name: summary.values[:, :, summary.names.index(f"{name}_share")] for name in ("macs", "sensitivity")}
    pooled = _pool(summary.values[:, :, moving].astype(np.float64), weights)
    names = [f"{summary.names[i]}_{pool}" for pool in _POOLS for i in moving]
    return np.concatenate([pooled, summary.plan_values.astype(np.float64)], axis=1), [*names, *summary.plan_names]


def network_vector(summary: PlanSummary) -> np.ndarray:
    """What is known of the network itself, `(n_numbers,)` float64: its groups, and how large it is."""
    whole = [summary.plan_names.index(name) for name in _WHOLE]
    return np.concatenate([_fixed_values(summary), summary.plan_values[0, whole].astype(np.float64)])


def _fixed_values(summary: PlanSummary) -> np.ndarray:
    """What no plan changes, pooled over groups."""
    fixed = [summary.names.index(name) for name in _FIXED]
    values = summary.values[0][:, fixed].astype(np.float64)
    return np.concatenate([values.mean(axis=0), values.std(axis=0)])


def _ranks(values: np.ndarray, others: np.ndarray) -> np.ndarray:
    """Fraction of the others below each value, ties counting half, minus one half: in [-0.5, 0.5]."""
    found = np.empty_like(values)
    for column, known in enumerate(np.sort(others, axis=0).T):
        below = np.searchsorted(known, values[:, column], side="left")
        up_to = np.searchsorted(known, values[:, column], side="right")
        found[:, column] = (below + up_to) / (2 * len(known)) - 0.5
    return found


def _pool(values: np.ndarray, weights: dict[str, np.ndarray]) -> np.ndarray:
    """`(n_plans, n_pools * n_columns)` from `(n_plans, n_groups, n_columns)`, pool by pool."""
    found = [values.min(axis=1), values.mean(axis=1), values.max(axis=1), values.std(axis=1), values[:, 0],
             values[:, -1]]  # fmt: skip
    for share in weights.values():
        share = share / np.maximum(share.sum(axis=1, keepdims=True), 1e-12)
        found.append((values * share[:, :, None]).sum(axis=1))
    return np.concatenate(found, axis=1)
