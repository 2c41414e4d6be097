"""Predicted against realised damage of whole plans, on networks whose family and task the prediction never saw."""

from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
from scipy.stats import spearmanr

from autolabel.label_bank import LabelBank
from autolabel.plan_board import PlanBoard, boards_of
from autolabel.plan_damage import MODEL_VERSION, SMALLEST, PlanDamage
from autolabel.plan_sampling import sample_plans
from autolabel.pretrained import load_plan_damage
from compress.files import read_json, write_json
from compress.task import evaluate
from experiments.board_runner import SEARCHES, BoardRunner
from experiments.boards import Board, BoardSettings, board_network
from experiments.no_regret import board_key, fit_for, fitted_judges, unlike
from experiments.regret import is_derived
from experiments.subject import PARTS
from experiments.who_predicts import SPLITS, assert_disjoint, held_out, seen_with
from experiments.worker_pool import run_in_order

# Part of the plans that a goal asks to be predicted within this factor.
FACTOR = 1.5
MOMENT = "refitted"
MEASURED = (0, 3, 10, 20, 40)


@dataclass(frozen=True)
class DamageRow:
    """One plan.

    Attributes:
        board: network, or network and budget.
        family, task: of the network.
        method: that made the plan, or how it was drawn.
        moment: after which its damage counts.
        measured: how many other plans of the network were measured for the prediction.
        predicted, low, high: nats, and the ends of a 90 % interval.
        realised: nats, on test examples.
    """

    board: str
    family: str
    task: str
    method: str
    moment: str
    measured: int
    predicted: float
    low: float
    high: float
    realised: float


def judge_bank(
    boards: Sequence[PlanBoard], origins: Sequence[Sequence[str]], moments: Sequence[str], seed: int = 0,
    numbers: Sequence[int] = MEASURED, on_fit: Callable[[int, int], None] | None = None,
) -> list[DamageRow]:  # fmt: skip
    """Every plan of every board that was not measured for the prediction.

    Args:
        boards: with the losses of these moments.
        origins: of each board's plans.
    """
    rows = []
    folds = held_out(boards, SPLITS[0])
    for done, test in enumerate(folds):
        train = seen_with(boards, test, SPLITS[0])
        assert_disjoint(train, [boards[i] for i in test], SPLITS[0])
        for moment in moments:
            model = PlanDamage.fit(train, moment)
            for i in test:
                board = boards[i]
                order = np.random.default_rng([seed, *map(ord, board.network)]).permutation(len(board.loss[moment]))
                damage = board.loss[moment] - board.dense_loss
                realised = board.judged_loss[moment] - board.judged_dense_loss
                for number in numbers:
                    found = model.predict(board.summary, board.dense_loss, order[:number], damage[order[:number]])
                    low, high = found.interval()
                    rows += [
                        DamageRow(board.network, board.family, board.task, str(origins[i][j]), moment, number,
                                  float(found.nats[j]), float(low[j]), float(high[j]), float(realised[j]))
                        for j in order[number:]
                    ]  # fmt: skip
        if on_fit is not None:
            on_fit(done + 1, len(folds))
    return rows


def judge_boards(
    boards: Sequence[Board], settings: BoardSettings, folder: Path, workers: int,
    on_board: Callable[[int, int], None] | None = None,
) -> list[DamageRow]:  # fmt: skip
    """The plans of all methods but those that take what others found, on all boards, with the first seed; what is there
    is kept."""
    own = (m for m in settings.methods if not (is_derived(m) or (m in SEARCHES and not m.endswith("/search"))))
    quiet = replace(settings, methods=tuple(own))
    for board in boards if quiet.learned else ():
        fit_for(board, quiet, folder)
    pieces = [(board, quiet, str(folder)) for board in boards]
    return [DamageRow(**row) for rows in run_in_order(judge_board, pieces, workers, on_board) for row in rows]


def judge_board(
    board: Board, settings: BoardSettings, folder: str, numbers: Sequence[int] = MEASURED
) -> list[dict[str, Any]]:
    """Rows of one board; stored, and read again the next time."""
    path = Path(folder) / "damages" / f"{board.name}.json"
    key = {**board_key(board, settings), "numbers": list(numbers), "moment": MOMENT, "model": MODEL_VERSION}
    if path.exists():
        known = read_json(path)
        if known.get("key") == key:
            return known["rows"]
    torch.use_deterministic_algorithms(True, warn_only=True)
    model = _damage_model(board, settings)
    network, judges = board_network(board, settings), fitted_judges(board, settings, Path(folder))
    runner = BoardRunner(board, network, settings.seed, settings, *judges, Path(folder))
    subject = runner.subject
    methods = {name: mask for name, (mask, _) in runner.plans().items()}
    drawn = sample_plans(
        subject.structure.units, subject.costs, subject.summarizer.scores, "macs", runner.fraction, max(numbers),
        seed=subject.seed, constraints=subject.settings.constraints,
    ).removed  # fmt: skip
    masks = np.concatenate([drawn, np.stack(list(methods.values()))])
    losses = measure_losses(subject.oracle, subject.bench, masks)
    dense = {part: evaluate(subject.structure.traced.module, subject.task, subject.bench.judged[part])[1]
             for part in PARTS}  # fmt: skip
    summary, rows = subject.summarizer.summarize(masks), []
    for number in numbers:
        known_rows = list(range(min(number, len(drawn))))
        damages = [losses["validation"][i] - dense["validation"] for i in known_rows]
        found = model.predict(summary, dense["validation"], known_rows, damages)
        low, high = found.interval()
        for i, name in enumerate(methods, start=len(drawn)):
            row = DamageRow(board.name, board.family, board.task, name, MOMENT, number, float(found.nats[i]),
                            float(low[i]), float(high[i]), losses["test"][i] - dense["test"])  # fmt: skip
            rows.append(asdict(row))
    write_json(path, {"key": key, "rows": rows})
    return rows


def _damage_model(board: Board, settings: BoardSettings) -> PlanDamage:
    """Of networks unlike this board's."""
    if settings.bank is None:
        return load_plan_damage()
    return PlanDamage.fit(unlike(board, boards_of(LabelBank.load(settings.bank), (MOMENT,))), MOMENT)


def measure_losses(oracle: Any, bench: Any, masks: np.ndarray) -> dict[str, list[float]]:
    """Data part -> loss of each of `(n_plans, n_units)` masks after the refit; the same mask is measured once."""
    known: dict[bytes, dict[str, float]] = {}
    for mask in masks:
        if mask.tobytes() not in known:
            (outcome,) = replace(oracle, moments=(MOMENT,)).measure(bench, mask)
            known[mask.tobytes()] = dict(outcome.loss)
    return {part: [known[mask.tobytes()][part] for mask in masks] for part in bench.judged}


def summarize_damages(rows: Sequence[DamageRow]) -> list[dict[str, Any]]:
    """One line for each moment and number of measured plans: part of the plans within the factor, coverage, order.

    A plan whose realised damage is below `SMALLEST` (or negative) has no ratio; how many these are is told.
    """
    lines = []
    for moment, number in dict.fromkeys((row.moment, row.measured) for row in rows):
        own = [row for row in rows if (row.moment, row.measured) == (moment, number)]
        loud = [row for row in own if row.realised >= SMALLEST]
        line: dict[str, Any] = {"moment": moment, "measured": number, "boards": len({row.board for row in own}),
                                "plans": len(loud), "silent": len(own) - len(loud)}  # fmt: skip
        if loud:
            names = sorted({row.family for row in loud})  # of equal ones the first is the worst, in every process
            families = {f: _within([row for row in loud if row.family == f]) for f in names}
            worst = min(families, key=families.__getitem__)
            orders = [_order([row for row in loud if row.board == board]) for board in {row.board for row in loud}]
            orders = [order for order in orders if order is not None]
            line |= {
                "within": _within(loud), "within_worst_family": families[worst], "worst_family": worst,
                "covered": float(np.mean([row.low <= row.realised <= row.high for row in loud])),
                "width": float(np.median([np.sqrt(row.high / row.low) for row in loud])),
                "spearman": float(np.median(orders)) if orders else None,
            }  # fmt: skip
        lines.append(line)
    return lines


def _within(rows: Sequence[DamageRow]) -> float:
    return float(np.mean([max(row.predicted / row.realised, row.realised / row.predicted) <= FACTOR for row in rows]))


def _order(rows: Sequence[DamageRow]) -> float | None:
    if len({row.predicted for row in rows}) < 3 or len({row.realised for row in rows}) < 3:
        return None
    return float(spearmanr([row.predicted for row in rows], [row.realised for row in rows]).statistic)
