"""The job that fits a plan labeler on a whole label bank, for the package or for `plan_labeler=FOLDER`."""

from pathlib import Path
from typing import Any

import numpy as np

from autolabel.competence import Competence
from autolabel.label_bank import LabelBank
from autolabel.plan_board import boards_of
from autolabel.plan_damage import PlanDamage
from autolabel.plan_oracle import MOMENTS
from autolabel.plan_summary import FEATURES_VERSION
from autolabel.pretrained import CARD_FILE, FORMATTED
from compress.files import write_json
from experiments.config import ConfigError
from experiments.manifest import hash_file
from experiments.plan_labelers import LABELERS
from experiments.run_dir import RunDir
from experiments.settings import Config
from experiments.tracker import Tracker
from experiments.who_predicts import FORMATTED_PLANS, scope_of


class PretrainJob:
    """Writes `plan_labeler/` into the run folder, with what predicts damage in nats, and its card; of plans that also
    store layers in few bits the labeler and its card into `plan_labeler/formatted/`.

    Args:
        bank: file of a label bank that `experiment=bank` measured.
        labeler: name out of `experiments.plan_labelers.LABELERS`, the best that `experiment=who_predicts` found.
        truth: moment that it learns.
    """

    name = "pretrain"
    reports = ("pretrain.*",)

    def __init__(self, bank: str, labeler: str = "labeler/blend", truth: str = "finetuned") -> None:
        self.bank, self.labeler, self.truth = bank, labeler, truth

    def check(self, config: Config) -> None:
        """The bank must be there, and the names known."""
        if not Path(self.bank).is_file():
            raise ConfigError(f"job.bank: there is no {self.bank}. Measure it first: experiment=bank")
        for key, value, known in (("labeler", self.labeler, tuple(LABELERS)), ("truth", self.truth, MOMENTS)):
            if value not in known:
                raise ConfigError(f"job.{key} must be out of {known}. Got {value!r}.")

    def run(self, config: Config, run_dir: RunDir, tracker: Tracker) -> dict[str, Any]:
        """Fit on all boards of the bank."""
        run_dir.add_input(self.bank)
        bank = LabelBank.load(self.bank)
        boards = boards_of(bank, MOMENTS)
        labeler = LABELERS[self.labeler]().fit(boards, self.truth)
        formatted = scope_of(boards[0]) == FORMATTED_PLANS
        folder = run_dir.path / "plan_labeler"
        folder = folder / FORMATTED if formatted else folder
        labeler.save(folder)
        Competence.of(boards).save(folder)
        # What a run can tell before it trains: damage after the repair.
        if not formatted:
            PlanDamage.fit(boards, "refitted").save(folder)
        card = {
            "labeler": self.labeler, "truth": self.truth, "boards": len(boards),
            "plans": int(sum(len(board.loss[self.truth]) for board in boards)),
            "families": sorted({board.family for board in boards}), "tasks": sorted({board.task for board in boards}),
            "fractions": sorted(np.unique(bank.plans["fraction"]).tolist()), "bank_sha256": hash_file(self.bank),
            "code": bank.about["code"], "libraries": bank.about["libraries"], "features_version": FEATURES_VERSION,
            "command": "python -m experiments.run experiment=pretrain",
            **({"plan_bits": bank.about["settings"]["plan_bits"]} if formatted else {}),
            "judged": "docs/who_predicts.md: the same labeler, fitted without the family and task it is judged on",
        }  # fmt: skip
        write_json(folder / CARD_FILE, card)
        run_dir.add_output(folder)
        return {"pretrain": {"boards": card["boards"], "plans": card["plans"]}}
