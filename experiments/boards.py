"""Boards, a network at a budget each, on which plans are compared, and what is compared on all of them."""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from autolabel.plan_race import PlanRace
from compress.errors import CompressError
from experiments.board_networks import BOARD_NETWORKS, BoardNetwork, zoo_network
from experiments.zoo import read_rows

# Whose favourites: the labeler's, a formula's, and those of both, as in the product.
LABELER, FORMULA, BOTH = "labeler", "refit_loss", "both"


@dataclass(frozen=True)
class Board:
    """One network at one budget.

    Attributes:
        network: name of a zoo network or out of `BOARD_NETWORKS`.
        family, task: of the network.
        fraction: of the dense MACs, or bytes.
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
            it saw nothing alike, or none.
        labeler: name out of `LABELERS`, fitted anew for each board without what the board's network is like.
        truth: moment that it learns.
        plan_bits: numbers of bits that plans store layers in, of boards of so many bytes; none compares plans that only
            remove, of so many MACs.
        methods: formulas with their allocators, see `Method`, and those of `experiments.board_runner`.
        race: how candidates are raced; its steps are for a fine-tuning of 128 steps, and scale with it.
        candidates: distinct formula plans that enter a race, those that its leader (labeler or formula) likes best.
        searches: independent searches, whose favourites enter the race.
        measured: plans that a search repairs and measures, for methods that do.
        seed: of the choice of boards.
    """

    zoo: str
    bank: str | None
    labeler: str
    methods: tuple[str, ...]
    race: PlanRace
    candidates: int
    searches: int
    measured: int = 64
    truth: str = "finetuned"
    seed: int = 0
    plan_bits: tuple[int, ...] = ()

    @property
    def learned(self) -> bool:
        """Whether any method asks for the labeler."""
        return any(method.startswith((f"{LABELER}/", f"{BOTH}/")) for method in self.methods)


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


def board_network(board: Board, settings: BoardSettings) -> BoardNetwork:
    """How the network of a board is loaded."""
    return zoo_network(settings.zoo, board.network) if board.zoo else BOARD_NETWORKS[board.network]
