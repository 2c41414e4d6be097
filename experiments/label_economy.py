"""What labels are worth: the plan chosen after measuring a few favourites, against the plan that all labels choose."""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from autolabel.plan_board import PlanBoard

COLUMNS = ("family", "task", "network", "predictor", "strategy", "measured", "cost_share", "metric", "full_metric")
MEASURED = (1, 2, 3, 5, 8, 15, 30)
# What is measured of the favourites before one is chosen.
STRATEGIES = ("briefly_tuned", "finetuned")


@dataclass(frozen=True)
class EconomyRow:
    """One network, and so many plans measured on it.

    Attributes:
        predictor: whose favourites are measured.
        strategy: the moment whose loss is measured.
        measured: number of plans; a single favourite needs no measurement.
        cost_share: MACs of these labels as a part of those of fine-tuning all plans of the board.
        metric: of the chosen plan after fine-tuning, on examples that decide nothing.
        full_metric: the same of the plan that fine-tuning all plans chooses.
    """

    family: str
    task: str
    network: str
    predictor: str
    strategy: str
    measured: int
    cost_share: float
    metric: float
    full_metric: float


def economy(board: PlanBoard, predictor: str, score: np.ndarray, numbers: Sequence[int] = MEASURED) -> list[EconomyRow]:
    """Rows of one board for a predictor's `(n_plans,)` scores, lower being better."""
    order = np.argsort(score, kind="stable")
    truth, metric = board.loss["finetuned"], board.judged_metric["finetuned"]
    total = float(board.macs["finetuned"].sum())
    full = float(metric[int(np.argmin(truth))])
    rows = []
    for strategy in STRATEGIES:
        for number in sorted({min(n, len(order)) for n in numbers}):
            best = order[:number]
            chosen = best[int(np.argmin(board.loss[strategy][best]))]
            cost = 0.0 if number == 1 else float(board.macs[strategy][best].sum()) / total
            rows.append(EconomyRow(board.family, board.task, board.network, predictor, strategy, number, cost,
                                   float(metric[chosen]), full))  # fmt: skip
    return rows


def summarize_economy(rows: Sequence[EconomyRow]) -> list[dict[str, float | str]]:
    """One line for each predictor, strategy and number: mean cost, mean share of the full labels' metric, quantiles."""
    found = []
    for key in dict.fromkeys((row.predictor, row.strategy, row.measured) for row in rows):
        own = [row for row in rows if (row.predictor, row.strategy, row.measured) == key]
        shares = np.array([row.metric / max(row.full_metric, 1e-9) for row in own])
        found.append({
            "predictor": key[0], "strategy": key[1], "measured": key[2], "networks": len(own),
            "cost_share": float(np.mean([row.cost_share for row in own])), "mean_share": float(shares.mean()),
            "worst_tenth_share": float(np.quantile(shares, 0.1)),
            "at_least_99": float((shares >= 0.99).mean()),
        })  # fmt: skip
    return found
