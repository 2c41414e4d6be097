"""The job that fits a plan labeler on a whole label bank, for the package or for `plan_labeler=FOLDER`."""

import shutil
from pathlib import Path
from typing import Any

import numpy as np

from autolabel.competence import Competence
from autolabel.label_bank import LabelBank
from autolabel.plan_board import AFTER_REPAIR, boards_of
from autolabel.plan_damage import PlanDamage
from autolabel.plan_oracle import MOMENTS
from autolabel.pretrained import CARD_FILE, load_plan_labeler
from compress.files import read_json, write_json
from experiments.config import ConfigError
from experiments.manifest import hash_file
from experiments.plan_labelers import LABELERS
from experiments.run_dir import RunDir
from experiments.settings import Config
from experiments.tracker import Tracker


class PretrainJob:
    """Writes `plan_labeler/` into the run folder, with what predicts damage in nats, and its card.

    Args:
        bank: file of a label bank that `experiment=bank` measured.
        labeler: name out of `experiments.plan_labelers.LABELERS`, the best that `experiment=who_predicts` found.
        truth: what it learns from, see `PlanBoard.target`.
        keep: folder of a plan labeler that is copied instead of fitting one: only what predicts damage is learned anew.
    """

    name = "pretrain"
    reports = ("pretrain.*",)

    def __init__(
        self, bank: str, labeler: str = "labeler/blend", truth: str = "finetuned", keep: str | None = None
    ) -> None:
        self.bank, self.labeler, self.truth, self.keep = bank, labeler, truth, keep

    def check(self, config: Config) -> None:
        """The bank must be there, and the names known."""
        if self.keep is not None and not (Path(self.keep) / CARD_FILE).is_file():
            raise ConfigError(f"job.keep: {self.keep} holds no {CARD_FILE}. Name the folder of a plan labeler.")
        if not Path(self.bank).is_file():
            raise ConfigError(f"job.bank: there is no {self.bank}. Measure it first: experiment=bank")
        for key, value, known in (
            ("labeler", self.labeler, tuple(LABELERS)),
            ("truth", self.truth, (*MOMENTS, AFTER_REPAIR)),
        ):
            if value not in known:
                raise ConfigError(f"job.{key} must be out of {known}. Got {value!r}.")

    def run(self, config: Config, run_dir: RunDir, tracker: Tracker) -> dict[str, Any]:
        """Fit on all boards of the bank."""
        run_dir.add_input(self.bank)
        bank = LabelBank.load(self.bank)
        boards = boards_of(bank, MOMENTS)
        told = {
            "boards": len(boards), "plans": int(sum(len(board.summary.plan_values) for board in boards)),
            "bank_sha256": hash_file(self.bank), "code": bank.about["code"],
        }  # fmt: skip
        folder = run_dir.path / "plan_labeler"
        if self.keep is not None:
            load_plan_labeler(self.keep)
            shutil.copytree(self.keep, folder, dirs_exist_ok=True)
            card = read_json(folder / CARD_FILE)
        else:
            LABELERS[self.labeler]().fit(boards, self.truth).save(folder)
            Competence.of(boards).save(folder)
            card = {
                "labeler": self.labeler, "truth": self.truth, **told,
                "families": sorted({board.family for board in boards}),
                "tasks": sorted({board.task for board in boards}),
                "fractions": sorted(np.unique(bank.plans["fraction"]).tolist()),
            }  # fmt: skip
        # What a run can tell before it trains: damage after the repair.
        PlanDamage.fit(boards, "refitted").save(folder)
        write_json(folder / CARD_FILE, {**card, "plan_damage": told})
        run_dir.add_output(folder)
        return {"pretrain": {"boards": told["boards"], "plans": told["plans"]}}
