"""The job that judges predictors of what plans lose, on networks of families and tasks that a labeler never saw."""

import itertools
import logging
from collections.abc import Sequence
from dataclasses import asdict, fields
from pathlib import Path
from typing import Any

import numpy as np

from autolabel.label_bank import LabelBank
from autolabel.plan_board import PlanBoard, boards_of
from autolabel.plan_oracle import MOMENTS
from autolabel.unit_board import SCOPES, unit_boards_of
from compress.files import write_json
from experiments.ablations import ablated_labelers, ablated_parts
from experiments.choice_predictors import judge_choice_labelers, judge_choices
from experiments.config import ConfigError
from experiments.label_economy import COLUMNS as ECONOMY_COLUMNS
from experiments.label_economy import EconomyRow, economy
from experiments.plan_damages import DamageRow, judge_bank
from experiments.plan_formulas import formulas, measured_sums, unit_formulas, unpack_masks
from experiments.plan_intervals import COLUMNS as INTERVAL_COLUMNS
from experiments.plan_intervals import judge_intervals
from experiments.plan_labelers import LABELERS
from experiments.progress import progress
from experiments.raw_table import write_raw
from experiments.run_dir import RunDir
from experiments.settings import Config
from experiments.tracker import Tracker
from experiments.unit_economy import COLUMNS as UNIT_COLUMNS
from experiments.unit_economy import judge_samplings
from experiments.unit_predictors import TRUTHS, UNIT_LABELERS, judge_unit_labelers, judge_units
from experiments.who_predicts import (
    COLUMNS,
    PLAN_SCOPES,
    SPLITS,
    Prediction,
    Row,
    judge_few_shot,
    judge_formulas,
    judge_predictions,
    predict_boards,
    summarize,
)

log = logging.getLogger(__name__)
FORMULA = "refit_residual/loss"
# Moments whose damage in nats is predicted.
DAMAGE_MOMENTS = ("at_once", "refitted", "finetuned")
_TOLD = ("scope", "truth", "predictor", "zero_shot", "spearman_median", "low", "high", "spearman_mean_of_families",
         "spearman_worst_family", "worst_family")  # fmt: skip


class WhoPredictsJob:
    """Writes `who_predicts.csv` (one row for each truth, network and predictor), and `summary.json`; for the fine-tuned
    truth also `label_economy.csv` and `plan_intervals.csv`; `unit_economy.csv`; and `plan_damage.csv`, nats instead of
    order. Without truths, only units and ways to store layers are judged.

    Args:
        bank: file of a label bank that `experiment=bank` measured.
        judged: file of a bank of other networks, whose plans are judged instead; None to judge networks of `bank`.
        truths: moments whose losses of whole plans are predicted, out of `MOMENTS`.
        labelers: names out of `LABELERS`.
        unit_labelers: names out of `UNIT_LABELERS`, of labelers that order single units, and ways to store layers.
        unit_truths: damages that these predict, out of `TRUTHS`.
        ablations: judge labelers that go without an ingredient too, of the loss after fine-tuning, see
            `experiments.ablations`.
        samplings: judge which units to measure, see `experiments.unit_economy`.
        workers: processes that fit labelers.
    """

    name = "who_predicts"
    reports = ("who_predicts.*",)

    def __init__(
        self, bank: str, truths: Sequence[str] = DAMAGE_MOMENTS, labelers: Sequence[str] = tuple(LABELERS),
        unit_labelers: Sequence[str] = tuple(UNIT_LABELERS), unit_truths: Sequence[str] = TRUTHS,
        ablations: bool = True, samplings: bool = True, workers: int = 2, judged: str | None = None,
    ) -> None:  # fmt: skip
        self.judged = judged
        self.bank, self.truths, self.labelers = bank, tuple(truths), tuple(labelers)
        self.unit_labelers, self.unit_truths = tuple(unit_labelers), tuple(unit_truths)
        self.ablations, self.samplings, self.workers = ablations, samplings, workers

    def check(self, config: Config) -> None:
        """The bank must be there, and the names known."""
        if self.workers < 1:
            raise ConfigError(f"job.workers must be at least 1. Got {self.workers}.")
        for key, file in (("bank", self.bank), ("judged", self.judged)):
            if file is not None and not Path(file).is_file():
                raise ConfigError(f"job.{key}: there is no {file}. Measure it first: experiment=bank")
        for key, values, known in (
            ("truths", self.truths, MOMENTS),
            ("labelers", self.labelers, tuple(LABELERS)),
            ("unit_labelers", self.unit_labelers, tuple(UNIT_LABELERS)),
            ("unit_truths", self.unit_truths, TRUTHS),
        ):
            unknown = [value for value in values if value not in known]
            if unknown:
                raise ConfigError(f"job.{key} must be out of {known}. Got {unknown[0]!r}.")

    def run(self, config: Config, run_dir: RunDir, tracker: Tracker) -> dict[str, Any]:
        """Judge everything."""
        run_dir.add_input(self.bank)
        bank, known, rows = LabelBank.load(self.bank), [], []
        if self.judged is None:
            rows = judge_units(bank) + judge_choices(bank) + self._labelers_of_units(bank)
        else:
            run_dir.add_input(self.judged)
            known, bank = boards_of(bank, MOMENTS), LabelBank.load(self.judged)
        boards = boards_of(bank, MOMENTS)
        if self.samplings and not known:
            with progress("judging samplings") as on_network:
                samplings = judge_samplings(bank, on_network=on_network, workers=self.workers)
            _write(run_dir, "unit_economy.csv", UNIT_COLUMNS, samplings)
        for truth in self.truths:
            for board, number in zip(boards, _rows_of(bank, boards), strict=True):
                rows += judge_formulas(board, truth, config.seed, _unit_formulas(bank, number))
            with progress(f"judging labelers of {truth}") as on_fit:
                labelers = {name: LABELERS[name] for name in self.labelers}
                ablations = self.ablations and truth == "finetuned"
                variants = ablated_parts if ablations else None
                judged = list(predict_boards(boards, labelers, truth, SPLITS, on_fit, self.workers, variants, known))
                predictions = [p for p in judged if p.labeler in labelers]
            rows += judge_predictions(judged, truth)
            if ablations:
                with progress(f"leaving ingredients out ({truth})") as on_fit:
                    kinds = ablated_labelers(boards[0].summary)
                    ablated = predict_boards(boards, kinds, truth, SPLITS[:1], on_fit, self.workers, known=known)
                    rows += judge_predictions(ablated, truth)
            unseen = [p for p in predictions if p.split == SPLITS[0]]
            for moment in dict.fromkeys((*(["refitted"] if truth == "finetuned" else []), truth)):
                rows += judge_few_shot(unseen, truth, moment, seed=config.seed)
            if truth == "finetuned":
                _write(run_dir, "label_economy.csv", ECONOMY_COLUMNS, _economy(boards, predictions, config.seed))
                _write(run_dir, "plan_intervals.csv", INTERVAL_COLUMNS, judge_intervals(predictions, truth))
        _write(run_dir, "who_predicts.csv", COLUMNS, rows)
        if self.truths and not known:
            with progress("predicting damage") as on_fit:
                origins = [bank.rows("plans", int(i))["origin"] for i in _rows_of(bank, boards)]
                damages = judge_bank(boards, origins, DAMAGE_MOMENTS, config.seed, on_fit=on_fit)
            _write(run_dir, "plan_damage.csv", [field.name for field in fields(DamageRow)], damages)
        lines = summarize(rows)
        write_json(run_dir.file("summary.json"), lines)
        for line in lines:
            log.info(
                "%s %s %s %s: Spearman median %.3f [%.2f, %.2f], mean of families %.3f, worst %.3f (%s), regret %.2f",
                *(line[name] for name in _TOLD), line.get("regret_mean", float("nan")),
            )  # fmt: skip
        best = {f"{line['truth']} {line['predictor']} {line['zero_shot']}".strip(): line["spearman_median"]
                for line in lines
                if line["scope"] in PLAN_SCOPES}  # fmt: skip
        return {"who_predicts": {"boards": len(boards), "spearman_median": best}}

    def _labelers_of_units(self, bank: LabelBank) -> list[Row]:
        """Rows of labelers of single units, and of ways to store layers."""
        if not self.unit_labelers:
            return []
        kinds, rows = {name: UNIT_LABELERS[name] for name in self.unit_labelers}, []
        truths = [truth for truth in self.unit_truths if f"damage_{truth}" in bank.units]
        for truth in sorted(set(self.unit_truths) - set(truths)):
            log.warning("The bank has no damages of units '%s': these are not judged.", truth)
        for scope, truth in itertools.product(SCOPES, truths):
            with progress(f"judging labelers of units ({scope}, {truth})") as on_fit:
                own = unit_boards_of(bank, [truth], scope)
                rows += judge_unit_labelers(own, kinds, [truth], on_fit=on_fit, workers=self.workers)
        with progress("judging labelers of choices") as on_fit:
            return rows + judge_choice_labelers(bank, kinds, on_fit=on_fit, workers=self.workers)


def _rows_of(bank: LabelBank, boards: Sequence[PlanBoard]) -> list[int]:
    names = bank.networks["name"].tolist()
    return [names.index(board.network) for board in boards]


def _unit_formulas(bank: LabelBank, number: int) -> dict[str, np.ndarray]:
    units = bank.rows("units", number)
    masks = unpack_masks(bank.rows("plans", number)["removed"], len(units["group"]))
    return unit_formulas(units, masks) | measured_sums(units, masks)


def _economy(boards: Sequence[PlanBoard], predictions: Sequence[Prediction], seed: int) -> list[EconomyRow]:
    """Of labelers that saw neither family nor task, of the best formula, and of chance."""
    rows = [row for p in predictions if p.split == SPLITS[0] for row in economy(p.board, p.labeler, p.score)]
    for number, board in enumerate(boards):
        chance = np.random.default_rng([seed, number]).random(len(board.loss["finetuned"]))
        rows += economy(board, "chance", chance)
        rows += economy(board, FORMULA, formulas(board)[FORMULA])
    return rows


def _write(run_dir: RunDir, name: str, columns: Sequence[str], rows: Sequence[Any]) -> None:
    write_raw(run_dir, name, columns, map(asdict, rows))
