"""How far each method stays behind the best of every board."""

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

DENSE = "dense"


def is_derived(method: str) -> bool:
    """Whether it takes one of the plans that other methods found: it is compared with those, and not they with it."""
    return method.startswith("both/") or method.endswith("/finals")


def summarize(rows: Sequence[Mapping[str, Any]]) -> dict[str, Any]:
    """Boards, each with every method's mean and spread, and what they say of each method overall.

    Of a method on a board: its mean over seeds; whether it lies within one standard deviation (of the best method over
    its seeds; boards of one seed have none and do not count) of the best method's mean, which is chosen with hindsight;
    and its rank, one more than the methods that are better. Methods that are derived from others (`is_derived`) are
    ranked so, and are nobody's rivals.

    Args:
        rows: of `no_regret.csv`; numbers may be text.

    Returns:
        `boards` and `overall`. The `competence` of a board is how far it lies from what the labeler learned from, 1
        being the limit; None where no row tells it.
    """
    boards: dict[str, dict[str, list[float]]] = {}
    sign: dict[str, float] = {}
    costs: dict[tuple[str, str], list[float]] = {}
    competence: dict[str, list[float]] = {}
    for row in rows:
        if row.get("competence"):
            competence.setdefault(row["board"], []).append(float(row["competence"]))
        boards.setdefault(row["board"], {}).setdefault(row["method"], []).append(float(row["metric"]))
        sign[row["board"]] = 1.0 if str(row["higher_is_better"]) == "True" else -1.0
        costs.setdefault((row["board"], row["method"]), []).append(float(row["label_cost_forward_macs"]))
    table: list[dict[str, Any]] = []
    for board, found in boards.items():
        methods = [name for name in found if name != DENSE]
        means = np.array([np.mean(found[name]) for name in methods])
        spreads = [float(np.std(found[name], ddof=1)) if len(found[name]) > 1 else None for name in methods]
        rivals = np.array([not is_derived(name) for name in methods])
        if not rivals.any():
            rivals[:] = True
        worth = sign[board] * means.round(6)
        best = int(np.argmax(np.where(rivals, worth, -np.inf)))
        ranks = 1 + (worth[rivals] > worth[:, None]).sum(axis=1)
        table.append({
            "board": board, "seeds": len(found[methods[best]]), "best": methods[best], "spread": spreads[best],
            "dense": float(np.mean(found[DENSE])) if DENSE in found else None,
            "mean": dict(zip(methods, means.tolist(), strict=True)),
            "behind": dict(zip(methods, (sign[board] * (means[best] - means)).tolist(), strict=True)),
            "rank": dict(zip(methods, ranks.tolist(), strict=True)),
            "competence": float(np.mean(competence[board])) if board in competence else None,
        })  # fmt: skip
    names = list(dict.fromkeys(name for board in table for name in board["rank"]))
    overall = {}
    for name in names:
        own = [board for board in table if name in board["rank"]]
        within = [b["behind"][name] <= b["spread"] for b in own if b["spread"] is not None]
        overall[name] = {
            "boards": len(own),
            "mean_rank": float(np.mean([b["rank"][name] for b in own])),
            "mean_rank_interval": mean_interval([b["rank"][name] for b in own]),
            "wins": float(np.mean([b["rank"][name] == 1 for b in own])),
            "within_one_deviation": float(np.mean(within)) if within else None,
            "mean_behind": float(np.mean([b["behind"][name] for b in own])),
            "worst_behind": float(np.max([b["behind"][name] for b in own])),
            "label_cost_forward_macs": float(np.median([np.mean(costs[b["board"], name]) for b in own])),
        }
    return {"boards": table, "overall": dict(sorted(overall.items(), key=lambda item: item[1]["mean_rank"]))}


def compare_pair(boards: Sequence[Mapping[str, Any]], first: str, second: str) -> dict[str, Any]:
    """By how much `first` is ahead of `second` on the boards of `summarize` that have both.

    Returns:
        `boards`, `ahead` and `alike` (numbers of boards), and the means of what `second` is worse by, `points` and
        `ranks`, each with its 95 % interval, `points_interval` and `ranks_interval`.
    """
    both = [board for board in boards if {first, second} <= board["rank"].keys()]
    points, ranks = ([float(board[what][second] - board[what][first]) for board in both] for what in ("behind", "rank"))
    return {
        "boards": len(both), "ahead": sum(p > 0 for p in points), "alike": sum(p == 0 for p in points),
        "points": float(np.mean(points)), "points_interval": mean_interval(points),
        "ranks": float(np.mean(ranks)), "ranks_interval": mean_interval(ranks),
    }  # fmt: skip


def mean_interval(values: Sequence[float], resamples: int = 2000) -> tuple[float, float]:
    """95 % bootstrap interval of a mean over boards."""
    drawn = np.random.default_rng(0).integers(0, len(values), (resamples, len(values)))
    low, high = np.quantile(np.asarray(values, dtype=float)[drawn].mean(axis=1), [0.025, 0.975])
    return float(low), float(high)
