"""The job that compares the learned plan with those of formulas on many boards."""

from collections.abc import Sequence
from dataclasses import asdict, fields
from pathlib import Path
from typing import Any

from autolabel.plan_race import PlanRace
from compress.errors import CompressError
from compress.files import write_json
from experiments.compared_methods import Method
from experiments.config import ConfigError
from experiments.no_regret import (
    COLUMNS,
    CRITERIA,
    SEARCHES,
    BoardSettings,
    run_boards,
    trained_boards,
    zoo_boards,
)
from experiments.plan_damages import DamageRow, judge_boards, summarize_damages
from experiments.plan_labelers import LABELERS
from experiments.progress import progress
from experiments.raw_table import write_raw
from experiments.regret import summarize
from experiments.run_dir import RunDir
from experiments.settings import Config
from experiments.tracker import Tracker


class NoRegretJob:
    """Writes `no_regret.csv` (a row for each board, method and seed), `plan_damage.csv` (predicted and realised damage
    of the plans) and `summary.json`; a killed run goes on.

    Args:
        zoo, bank: folder of the zoo and file of the label bank measured on it.
        labeler: name out of `LABELERS`.
        per_family: zoo networks of each family, each for another task.
        trained: networks that no zoo has, out of `BOARD_NETWORKS`.
        fractions, trained_fractions: of the dense MACs; zoo networks have one each, trained ones all.
        methods: formulas with their allocators (`"taylor/mac"`), and what a formula (`"refit_loss/search"`,
            `"refit_loss/race"`) or the labeler (`"labeler/search"`, `"labeler/race"`) leads.
        seeds: of data, repair and training.
        race_steps, candidates, searches: see `PlanRace` and `BoardSettings`.
        workers: processes.
    """

    name = "no_regret"

    def __init__(
        self,
        zoo: str,
        bank: str,
        methods: Sequence[str],
        labeler: str = "labeler/gbdt",
        per_family: int = 3,
        trained: Sequence[str] = (),
        fractions: Sequence[float] = (0.35, 0.2, 0.1),
        trained_fractions: Sequence[float] = (0.5, 0.3),
        seeds: Sequence[int] = (0,),
        race_steps: Sequence[int] = (16, 48),
        candidates: int = 5,
        searches: int = 3,
        workers: int = 2,
    ) -> None:
        self.zoo, self.per_family, self.trained = zoo, per_family, tuple(trained)
        self.fractions, self.trained_fractions = tuple(fractions), tuple(trained_fractions)
        self.seeds, self.workers = tuple(seeds), workers
        self.settings = BoardSettings(
            str(zoo), str(bank), labeler, tuple(methods), PlanRace(tuple(race_steps)), candidates, searches
        )

    def check(self, config: Config) -> None:
        """Zoo and bank must be there, and the names known."""
        if not (Path(self.zoo) / "networks").is_dir():
            raise ConfigError(f"job.zoo: {self.zoo} is no zoo. Build it first: experiment=zoo")
        if not Path(self.settings.bank).is_file():
            raise ConfigError(f"job.bank: there is no {self.settings.bank}. Measure it first: experiment=bank")
        if self.settings.labeler not in LABELERS:
            raise ConfigError(f"job.labeler must be out of {tuple(LABELERS)}. Got {self.settings.labeler!r}.")
        for name in self.settings.methods:
            method = Method(name)
            if name not in SEARCHES and (method.source not in CRITERIA or method.allocator == "search"):
                raise ConfigError(f"job.methods: no scores are called {method.source!r}. Known: {sorted(CRITERIA)}.")
        try:
            trained_boards(self.trained, self.trained_fractions)
        except CompressError as error:
            raise ConfigError(f"job.trained: {error}") from error

    def run(self, config: Config, run_dir: RunDir, tracker: Tracker) -> dict[str, Any]:
        """Measure what is not measured yet."""
        run_dir.add_input(self.settings.bank)
        boards = zoo_boards(self.zoo, self.per_family, self.fractions) if self.per_family else []
        boards += trained_boards(self.trained, self.trained_fractions)
        with progress("comparing plans") as on_row:
            rows = run_boards(boards, self.seeds, self.settings, run_dir.path, self.workers, on_row)
        write_raw(run_dir, "no_regret.csv", COLUMNS, rows)
        with progress("predicting damage") as on_board:
            damages = judge_boards(boards, self.settings, run_dir.path, self.workers, on_board)
        write_raw(run_dir, "plan_damage.csv", [field.name for field in fields(DamageRow)], map(asdict, damages))
        found = {**summarize(rows), "plan_damage": summarize_damages(damages)}
        write_json(run_dir.file("summary.json"), found)
        return {"no_regret": found["overall"]}
