"""Plans of formulas and of the labeler on many boards: same budget, same repair, same fine-tuning, several seeds."""

import hashlib
import json
import logging
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

import torch

from autolabel.competence import Competence
from autolabel.label_bank import LabelBank
from autolabel.plan_board import PlanBoard, boards_of
from autolabel.plan_labeler import PlanLabeler
from autolabel.plan_labeler_files import INDEX_FILE
from autolabel.plan_search import MEASURED_VERSION
from autolabel.plan_summary import FEATURES_VERSION
from autolabel.pretrained import CARD_FILE, PRETRAINED, load_competence, load_plan_labeler
from autolabel.row_log import RowLog
from compress.errors import CompressError
from compress.files import read_json, write_json
from experiments.board_networks import BOARD_NETWORKS
from experiments.board_runner import SEARCH, BoardRunner
from experiments.boards import Board, BoardSettings, board_network
from experiments.formatted_boards import FormattedBoardRunner
from experiments.manifest import describe_code, hash_file, library_versions
from experiments.plan_labelers import LABELERS
from experiments.who_predicts import assert_disjoint
from experiments.worker_pool import run_pieces
from experiments.zoo import read_row

log = logging.getLogger(__name__)
COLUMNS = ("board", "network", "task", "budget", "method", "seed", "metric", "higher_is_better",
           "label_cost_forward_macs", "competence")  # fmt: skip


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
    made = {"bank": bank_hash(settings), "labeler": settings.labeler, "truth": settings.truth,
            "features": FEATURES_VERSION}  # fmt: skip
    digest = hashlib.sha256(json.dumps(made, sort_keys=True).encode()).hexdigest()[:12]
    path = folder / "labelers" / digest / ("-".join([*families, *hidden_tasks]) or "all")
    if (path / INDEX_FILE).exists():
        return path
    boards = boards_of(LabelBank.load(settings.bank), (settings.truth,))
    seen = unlike(board, boards)
    if board.zoo:
        assert_disjoint(seen, [b for b in boards if b.network == board.network], "family_and_task")
    path.mkdir(parents=True, exist_ok=True)
    # First: where there is a labeler, all of it is there.
    Competence.of(seen).save(path)
    LABELERS[settings.labeler]().fit(seen, settings.truth).save(path)
    return path


def fitted_judges(
    board: Board, settings: BoardSettings, folder: Path
) -> tuple[PlanLabeler, Competence] | tuple[None, None]:
    """The labeler of `fit_for` and the networks that it knows, where a method asks for it."""
    if not settings.learned:
        return None, None
    labeler = fit_for(board, settings, folder)
    return load_plan_labeler(labeler), load_competence(labeler)


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


def board_key(board: Board, settings: BoardSettings) -> dict[str, Any]:
    """All that the plans of a board and what becomes of them depend on, as JSON gives it back."""
    own = {**asdict(settings), "zoo": "", "bank": bank_hash(settings) if settings.learned or settings.bank else ""}
    if not settings.plan_bits:
        del own["plan_bits"]
    if any("/measured" in method for method in settings.methods):
        own["measured_search"] = MEASURED_VERSION
    else:
        del own["measured"]
    return _plain({
        "board": asdict(board), "settings": own,
        "search": asdict(SEARCH), "repair": asdict(board_network(board, settings).repair),
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
    judges = fitted_judges(board, settings, Path(folder))
    digest = hashlib.sha256(json.dumps(key, sort_keys=True).encode()).hexdigest()
    done = RowLog(path.with_name(f"{path.stem}.{digest[:12]}.jsonl"), digest, (), ())
    runner = FormattedBoardRunner if settings.plan_bits else BoardRunner
    rows = runner(board, network, seed, settings, *judges, Path(folder), done.notes).rows()
    made = {"commit": str(describe_code().get("commit", "")), "versions": library_versions()}
    write_json(path, {"key": key, "made": made, "rows": rows})
    done.path.unlink()
    return rows


def run_boards(
    boards: Sequence[Board], seeds: Sequence[int], settings: BoardSettings, folder: Path, workers: int,
    on_row: Callable[[int, int], None] | None = None,
) -> list[dict[str, Any]]:  # fmt: skip
    """Rows of all boards and seeds, what is there being kept."""
    for board in boards if settings.learned else ():
        fit_for(board, settings, folder)
    pieces = [(board, seed, settings, str(folder)) for seed in seeds for board in boards]
    found: dict[int, list[dict[str, Any]]] = {}
    for number, rows in run_pieces(run_board, pieces, workers):
        found[number] = rows
        log.info("%s, seed %d: done", pieces[number][0].name, pieces[number][1])
        if on_row is not None:
            on_row(len(found), len(pieces))
    return [row for number in sorted(found) for row in found[number]]


def _plain(value: Any) -> Any:
    """As JSON gives it back."""
    if isinstance(value, Mapping):
        return {str(k): _plain(v) for k, v in value.items()}
    return [_plain(v) for v in value] if isinstance(value, (list, tuple)) else value
