"""Who predicts the damage of storing layers otherwise: of one layer alone, and of all of them at once."""

from collections.abc import Callable, Iterator, Mapping, Sequence

import numpy as np
from scipy.stats import kendalltau, rankdata, spearmanr

from autolabel.label_bank import LabelBank
from autolabel.unit_board import ACROSS_LAYERS, UnitBoard
from autolabel.unit_labeler import UnitLabeler
from experiments.who_predicts import SPLITS, Row, blind_folds
from experiments.worker_pool import run_in_order

STORED, STORED_REPAIRED = "stored", "stored_repaired"
# Truth -> column of the bank's choices. What the weights of a layer can make up for is measured of single choices only.
_TRUTHS = {STORED: "damage", STORED_REPAIRED: "damage_repaired"}
STORED_TRUTHS = tuple(_TRUTHS)
_MEASURED = "damage_alone"
_FEATURES = ("bits", "density", "weights", "weight_error", "fisher_error", "dropped_bits", "depth")
# Formulas whose order is spent like a labeler's, too.
_ORDERS, _TYPICAL = ("fisher_error", "weight_error"), "/typical"
# Places in a network's order for which it is learned what part of the network's mean damage is lost there.
_PLACES = np.linspace(0.01, 0.99, 50)


def judge_choices(bank: LabelBank) -> list[Row]:
    """One row for each scope, network and formula; configurations are predicted by sums over their layers.

    Damages of single layers are measured on label examples, those of configurations judged on test examples. What
    single layers lose after their repair is judged where the bank has it.
    """
    rows = []
    for number in range(len(bank.networks["name"])):
        choices = bank.rows("choices", number)
        for predictor, score in _predictors(choices):
            rows += [_row(bank, number, STORED, scope, predictor, "", score) for scope in ("choices", "configs")]
        # What was measured of single layers predicts what they do together; noise below zero helps nobody.
        measured = np.maximum(choices["damage"], 0.0)
        rows.append(_row(bank, number, STORED, "configs", _MEASURED, "measured", measured))
        if _TRUTHS[STORED_REPAIRED] in choices:
            known = [*((name, "", score) for name, score in _predictors(choices)), (_MEASURED, "measured", measured)]
            rows += [_row(bank, number, STORED_REPAIRED, "choices", name, seen, score) for name, seen, score in known]
    return rows


def judge_choice_labelers(
    bank: LabelBank, labelers: Mapping[str, Callable[[], UnitLabeler]], splits: Sequence[str] = SPLITS,
    on_fit: Callable[[int, int], None] | None = None, workers: int = 1,
) -> list[Row]:  # fmt: skip
    """The same rows of labelers, each network judged by one that never saw it, or its family and its task.

    A labeler orders all choices of a network among one another. The damages that choices at their places have in the
    networks that it learned from, as parts of a network's mean, are then added up over the layers of a configuration;
    `"fisher_error/typical"` does the same with the order of a formula.

    Raises:
        CompressError: if there are not two families and two tasks.
    """
    boards = choice_boards_of(bank)
    truths = [truth for truth in _TRUTHS if all(truth in board.damage for board in boards)]
    numbers = {name: number for number, name in enumerate(bank.networks["name"].tolist())}
    folds = blind_folds(boards, splits)
    pieces = [(train, [boards[i] for i in test], dict(labelers), truth) for truth in truths for _, test, train in folds]
    tests = [(truth, split, test) for truth in truths for split, test, _ in folds]
    return [
        _row(bank, numbers[boards[i].network], truth, scope, name, split, score)
        for (truth, split, test), found in zip(
            tests, run_in_order(predict_choices, pieces, workers, on_fit), strict=True
        )
        for name, scores in found.items()
        for i, score in zip(test, scores, strict=True)
        for scope in _scopes(name, truth)
    ]


def _scopes(name: str, truth: str) -> tuple[str, ...]:
    # Alone a formula orders choices as it does anyway.
    alone = () if name.endswith(_TYPICAL) else ("choices",)
    return alone if truth == STORED_REPAIRED else (*alone, "configs")


def choice_boards_of(bank: LabelBank) -> list[UnitBoard]:
    """Every network of a bank; in the place of units there are all choices of all layers, a group for each layer.

    Networks without choices, or with damages that are not finite, are left out.
    """
    found = []
    for number, name in enumerate(bank.networks["name"].tolist()):
        choices = bank.rows("choices", number)
        if not len(choices["damage"]) or not np.isfinite(choices["damage"]).all():
            continue
        layers = list(dict.fromkeys(choices["layer"].tolist()))
        group = np.array([layers.index(layer) for layer in choices["layer"].tolist()])
        columns = {**choices, **dict(_predictors(choices)), "depth": group / len(layers)}
        found.append(
            UnitBoard(
                name, str(bank.networks["family"][number]), str(bank.networks["task"][number]), _FEATURES,
                np.stack([columns[feature] for feature in _FEATURES], axis=1).astype(np.float64), group,
                {truth: choices[column].astype(np.float64) for truth, column in _TRUTHS.items() if column in choices},
                ACROSS_LAYERS,
            )
        )  # fmt: skip
    return found


def predict_choices(
    train: Sequence[UnitBoard], judged: Sequence[UnitBoard], labelers: Mapping[str, Callable[[], UnitLabeler]],
    truth: str = STORED,
) -> dict[str, list[np.ndarray]]:  # fmt: skip
    """Labeler or formula -> `(n_choices,)` of each judged board: damage in parts of its network's mean damage."""
    shares = [np.maximum(board.damage[truth], 0.0) for board in train]
    shares = [share / share.mean() for share in shares if share.any()]
    quantiles = [np.quantile(share, _PLACES, method="hazen") for share in shares]
    typical = np.mean(quantiles, axis=0) if quantiles else _PLACES
    found = {
        f"{name}{_TYPICAL}": [_at(board.values[:, _FEATURES.index(name)], typical) for board in judged]
        for name in _ORDERS
    }
    for name, make in labelers.items():
        labeler = make().fit(train, truth)
        scores = [labeler.predict(board) for board in judged]
        found[name] = [_at(score, typical) for score in scores]
    return found


def _at(score: np.ndarray, typical: np.ndarray) -> np.ndarray:
    """What is typical at each place of the order; ties of what is typical keep the order of the scores."""
    place = (rankdata(score) - 0.5) / len(score)
    return np.interp(place, _PLACES, typical) + 1e-9 * place


def _row(
    bank: LabelBank, number: int, kind: str, scope: str, predictor: str, seen: str, score: np.ndarray
) -> Row:  # fmt: skip
    """How well `(n_choices,)` scores of one network order them, or configurations by their sums."""
    choices = bank.rows("choices", number)
    truth = choices[_TRUTHS[kind]]
    if scope == "configs":
        configs = bank.rows("configs", number)
        score, truth = _taken(choices, configs["choices"].tolist()) @ score, configs["damage_test"]
    # A predictor that says the same of all orders nothing.
    flat = not len(score) or np.ptp(score) <= 1e-12 * np.abs(score).max() or np.ptp(truth) == 0
    orders = [0.0 if flat else float(test(score, truth).statistic) for test in (spearmanr, kendalltau)]
    family, task, name = (str(bank.networks[column][number]) for column in ("family", "task", "name"))
    return Row(kind, scope, family, task, name, predictor, seen, *orders, None)


def _predictors(choices: Mapping[str, np.ndarray]) -> Iterator[tuple[str, np.ndarray]]:
    """`(n_choices,)` each, higher is worse."""
    yield "fisher_error", choices["fisher_error"]
    yield "weight_error", choices["weight_error"]
    yield "dropped_bits", (32 - choices["bits"] * choices["density"]) * choices["weights"] / choices["weights"].sum()


def _taken(choices: Mapping[str, np.ndarray], configs: list[str]) -> np.ndarray:
    """`(n_configs, n_choices)` float64: which choices each configuration takes."""
    cells = {cell: i for i, cell in enumerate(zip(choices["layer"].tolist(), choices["choice"].tolist(), strict=True))}
    layers = list(dict.fromkeys(choices["layer"].tolist()))
    found = np.zeros((len(configs), len(cells)))
    for row, text in zip(found, configs, strict=True):
        row[[cells[layer, choice] for layer, choice in zip(layers, text.split(), strict=True)]] = 1.0
    return found
