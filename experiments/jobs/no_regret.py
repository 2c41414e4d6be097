"""The job that compares the learned plan with those of formulas on many boards."""

from collections.abc import Sequence
from dataclasses import asdict, fields
from pathlib import Path
from typing import Any

from autolabel.plan_oracle import MOMENTS
from autolabel.plan_race import PlanRace
from autolabel.pretrained import CARD_FILE, PRETRAINED
from compress.errors import CompressError
from compress.files import read_json, write_json
from experiments.board_networks import BOARD_NETWORKS
from experiments.board_runner import ALL_FINALS, CRITERIA, FINALS, SEARCHES
from experiments.boards import Board, BoardSettings, trained_boards, zoo_boards
from experiments.compared_methods import Method
from experiments.config import ConfigError
from experiments.formatted_boards import check_method
from experiments.no_regret import COLUMNS, run_boards
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
        zoo, bank: folder of the zoo and file of the label bank measured on it. `bank: null` judges the labeler that
            ships with the package, on trained networks whose data its zoo has nothing of; no zoo is needed then. Where
            no method asks for a labeler, none is needed.
        labeler, truth: name out of `LABELERS`, and the moment that it learns, out of `autolabel.plan_oracle.MOMENTS`.
        per_family: zoo networks of each family, each for another task.
        trained: networks that no zoo has, out of `BOARD_NETWORKS`.
        fractions, trained_fractions: of the dense MACs; zoo networks have one each, trained ones all.
        methods: formulas with their allocators (`"taylor/mac"`), and what a formula (`"refit_loss/search"`,
            `"refit_loss/race"`) or the labeler (`"labeler/search"`, `"labeler/race"`) likes best; `"both/search"` takes
            that favourite of the two that loses less after its repair, `"both/race"` is a race of favourites of both,
            `".../measured"` what loses least of `measured` plans that a search repairs, and
            `".../measured_race"` a race in which the best of these stand where others have favourites of searches.
            `"labeler/finals"` and its like train the last round of the race to the end, `"all/finals"` takes all
            methods that are not finals; the plan that ends best on validation examples is theirs.
        seeds: of data, repair and training; none measures the damage of the plans alone.
        race_steps, candidates, searches, measured: see `PlanRace` and `BoardSettings`.
        damages: whether the damage of the plans is predicted too, for which more plans of each board are repaired and
            measured.
        plan_bits: numbers of bits that layers may have; the fractions are then of the dense bytes, and methods those of
            `experiments.formatted_boards`. None compares plans that only remove.
        workers: processes.
    """

    name = "no_regret"
    reports = ("no_regret.*",)

    def __init__(
        self,
        zoo: str | None,
        bank: str | None,
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
        measured: int = 64,
        truth: str = "finetuned",
        damages: bool = True,
        plan_bits: Sequence[int] = (),
        workers: int = 2,
    ) -> None:
        self.zoo, self.per_family, self.trained = zoo, per_family, tuple(trained)
        self.fractions, self.trained_fractions = tuple(fractions), tuple(trained_fractions)
        self.seeds, self.damages, self.workers = tuple(seeds), damages, workers
        self.settings = BoardSettings(
            str(zoo or ""), None if bank is None else str(bank), labeler, tuple(methods), PlanRace(tuple(race_steps)),
            candidates, searches, measured, truth, plan_bits=tuple(plan_bits),
        )  # fmt: skip

    def check(self, config: Config) -> None:
        """Zoo and bank must be there, and the names known."""
        if self.per_family and (self.zoo is None or not (Path(self.zoo) / "networks").is_dir()):
            raise ConfigError(f"job.zoo: {self.zoo} is no zoo. Build it first: experiment=zoo")
        if self.settings.bank is not None and not Path(self.settings.bank).is_file():
            raise ConfigError(f"job.bank: there is no {self.settings.bank}. Measure it first: experiment=bank")
        if self.settings.labeler not in LABELERS:
            raise ConfigError(f"job.labeler must be out of {tuple(LABELERS)}. Got {self.settings.labeler!r}.")
        if self.settings.truth not in MOMENTS:
            raise ConfigError(f"job.truth must be out of {MOMENTS}. Got {self.settings.truth!r}.")
        if self.settings.searches < 1 or self.settings.candidates < 0:
            found = self.settings.searches, self.settings.candidates
            raise ConfigError(f"job.searches must be at least 1, and job.candidates at least 0. Got {found}.")
        if self.settings.measured < 2:
            raise ConfigError(f"job.measured must be at least 2. Got {self.settings.measured}.")
        if self.settings.plan_bits:
            self._check_formatted()
            return
        methods = self.settings.methods
        for name in set(methods) - {*SEARCHES, ALL_FINALS}:
            if name in FINALS:
                if FINALS[name] not in methods:
                    raise ConfigError(f"job.methods: {name!r} trains the last round of {FINALS[name]!r}: name it too.")
                continue
            method = Method(name)
            if method.source not in CRITERIA or method.allocator == "search":
                raise ConfigError(f"job.methods: no scores are called {method.source!r}. Known: {sorted(CRITERIA)}.")
        try:
            boards = trained_boards(self.trained, self.trained_fractions)
        except CompressError as error:
            raise ConfigError(f"job.trained: {error}") from error
        if self.settings.bank is None and self.settings.learned:
            self._check_released(boards)
        elif self.settings.bank is None and self.damages:
            raise ConfigError("job.damages needs job.bank, or a labeler's method in job.methods. Or job.damages=false.")

    def _check_formatted(self) -> None:
        """Methods of plans that also store layers in few bits; their labeler is fitted anew for each board."""
        try:
            for name in self.settings.methods:
                check_method(name, self.settings.plan_bits)
            trained_boards(self.trained, self.trained_fractions)
        except CompressError as error:
            raise ConfigError(f"job.methods or job.trained: {error}") from error
        if self.damages:
            raise ConfigError("job.damages predicts the damage of plans that only remove. Set job.damages=false.")
        if self.settings.bank is None and self.settings.learned:
            raise ConfigError(
                "job.bank is needed, of plans in few bits, for a labeler that knows bits and saw nothing like a board: "
                "experiment=bank 'job.plan_bits=[2,3,4,6,8]'"
            )

    def _check_released(self, boards: Sequence[Board]) -> None:
        """The labeler that ships with the package is the one that is asked for, and saw nothing like the boards."""
        card = read_json(PRETRAINED / CARD_FILE)
        for name in ("labeler", "truth"):
            if getattr(self.settings, name) != card[name]:
                raise ConfigError(f"job.{name} must be {card[name]!r}, as it ships, or a bank be given: job.bank=FILE")
        if self.per_family:
            raise ConfigError("job.per_family must be 0 without a bank: the labeler that ships saw the whole zoo.")
        for board in boards:
            if BOARD_NETWORKS[board.network].shares_data_with:
                raise ConfigError(
                    f"job.trained: the labeler that ships saw data of {board.network!r}. Leave it out, or give a bank."
                )

    def run(self, config: Config, run_dir: RunDir, tracker: Tracker) -> dict[str, Any]:
        """Measure what is not measured yet."""
        if self.settings.bank is not None:
            run_dir.add_input(self.settings.bank)
        boards = zoo_boards(self.zoo, self.per_family, self.fractions) if self.per_family and self.zoo else []
        boards += trained_boards(self.trained, self.trained_fractions)
        with progress("comparing plans") as on_row:
            rows = run_boards(boards, self.seeds, self.settings, run_dir.path, self.workers, on_row)
        write_raw(run_dir, "no_regret.csv", COLUMNS, rows)
        found = summarize(rows)
        if self.damages:
            with progress("predicting damage") as on_board:
                damages = judge_boards(boards, self.settings, run_dir.path, self.workers, on_board)
            write_raw(run_dir, "plan_damage.csv", [field.name for field in fields(DamageRow)], map(asdict, damages))
            found["plan_damage"] = summarize_damages(damages)
        write_json(run_dir.file("summary.json"), found)
        return {"no_regret": found["overall"]}
