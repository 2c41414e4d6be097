"""Who predicts the damage of single units, in each moment: formulas and labelers."""

from collections.abc import Callable, Iterator, Mapping, Sequence
from functools import partial

import numpy as np
from scipy.stats import kendalltau, rankdata, spearmanr

from autolabel.label_bank import LabelBank
from autolabel.unit_board import SCOPES, WITHIN_LAYERS, UnitBoard
from autolabel.unit_labeler import UnitLabeler
from autolabel.unit_labelers import GBDTUnitLabeler, SetUnitLabeler
from experiments.who_predicts import SPLITS, Row, blind_folds
from experiments.worker_pool import run_in_order

TRUTHS = ("at_once", "in_context", "repaired", "trained")
UNIT_LABELERS: Mapping[str, Callable[[], UnitLabeler]] = {
    "labeler/gbdt": GBDTUnitLabeler,
    "labeler/lambdarank": partial(GBDTUnitLabeler, objective="lambdarank"),
    "labeler/set_network": SetUnitLabeler,
}
# Columns of the feature table that are criteria: as they are, and over their mean in the group.
_RAW, _RELATIVE = "_raw", "_relative"
_NORMALISED = "/normalised"
# Errors of the layers that read a unit, without it, and after a refit of the weights that stay: for all units, and as a
# part of the group's sum.
_ERRORS = {
    "feature_error_silenced_log": "silenced_error",
    "feature_error_silenced_share": f"silenced_error{_NORMALISED}",
    "feature_error_refitted_log": "refitted_error",
    "feature_error_refitted_share": f"refitted_error{_NORMALISED}",
}
# Columns of criteria that are no features.
_SCORE = "score_"
_FEWEST = 8


def judge_units(bank: LabelBank, truths: Sequence[str] = TRUTHS) -> list[Row]:
    """One row for each truth, scope, network and formula; a group of fewer than 8 units is not ordered within.

    Truths have standard errors: a Spearman of 1 is out of reach wherever these are as large as the differences.
    """
    rows = []
    for number, name in enumerate(bank.networks["name"].tolist()):
        units = bank.rows("units", number)
        family, task = str(bank.networks["family"][number]), str(bank.networks["task"][number])
        # A bank may be measured without some labels of units.
        for truth in (truth for truth in truths if f"damage_{truth}" in units):
            damage = units[f"damage_{truth}"]
            known = np.isfinite(damage) & np.isfinite(units[f"std_err_{truth}"])
            for scope in SCOPES:
                for predictor, score in _predictors(units, truth):
                    if scope == WITHIN_LAYERS and predictor.endswith(_NORMALISED):
                        continue  # one factor for each layer: the same order
                    found = _agreement(score[known], damage[known], units["group"][known], scope)
                    if found is not None:
                        seen = _zero_shot(predictor)
                        rows.append(Row(truth, scope, family, task, name, predictor, seen, *found, None))
    return rows


def judge_unit_labelers(
    boards: Sequence[UnitBoard], labelers: Mapping[str, Callable[[], UnitLabeler]], truths: Sequence[str],
    splits: Sequence[str] = SPLITS, on_fit: Callable[[int, int], None] | None = None, workers: int = 1,
) -> list[Row]:  # fmt: skip
    """Rows of unit labelers in the scope of the boards, each network judged by one that never saw it, or its family and
    its task."""
    folds = blind_folds(boards, splits)
    pieces = [(train, [boards[i] for i in test], dict(labelers), truth, split)
              for truth in truths for split, test, train in folds]  # fmt: skip
    return [row for rows in run_in_order(judge_unit_fold, pieces, workers, on_fit) for row in rows]


def judge_unit_fold(
    train: Sequence[UnitBoard], judged: Sequence[UnitBoard], labelers: Mapping[str, Callable[[], UnitLabeler]],
    truth: str, split: str,
) -> list[Row]:  # fmt: skip
    """Rows of labelers that learned from some boards, on others."""
    rows = []
    for name, make in labelers.items():
        labeler = make().fit(train, truth)
        for board in judged:
            found = _agreement(labeler.predict(board), board.damage[truth].copy(), board.group, board.scope)
            if found is not None:
                rows.append(Row(truth, board.scope, board.family, board.task, board.network, name, split, *found,
                                None))  # fmt: skip
    return rows


def _zero_shot(predictor: str) -> str:
    return "measured" if predictor.startswith("damage_") else ""


def _predictors(units: Mapping[str, np.ndarray], truth: str) -> Iterator[tuple[str, np.ndarray]]:
    for name, values in units.items():
        if name in _ERRORS:
            yield _ERRORS[name], values.astype(np.float64)
        if name.startswith(_SCORE):
            score = values.astype(np.float64)
            yield name.removeprefix(_SCORE), score
            if name != "score_random":
                yield f"{name.removeprefix(_SCORE)}{_NORMALISED}", _over_mean(score, units["group"])
        column = name.removeprefix("feature_")
        if column == name:
            continue
        if column.endswith(_RAW):
            yield column.removesuffix(_RAW), values.astype(np.float64)
        elif column.endswith(_RELATIVE) and f"feature_{column.removesuffix(_RELATIVE)}{_RAW}" in units:
            yield f"{column.removesuffix(_RELATIVE)}{_NORMALISED}", values.astype(np.float64)
    for earlier in TRUTHS[: TRUTHS.index(truth)]:
        if f"damage_{earlier}" in units:
            yield f"damage_{earlier}", units[f"damage_{earlier}"]


def _over_mean(score: np.ndarray, group: np.ndarray) -> np.ndarray:
    """Scores over the mean size of their group's."""
    _names, place = np.unique(group, return_inverse=True)
    mean = np.bincount(place, np.abs(score)) / np.bincount(place)
    return score / np.maximum(mean[place], np.finfo(np.float64).tiny)


def _agreement(score: np.ndarray, damage: np.ndarray, group: np.ndarray, scope: str) -> tuple[float, float] | None:
    """Spearman and Kendall; within layers, that of the ranks within each group, all groups pooled.

    A score that says the same of all orders nothing: 0. None of too few units, or of damages that are all the same.
    """
    if scope == WITHIN_LAYERS:
        _, place, sizes = np.unique(group, return_inverse=True, return_counts=True)
        large = sizes[place] >= _FEWEST
        score, damage, place = score[large], damage[large], place[large]
        for values in (score, damage) if len(score) else ():
            for g in np.unique(place):
                mine = place == g
                # Around 0 in every group: where a score is flat, the size of the group must not order its units.
                values[mine] = (rankdata(values[mine]) - 0.5) / mine.sum() - 0.5
    if len(score) < _FEWEST or np.ptp(damage) == 0:
        return None
    if np.ptp(score) == 0:
        return 0.0, 0.0
    return float(spearmanr(score, damage).statistic), float(kendalltau(score, damage).statistic)
