"""Plans of formulas and of the labeler on many boards: same budget, same repair, same fine-tuning, several seeds."""

import hashlib
import json
import logging
from collections.abc import Callable, Mapping, MutableMapping, Sequence
from dataclasses import asdict, dataclass, replace
from itertools import count, takewhile
from pathlib import Path
from typing import Any

import numpy as np
import torch

from autolabel.label_bank import LabelBank
from autolabel.plan_board import PlanBoard, boards_of
from autolabel.plan_formula import PlanFormula
from autolabel.plan_labeler import PlanLabeler
from autolabel.plan_labeler_files import INDEX_FILE
from autolabel.plan_oracle import MOMENTS
from autolabel.plan_race import PlanRace, brief_training, choose_entrants
from autolabel.plan_sampling import PlanDraw
from autolabel.plan_search import PlanSearch
from autolabel.plan_summary import FEATURES_VERSION
from autolabel.pretrained import CARD_FILE, PRETRAINED, load_plan_labeler
from autolabel.row_log import RowLog
from compress.allocation import allocate
from compress.budget import Budget
from compress.criteria import (
    FisherCriterion,
    MagnitudeCriterion,
    RandomCriterion,
    ReconstructionCriterion,
    SecondOrderCriterion,
    TaylorCriterion,
)
from compress.criterion import score_units
from compress.errors import CompressError
from compress.files import read_json, write_json
from compress.scores import Scores
from compress.task import evaluate
from experiments.board_networks import BOARD_NETWORKS, BoardNetwork, zoo_network
from experiments.compared_methods import Method
from experiments.manifest import describe_code, hash_file, library_versions
from experiments.plan_labelers import LABELERS
from experiments.regret import DENSE
from experiments.seeding import derive_seed
from experiments.subject import Subject
from experiments.who_predicts import assert_disjoint
from experiments.worker_pool import run_pieces
from experiments.zoo import read_row, read_rows

log = logging.getLogger(__name__)
COLUMNS = ("board", "network", "task", "budget", "method", "seed", "metric", "higher_is_better",
           "label_cost_forward_macs")  # fmt: skip
SEARCH = "labeler/search"
RACE = "labeler/race"
OURS = (SEARCH, RACE)
# The same search and the same race, led by a formula.
FORMULA_SEARCH = "refit_loss/search"
FORMULA_RACE = "refit_loss/race"
SEARCHES = (SEARCH, RACE, FORMULA_SEARCH, FORMULA_RACE)
# Of plans that are trained to the end, the one that loses least on validation examples: of those that came into the
# last round of a race, and of all that are compared.
FINALS: Mapping[str, str] = {"refit_loss/finals": FORMULA_RACE, "labeler/finals": RACE}
ALL_FINALS = "all/finals"
CRITERIA: Mapping[str, Callable[[int], Any]] = {
    "magnitude": lambda seed: MagnitudeCriterion(),
    "taylor": lambda seed: TaylorCriterion(),
    "fisher": lambda seed: FisherCriterion(),
    "second_order": lambda seed: SecondOrderCriterion(),
    "reconstruction": lambda seed: ReconstructionCriterion(),
    "random": lambda seed: RandomCriterion(seed=seed),
}
_SEARCH = PlanSearch(rounds=8, children=48, reference=40)
# Formulas that need no data.
_FREE = ("magnitude", "random")


@dataclass(frozen=True)
class Board:
    """One network at one budget.

    Attributes:
        network: name of a zoo network or out of `BOARD_NETWORKS`.
        family, task: of the network.
        fraction: of the dense MACs.
        zoo: whether it is a zoo network.
    """

    network: str
    family: str
    task: str
    fraction: float
    zoo: bool

    @property
    def name(self) -> str:
        """File and table name."""
        return f"{self.network}@{self.fraction}"


@dataclass(frozen=True)
class BoardSettings:
    """What is compared on every board.

    Attributes:
        zoo, bank: folder and file. Without a bank the labeler that ships with the package is judged, on boards of which
            it saw nothing alike.
        labeler: name out of `LABELERS`, fitted anew for each board without what the board's network is like.
        methods: formulas with their allocators, see `Method`, `SEARCHES`, and out of `FINALS` and `ALL_FINALS`.
        race: how candidates are raced; its steps are for a fine-tuning of 128 steps, and scale with it.
        candidates: distinct formula plans that enter a race, those that its leader (labeler or formula) likes best.
        searches: independent searches, whose favourites enter the race.
        seed: of the choice of boards.
    """

    zoo: str
    bank: str | None
    labeler: str
    methods: tuple[str, ...]
    race: PlanRace
    candidates: int
    searches: int
    seed: int = 0


def zoo_boards(zoo: str | Path, per_family: int, fractions: Sequence[float]) -> list[Board]:
    """Networks of every family on as many tasks as asked for, each at one budget, the fractions in turn."""
    found: list[Board] = []
    rows = read_rows(zoo)
    for family in sorted({row["family"] for row in rows}):
        tasks = sorted({row["task"] for row in rows if row["family"] == family})
        # Each family begins with another task, so that all tasks are met alike.
        start = len(found) // max(per_family, 1)
        for i in range(min(per_family, len(tasks))):
            task = tasks[(start + i) % len(tasks)]
            own = [row for row in rows if row["family"] == family and row["task"] == task]
            best = max(own, key=lambda row: row["test_accuracy_percent"])
            found.append(Board(best["name"], family, task, fractions[len(found) % len(fractions)], True))
    return found


def trained_boards(names: Sequence[str], fractions: Sequence[float]) -> list[Board]:
    """Networks that no zoo has, each at all fractions."""
    unknown = [name for name in names if name not in BOARD_NETWORKS]
    if unknown:
        raise CompressError(f"No board network is called {unknown[0]!r}. Known: {', '.join(BOARD_NETWORKS)}.")
    return [
        Board(name, BOARD_NETWORKS[name].family, BOARD_NETWORKS[name].task, fraction, False)
        for name in names
        for fraction in fractions
    ]


def fit_for(board: Board, settings: BoardSettings, folder: Path) -> Path:
    """The folder of a labeler that saw nothing like this board; fitted if it is not there yet.

    For a zoo network its family and its task are left out; for another network, tasks with the same data.

    Raises:
        CompressError: without a bank, if the labeler that ships has learned from what must be left out.
    """
    families, hidden_tasks = _hidden(board)
    if settings.bank is None:
        if families or hidden_tasks:
            raise CompressError(
                f"The labeler that ships with the package saw networks like {board.network}'s "
                f"({', '.join([*families, *hidden_tasks])}): judged on it, it must be fitted without them, from a bank."
            )
        return PRETRAINED
    made = {"bank": bank_hash(settings), "labeler": settings.labeler, "features": FEATURES_VERSION}
    digest = hashlib.sha256(json.dumps(made, sort_keys=True).encode()).hexdigest()[:12]
    path = folder / "labelers" / digest / ("-".join([*families, *hidden_tasks]) or "all")
    if (path / INDEX_FILE).exists():
        return path
    boards = boards_of(LabelBank.load(settings.bank), MOMENTS)
    seen = unlike(board, boards)
    if board.zoo:
        assert_disjoint(seen, [b for b in boards if b.network == board.network], "family_and_task")
    LABELERS[settings.labeler]().fit(seen, "finetuned").save(path)
    return path


def bank_hash(settings: BoardSettings) -> str:
    """SHA-256 of the bank that the labelers are fitted on: of the settings, or of the labeler that ships."""
    if settings.bank is None:
        return str(read_json(PRETRAINED / CARD_FILE)["bank_sha256"])
    return hash_file(settings.bank)


def unlike(board: Board, boards: Sequence[PlanBoard]) -> list[PlanBoard]:
    """What may be learned from before this board is judged."""
    families, tasks = _hidden(board)
    return [b for b in boards if b.family not in families and b.task not in tasks and b.network != board.network]


def _hidden(board: Board) -> tuple[tuple[str, ...], tuple[str, ...]]:
    """Families and tasks."""
    if board.zoo:
        return (board.family,), (board.task,)
    return (), tuple(BOARD_NETWORKS[board.network].shares_data_with)


def board_network(board: Board, settings: BoardSettings) -> BoardNetwork:
    """How the network of a board is loaded."""
    return zoo_network(settings.zoo, board.network) if board.zoo else BOARD_NETWORKS[board.network]


def board_key(board: Board, settings: BoardSettings) -> dict[str, Any]:
    """All that the plans of a board and what becomes of them depend on, as JSON gives it back."""
    return _plain({
        "board": asdict(board), "settings": {**asdict(settings), "zoo": "", "bank": bank_hash(settings)},
        "search": asdict(_SEARCH), "repair": asdict(board_network(board, settings).repair),
        "features": FEATURES_VERSION,
        "weights": read_row(settings.zoo, board.network)["weights_sha256"] if board.zoo else "",
    })  # fmt: skip


def run_board(board: Board, seed: int, settings: BoardSettings, folder: str) -> list[dict[str, Any]]:
    """Rows of all methods of one board and seed; stored, and read again the next time."""
    path = Path(folder) / "rows" / f"{board.name}_{seed}.json"
    network, key = board_network(board, settings), board_key(board, settings)
    if path.exists():
        found = read_json(path)
        if found.get("key") == key:
            return found["rows"]
    torch.use_deterministic_algorithms(True, warn_only=True)
    labeler = load_plan_labeler(fit_for(board, settings, Path(folder)))
    digest = hashlib.sha256(json.dumps(key, sort_keys=True).encode()).hexdigest()
    done = RowLog(path.with_name(f"{path.stem}.{digest[:12]}.jsonl"), digest, (), ())
    rows = BoardRunner(board, network, seed, settings, labeler, Path(folder), done.notes).rows()
    made = {"commit": str(describe_code().get("commit", "")), "versions": library_versions()}
    write_json(path, {"key": key, "made": made, "rows": rows})
    done.path.unlink()
    return rows


def run_boards(
    boards: Sequence[Board], seeds: Sequence[int], settings: BoardSettings, folder: Path, workers: int,
    on_row: Callable[[int, int], None] | None = None,
) -> list[dict[str, Any]]:  # fmt: skip
    """Rows of all boards and seeds, what is there being kept."""
    for board in boards:
        fit_for(board, settings, folder)
    pieces = [(board, seed, settings, str(folder)) for seed in seeds for board in boards]
    found: dict[int, list[dict[str, Any]]] = {}
    for number, rows in run_pieces(run_board, pieces, workers):
        found[number] = rows
        log.info("%s, seed %d: done", pieces[number][0].name, pieces[number][1])
        if on_row is not None:
            on_row(len(found), len(pieces))
    return [row for number in sorted(found) for row in found[number]]


class BoardRunner:
    """One board with one seed.

    Args:
        board, network, seed, settings, labeler: what is compared.
        folder: of downloaded and trained networks.
        done: plans that were found and trainings that were judged before a kill, and from now on.
    """

    def __init__(
        self, board: Board, network: BoardNetwork, seed: int, settings: BoardSettings, labeler: PlanLabeler,
        folder: Path, done: MutableMapping[str, list[float]] | None = None,
    ) -> None:  # fmt: skip
        self.board, self.seed, self.settings, self.labeler = board, seed, settings, labeler
        self._done = {} if done is None else done
        self._scores: dict[str, Scores] = {}
        model, data, task = network.load(folder / "networks")
        repair = network.repair
        self.subject = Subject(model, data, repair, derive_seed(board.name, seed), task, deal=seed)
        draw = PlanDraw(self.subject.structure.units, self.subject.costs, "macs", repair.constraints)
        least = draw.cost(draw.strictest()) / draw.dense
        # Where most of a network must stay (a recurrent layer), the fraction is of what may go.
        small = board.fraction < 1.1 * least
        self.fraction = least + board.fraction * (1 - least) if small else board.fraction

    def rows(self) -> list[dict[str, Any]]:
        """One row for each method, and one of the dense network."""
        bench = self.subject.bench
        dense = evaluate(self.subject.structure.traced.module, bench.task, bench.judged["test"])[0]
        found = [self._row(DENSE, dense, 0.0)]
        plans = self.plans()
        for name, (mask, macs) in plans.items():
            found.append(self._row(name, self._trained(mask, name)[0], macs))
        for name in self.settings.methods:
            if name in FINALS:
                found.append(self._final(name, self._finalists(FINALS[name]), plans[FINALS[name]][1]))
            elif name == ALL_FINALS:
                found.append(self._final(name, [mask for mask, _ in plans.values()], sum(m for _, m in plans.values())))
        return found

    def plans(self) -> dict[str, tuple[np.ndarray, float]]:
        """Method -> `(n_units,)` bool, what it removes, and the MACs that choosing it took."""
        names = [name for name in self.settings.methods if name not in (*SEARCHES, *FINALS, ALL_FINALS)]
        formulas = {name: self._formula(name) for name in names}
        found = {name: (mask, self._feature_macs(name)) for name, mask in formulas.items()}
        found |= self._searched(PlanFormula(), (FORMULA_SEARCH, FORMULA_RACE), formulas)
        return found | self._searched(self.labeler, (SEARCH, RACE), formulas)

    def _trained(self, mask: np.ndarray, name: str) -> tuple[float, float, float]:
        """Metric on test examples, loss on validation examples and MACs, of a plan that is repaired and fine-tuned."""
        key = f"finetuned {hashlib.sha256(mask.tobytes()).hexdigest()}"
        if key not in self._done:
            (outcome,) = replace(self.subject.oracle, moments=("finetuned",)).measure(self.subject.bench, mask)
            self._done[key] = [outcome.metric["test"], outcome.loss["validation"], outcome.training_macs]
            log.info("%s, seed %d: %s ends at %.2f", self.board.name, self.seed, name, outcome.metric["test"])
        metric, loss, macs = self._done[key]
        return metric, loss, macs

    def _final(self, name: str, masks: Sequence[np.ndarray], macs: float) -> dict[str, Any]:
        """Row of the plan that ends best on validation examples; `macs` were spent before these trainings."""
        ends = {mask.tobytes(): self._trained(mask, name) for mask in masks}
        best = min(ends.values(), key=lambda end: (not np.isfinite(end[1]), end[1]))
        # The training of the winner is the one that every method gets.
        return self._row(name, best[0], macs + sum(end[2] for end in ends.values()) - best[2])

    def _row(self, method: str, metric: float, macs: float) -> dict[str, Any]:
        board = self.board
        return {
            "board": board.name, "network": board.network, "task": board.task, "budget": f"macs={self.fraction:.4f}",
            "method": method, "seed": self.seed, "metric": round(metric, 4),
            "higher_is_better": self.subject.task.higher_is_better, "label_cost_forward_macs": round(macs),
        }  # fmt: skip

    def _feature_macs(self, name: str) -> float:
        """What the scores of a formula cost."""
        return 0.0 if Method(name).source in _FREE else self.subject.statistics.forward_macs

    def _formula(self, name: str) -> np.ndarray:
        """`(n_units,)` bool: what a formula removes."""
        subject, method = self.subject, Method(name)
        if method.source not in self._scores:
            criterion = CRITERIA[method.source](self.seed)
            self._scores[method.source] = score_units(subject.structure, criterion, subject.statistics)
        scores = self._scores[method.source]
        if method.allocator != "threshold":
            # A criterion that only orders is spent as if it were damage: that is what comparing it per MAC means.
            scores = replace(scores, scale="nats")
        plan = allocate(
            subject.structure.units, scores, subject.costs, Budget(macs=self.fraction), allocator=method.allocator,
            constraints=subject.settings.constraints,
        )  # fmt: skip
        return plan.removed_mask(subject.structure.units)

    def _searched(
        self, labeler: PlanLabeler | PlanFormula, names: tuple[str, str], formulas: Mapping[str, np.ndarray]
    ) -> dict[str, tuple[np.ndarray, float]]:
        """The favourite of several searches, and the winner among their favourites and the formulas' liked best."""
        subject, settings = self.subject, self.settings
        wanted = set(names) & set(settings.methods)
        if wanted <= self._done.keys():
            return {name: self._noted(name) for name in names if name in wanted}
        search, race = names
        found = []
        for number in range(settings.searches):
            own = replace(_SEARCH, seed=derive_seed(f"{self.board.name}/{number}", self.seed))
            limits = subject.settings.constraints
            found.append(own.run(subject.summarizer, labeler, "macs", self.fraction, limits).removed)
        # All of them compared with one another: each search knows its own random plans only.
        entrants = choose_entrants(labeler, subject.summarizer, found, list(formulas.values()), settings.candidates)
        features = subject.statistics.forward_macs + subject.summarizer.forward_macs
        plans = {search: (entrants[0], features)}
        if race in settings.methods:
            brief = settings.race.scaled(subject.settings.steps / 128)
            result = brief.run(brief_training(subject.bench, subject.oracle), entrants)
            plans[race] = entrants[result.winner], features + result.forward_macs
            last = np.flatnonzero(np.isfinite(result.losses[-1])) if result.losses else []
            for number, i in enumerate(last if len(last) else [result.winner]):
                self._note(f"{race} finalist {number}", entrants[i], plans[race][1])
        for name in sorted(wanted):
            self._note(name, *plans[name])
        return {name: plan for name, plan in plans.items() if name in wanted}

    def _finalists(self, race: str) -> list[np.ndarray]:
        """Plans that came into the last round."""
        names = (f"{race} finalist {number}" for number in count())
        return [self._noted(name)[0] for name in takewhile(lambda name: name in self._done, names)]

    def _note(self, name: str, mask: np.ndarray, macs: float) -> None:
        """Keep a plan that was found, and the MACs that it took."""
        self._done[name] = [float(macs), *map(float, np.flatnonzero(mask))]

    def _noted(self, name: str) -> tuple[np.ndarray, float]:
        """A plan that was found before, and the MACs that it took."""
        macs, *removed = self._done[name]
        mask = np.zeros(len(self.subject.structure.units), dtype=bool)
        mask[np.asarray(removed, dtype=np.int64)] = True
        return mask, macs


def _plain(value: Any) -> Any:
    """As JSON gives it back."""
    if isinstance(value, Mapping):
        return {str(k): _plain(v) for k, v in value.items()}
    return [_plain(v) for v in value] if isinstance(value, (list, tuple)) else value
