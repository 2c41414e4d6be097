"""What runs on one board with one seed have in common, whatever plans they compare."""

from collections.abc import MutableMapping
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np

from autolabel.competence import Competence
from autolabel.plan_labeler import PlanLabeler
from autolabel.plan_sampling import PlanDraw
from compress.errors import CompressError
from compress.task import evaluate
from experiments.board_networks import BoardNetwork
from experiments.boards import LABELER, Board, BoardSettings
from experiments.regret import DENSE
from experiments.seeding import derive_seed
from experiments.subject import Subject


class BoardRun:
    """One board with one seed: its network, its size, and rows of the table.

    Args:
        board, network, seed, settings: what is compared.
        labeler, competence: who leads, and which networks it knows; None where no method asks for it.
        folder: of downloaded and trained networks.
        done: what was found and judged before a kill, and from now on.

    Attributes:
        size: what the board bounds.
        draw: plans of that size.
        verdict: whether the labeler knows such networks.
    """

    size = "macs"

    def __init__(
        self, board: Board, network: BoardNetwork, seed: int, settings: BoardSettings, labeler: PlanLabeler | None,
        competence: Competence | None, folder: Path, done: MutableMapping[str, list[float]] | None = None,
    ) -> None:  # fmt: skip
        self.board, self.seed, self.settings, self._known_labeler = board, seed, settings, labeler
        self._done = {} if done is None else done
        model, data, task = network.load(folder / "networks")
        self.subject = Subject(model, data, network.repair, derive_seed(board.name, seed), task, deal=seed)
        structure, self._limits = self.subject.structure, self.subject.settings.constraints
        self.draw = PlanDraw(structure.units, self.subject.costs, self.size, self._limits)
        self.nothing = np.zeros(len(structure.units), dtype=bool)
        self.verdict = competence and competence.judge(self.subject.summarizer.summarize(self.nothing[None]))

    @cached_property
    def fraction(self) -> float:
        """Of the dense cost, see `PlanDraw.attainable`."""
        return self.draw.attainable(self.board.fraction)

    @property
    def labeler(self) -> PlanLabeler:
        """The labeler. Raises CompressError if there is none."""
        if self._known_labeler is None:
            raise CompressError(f"A labeler is needed for the plans of {LABELER!r}.")
        return self._known_labeler

    @property
    def _statistics_macs(self) -> float:
        """MACs of the statistics that a search needs."""
        return self.subject.statistics.forward_macs + self.subject.summarizer.forward_macs

    def _dense_row(self) -> dict[str, Any]:
        bench = self.subject.bench
        metric, _ = evaluate(self.subject.structure.traced.module, bench.task, bench.judged["test"])
        return self._row(DENSE, metric, 0.0)

    def _row(self, method: str, metric: float, macs: float) -> dict[str, Any]:
        board = self.board
        return {
            "board": board.name, "network": board.network, "task": board.task,
            "budget": f"{self.size}={self.fraction:.4f}", "method": method, "seed": self.seed,
            "metric": round(metric, 4), "higher_is_better": self.subject.task.higher_is_better,
            "label_cost_forward_macs": round(macs),
            "competence": self.verdict and round(self.verdict.distance / self.verdict.limit, 3),
        }  # fmt: skip
