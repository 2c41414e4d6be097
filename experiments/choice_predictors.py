"""Who predicts the damage of storing layers otherwise: of one layer alone, and of all of them at once."""

from collections.abc import Iterator, Mapping

import numpy as np
from scipy.stats import kendalltau, spearmanr

from autolabel.label_bank import LabelBank
from experiments.who_predicts import Row

STORED = "stored"
_MEASURED = "damage_alone"


def judge_choices(bank: LabelBank) -> list[Row]:
    """One row for each scope, network and predictor; configurations are predicted by sums over their layers.

    Damages of single layers are measured on label examples, those of configurations judged on test examples.
    """
    rows = []
    for number, name in enumerate(bank.networks["name"].tolist()):
        choices, configs = bank.rows("choices", number), bank.rows("configs", number)
        family, task = str(bank.networks["family"][number]), str(bank.networks["task"][number])
        alone = dict(_predictors(choices))
        taken = _taken(choices, configs["choices"].tolist())
        found = [("choices", predictor, score, choices["damage"]) for predictor, score in alone.items()]
        # What was measured of single layers predicts what they do together; noise below zero helps nobody.
        alone[_MEASURED] = np.maximum(choices["damage"], 0.0)
        found += [("configs", predictor, taken @ score, configs["damage_test"]) for predictor, score in alone.items()]
        for scope, predictor, score, truth in found:
            seen = "measured" if predictor == _MEASURED else ""
            # A predictor that says the same of all orders nothing.
            flat = not len(score) or np.ptp(score) == 0 or np.ptp(truth) == 0
            orders = [0.0 if flat else float(test(score, truth).statistic) for test in (spearmanr, kendalltau)]
            rows.append(Row(STORED, scope, family, task, name, predictor, seen, *orders, None))
    return rows


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
