"""Who predicts what a plan loses after repair and fine-tuning: formulas, measurements and labelers on one table."""

import logging
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from types import MappingProxyType
from typing import TypeVar

import numpy as np
from scipy.stats import kendalltau, spearmanr

from autolabel.few_shot import adapt
from autolabel.format_summary import FORMAT_COLUMN
from autolabel.plan_board import PlanBoard
from autolabel.plan_labeler import PlanLabeler
from autolabel.plan_oracle import MOMENTS
from autolabel.plan_summary import PlanSummary
from autolabel.unit_board import SCOPES, UnitBoard
from compress.errors import CompressError
from experiments.plan_formulas import formulas
from experiments.worker_pool import run_in_order

log = logging.getLogger(__name__)
COLUMNS = ("truth", "scope", "family", "task", "network", "predictor", "zero_shot", "spearman", "kendall", "regret")
# The latter also store layers in few bits.
PLANS, FORMATTED_PLANS = "plans", "formatted_plans"
PLAN_SCOPES = (PLANS, FORMATTED_PLANS)
_SCOPES = (*PLAN_SCOPES, *SCOPES, "choices", "configs")
# What is held out when a labeler judges a board.
SPLITS = ("family_and_task", "network")
_FOLDS = 10
Board = TypeVar("Board", PlanBoard, UnitBoard)


@dataclass(frozen=True)
class Row:
    """How well one predictor orders the plans of one board.

    Attributes:
        truth: the moment whose loss is the truth: of plans on data that decide nothing, of configurations on test
            examples, of single units and choices as it was measured on label examples.
        scope: what is ordered: `"plans"` of a board that remove units, `"formatted_plans"` that also store layers in
            few bits, units `"within_layers"` or `"across_layers"`, `"choices"` of how single layers are stored, or
            `"configs"` of all layers at once.
        zero_shot: for a labeler, what of the judged board it never saw: `"family_and_task"` or `"network"`, and how
            many of the board's plans were measured for it after that (`"family_and_task+8"`, or
            `"family_and_task+8 refitted"` at an earlier moment than the truth); empty for formulas, `"measured"` for
            what was measured on the judged network itself.
        regret: metric points lost by taking the predictor's favourite instead of the best plan of the board; None of
            what is no plan.
    """

    truth: str
    scope: str
    family: str
    task: str
    network: str
    predictor: str
    zero_shot: str
    spearman: float
    kendall: float
    regret: float | None


def scope_of(board: PlanBoard) -> str:
    """Whether the plans of a board only remove units, or also store layers in few bits."""
    return FORMATTED_PLANS if FORMAT_COLUMN in board.summary.plan_names else PLANS


def judge_formulas(
    board: PlanBoard, truth: str, seed: int = 0, others: Mapping[str, np.ndarray] = MappingProxyType({})
) -> list[Row]:
    """Rows of formulas, of chance, and of losses that were measured earlier than the truth.

    Args:
        others: name -> `(n_plans,)` of formulas beside those of the summary; those of measured units begin with
            `damage_`.
    """
    found = {**formulas(board), **others}
    rows = [_row(board, truth, name, "measured" if name.startswith("damage_") else "", values)
            for name, values in found.items()]  # fmt: skip
    chance = np.random.default_rng([seed, len(board.network), *map(ord, board.network)]).random(len(board.loss[truth]))
    rows.append(_row(board, truth, "chance", "", chance))
    for moment in MOMENTS[: MOMENTS.index(truth) + 1]:
        # The loss of the truth itself, on other examples of the same data: what noise leaves to be predicted.
        rows.append(_row(board, truth, f"loss_{moment}", "measured", board.loss[moment]))
    return rows


@dataclass(frozen=True, eq=False)
class Prediction:
    """What one labeler says of the plans of one board that it never saw; `split` tells what else it never saw."""

    board: PlanBoard
    labeler: str
    split: str
    score: np.ndarray


def predict_boards(
    boards: Sequence[PlanBoard],
    labelers: Mapping[str, Callable[[], PlanLabeler]],
    truth: str,
    splits: Sequence[str] = SPLITS,
    on_fit: Callable[[int, int], None] | None = None,
    workers: int = 1,
    variants: Callable[[str, PlanLabeler], Iterable[tuple[str, PlanLabeler]]] | None = None,
    known: Sequence[PlanBoard] = (),
) -> Iterator[Prediction]:
    """Every labeler on every board, each board judged by one that never saw its network, or its family and its task.

    Args:
        labelers: name -> how to make it; a function at the top level of a module for several workers.
        workers: processes.
        variants: `(name, labeler)` of others that a fitted one makes, to be judged beside it.
        known: boards of other networks, which alone labelers learn from and which are not judged; none to learn from
            those that are judged.

    Raises:
        CompressError: if there are not two families and two tasks.
    """
    together, teachers = [*known, *boards], set(map(id, known or boards))
    folds = []
    for split, test, seen in blind_folds(together, splits):
        judged, train = [together[i] for i in test if i >= len(known)], [b for b in seen if id(b) in teachers]
        if judged:
            assert_disjoint(train, judged, split)
            folds.append((split, judged, train))
    pieces = [(train, [b.summary for b in test], dict(labelers), truth, variants) for _, test, train in folds]
    predicted = run_in_order(predict_fold, pieces, workers, on_fit)
    for (split, test, _), found in zip(folds, predicted, strict=True):
        for name, scores in found:
            yield from (Prediction(board, name, split, score) for board, score in zip(test, scores, strict=True))


def predict_fold(
    train: Sequence[PlanBoard],
    judged: Sequence[PlanSummary],
    labelers: Mapping[str, Callable[[], PlanLabeler]],
    truth: str,
    variants: Callable[[str, PlanLabeler], Iterable[tuple[str, PlanLabeler]]] | None,
) -> list[tuple[str, list[np.ndarray]]]:
    """`(name, scores of every board)` of labelers that learned from these boards, and of their variants."""
    found = []
    for name, make in labelers.items():
        labeler = make().fit(train, truth)
        for told, judge in ((name, labeler), *(variants(name, labeler) if variants is not None else ())):
            found.append((told, [judge.predict(summary)[0] for summary in judged]))
    return found


def judge_predictions(predictions: Iterable[Prediction], truth: str) -> list[Row]:
    """Rows of labelers."""
    return [_row(p.board, truth, p.labeler, p.split, p.score) for p in predictions]


def judge_few_shot(
    predictions: Iterable[Prediction], truth: str, moment: str, measured: int = 8, seed: int = 0
) -> list[Row]:
    """Rows of labelers after so many random plans of the board were measured; the other plans are ordered.

    Args:
        moment: that they were measured at, up to the truth.
    """
    rows = []
    for p in predictions:
        n = len(p.score)
        if n < measured + 5:
            continue
        chosen = np.random.default_rng([seed, *map(ord, p.board.network)]).permutation(n)[:measured]
        rest = np.setdiff1d(np.arange(n), chosen)
        score = adapt(p.score, p.board.summary, chosen, p.board.loss[moment][chosen])
        seen = f"{p.split}+{measured}" + ("" if moment == truth else f" {moment}")
        rows.append(_row(p.board, truth, p.labeler, seen, score, rest))
    return rows


def blind_folds(boards: Sequence[Board], splits: Sequence[str]) -> list[tuple[str, list[int], list[Board]]]:
    """`(split, which boards are judged together, what their labeler may learn from)`.

    Raises:
        CompressError: if there are not two families and two tasks.
    """
    families, tasks = {board.family for board in boards}, {board.task for board in boards}
    if len(families) < 2 or len(tasks) < 2:
        raise CompressError(
            f"Labelers are judged on families and tasks they never saw: at least two of each are needed. Got "
            f"{sorted(families)} and {sorted(tasks)}."
        )
    folds = [(split, test, seen_with(boards, test, split)) for split in splits for test in held_out(boards, split)]
    for split, test, train in folds:
        assert_disjoint(train, [boards[i] for i in test], split)
    return folds


def held_out(boards: Sequence[Board], split: str) -> list[list[int]]:
    """Which boards are judged together by one labeler."""
    if split == "network":
        return [list(range(fold, len(boards), _FOLDS)) for fold in range(min(_FOLDS, len(boards)))]
    cells: dict[tuple[str, str], list[int]] = {}
    for i, board in enumerate(boards):
        cells.setdefault((board.family, board.task), []).append(i)
    return list(cells.values())


def seen_with(boards: Sequence[Board], test: Sequence[int], split: str) -> list[Board]:
    """The boards that a labeler may learn from before it judges those in `test`."""
    if split == "network":
        return [board for i, board in enumerate(boards) if i not in set(test)]
    families, tasks = {boards[i].family for i in test}, {boards[i].task for i in test}
    return [board for board in boards if board.family not in families and board.task not in tasks]


def assert_disjoint(train: Sequence[Board], test: Sequence[Board], split: str) -> None:
    """A labeler that saw what it is judged on makes the table worthless.

    Raises:
        AssertionError: if it did, whether Python checks assertions or not; or if nothing is left to learn from.
    """
    if not train:
        raise AssertionError("nothing is left to learn from")
    for kind in ("network", *(("family", "task") if split == "family_and_task" else ())):
        both = {getattr(board, kind) for board in train} & {getattr(board, kind) for board in test}
        if both:
            raise AssertionError(f"the {kind} {min(both)!r} is both learned from and judged")


def _row(
    board: PlanBoard, truth: str, predictor: str, zero_shot: str, score: np.ndarray, rows: np.ndarray | None = None
) -> Row:
    """Rank correlations over all plans, or over those in `rows`; regret over all."""
    loss, metric = board.judged_loss[truth], board.judged_metric[truth]
    regret = float(metric.max() - metric[int(np.argmin(score))])
    if rows is not None:
        score, loss = score[rows], loss[rows]
    # A predictor that says the same of all plans orders nothing.
    flat = float(np.ptp(score)) == 0 or float(np.ptp(loss)) == 0
    return Row(
        truth, scope_of(board), board.family, board.task, board.network, predictor, zero_shot,
        0.0 if flat else float(spearmanr(score, loss).statistic),
        0.0 if flat else float(kendalltau(score, loss).statistic),
        regret,
    )  # fmt: skip


def summarize(rows: Sequence[Row]) -> list[dict[str, object]]:
    """One line for each truth, predictor and split: medians over networks, the worst family, regret, an interval."""
    by_key: dict[tuple[str, str, str, str], list[Row]] = {}
    for row in rows:
        by_key.setdefault((row.scope, row.truth, row.predictor, row.zero_shot), []).append(row)
    lines = []
    for (scope, truth, predictor, split), mine in by_key.items():
        by_family = {f: [r for r in mine if r.family == f] for f in sorted({r.family for r in mine})}
        medians = {f: float(np.median([r.spearman for r in found])) for f, found in by_family.items()}
        low, high = _bootstrap([r.spearman for r in mine])
        lines.append({
            "scope": scope, "truth": truth, "predictor": predictor, "zero_shot": split, "networks": len(mine),
            "spearman_median": float(np.median([r.spearman for r in mine])), "low": low, "high": high,
            "spearman_mean_of_families": float(np.mean(list(medians.values()))),
            "spearman_worst_family": min(medians.values()), "worst_family": min(medians, key=medians.__getitem__),
            "kendall_median": float(np.median([r.kendall for r in mine])),
            **{f"spearman/{f}": m for f, m in medians.items()},
            **(_regret(by_family) if scope in PLAN_SCOPES else {}),
        })  # fmt: skip
    return sorted(
        lines, key=lambda x: (_SCOPES.index(str(x["scope"])), x["truth"], -float(x["spearman_mean_of_families"]))
    )


def _regret(rows: Mapping[str, Sequence[Row]]) -> dict[str, object]:
    """Of the rows of each family."""
    regrets = {family: [row.regret for row in found] for family, found in rows.items()}
    means = {family: float(np.mean(found)) for family, found in regrets.items()}
    return {
        "regret_mean": float(np.mean([value for found in regrets.values() for value in found])),
        "regret_worst_family": max(means.values()),
        **{f"regret/{family}": value for family, value in means.items()},
    }


def _bootstrap(values: Sequence[float], n: int = 2000) -> tuple[float, float]:
    """95 % interval of the median over networks."""
    rng = np.random.default_rng(0)
    found = np.median(np.asarray(values)[rng.integers(0, len(values), (n, len(values)))], axis=1)
    return float(np.quantile(found, 0.025)), float(np.quantile(found, 0.975))
