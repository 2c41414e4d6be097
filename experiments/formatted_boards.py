"""Plans that remove units and store layers in few bits, of all methods on one board of so many bytes with one seed."""

import hashlib
import logging
import re
from collections.abc import Sequence
from dataclasses import replace
from functools import cached_property
from typing import Any

import numpy as np

from autolabel.choice_bench import ChoiceBench
from autolabel.format_sampling import sample_formatted_plans
from autolabel.format_summary import FORMATTED_NATS, FormatSummarizer
from autolabel.plan_formula import PlanFormula
from compress.errors import BudgetError, CompressError
from compress.layer_choice import LayerChoice
from experiments.board_run import BoardRun
from experiments.board_runner import SEARCH
from experiments.boards import FORMULA, LABELER
from experiments.seeding import derive_seed

log = logging.getLogger(__name__)
RANDOM = "random"
RANDOM_AND_BITS = (RANDOM, "fisher/bits")
_SEARCH = re.compile(rf"({FORMULA}|{LABELER})/search(?:@(\d+)bit)?")
Found = tuple[np.ndarray, np.ndarray, float]


def check_method(name: str, widths: Sequence[int]) -> None:
    """Refuse what is no method of such boards.

    `"random"` is one plan drawn at random, as those that labelers learn from (scores order its units);
    `"refit_loss/search"` and `"labeler/search"` search what goes and the bits of layers together, led by a formula or a
    labeler; `".../search@4bit"` gives all layers 4 bits and searches what goes, if anything must; `"fisher/bits"`
    removes nothing and lowers bits where that adds the least error per byte, or where even the fewest are too many
    bytes, gives these to all layers and searches what goes, led by the formula.

    Raises:
        CompressError: naming the method.
    """
    found = _SEARCH.fullmatch(name)
    if name not in RANDOM_AND_BITS and (not found or (found[2] and int(found[2]) not in widths)):
        raise CompressError(
            f"Boards of plans in few bits know {', '.join(map(repr, RANDOM_AND_BITS))}, '{FORMULA}/search', "
            f"'{LABELER}/search', and searches such as '{FORMULA}/search@{widths[0]}bit'. Got {name!r}."
        )


class FormattedBoardRunner(BoardRun):
    """Plans that remove units and store layers in few bits, on a board of so many bytes."""

    size = "weight_bytes"

    def __init__(self, *board: Any) -> None:
        super().__init__(*board)
        subject, widths = self.subject, self.settings.plan_bits
        bench = ChoiceBench(subject.structure, subject.task, subject.oracle.quantizer, [LayerChoice(b) for b in widths])
        self._formats = FormatSummarizer(subject.structure, subject.costs, subject.task, subject.scored, bench)

    @cached_property
    def fraction(self) -> float:
        """Of the dense bytes, see `PlanDraw.attainable`."""
        return self.draw.attainable(self.board.fraction, self._alike(min(self.settings.plan_bits)))

    def _alike(self, bits: int) -> np.ndarray:
        """All layers in so many bits, as `CostTable.total` takes them."""
        return self._formats.rows(np.full(len(self._formats.layers), bits))

    def rows(self) -> list[dict[str, Any]]:
        """One row for each method, and one of the dense network."""
        found = [self._dense_row()]
        for name in self.settings.methods:
            removed, bits, macs = self._plan(name)
            found.append(self._row(name, self._trained(name, removed, bits), macs))
        return found

    def _plan(self, name: str) -> Found:
        """What a method removes, `(n_units,)` bool, the bits of layers, and the MACs of the statistics it needs."""
        # Backward passes of single examples, at three forwards each, are how the Fisher matrix is found.
        examples = sum(len(self.subject.task.inputs(batch)[0]) for batch in self.subject.scored)
        fisher = 3 * self.subject.costs.dense_macs * examples
        macs = self._statistics_macs + fisher
        subject, whole = self.subject, self.settings.plan_bits
        if name == RANDOM:
            drawn = sample_formatted_plans(
                subject.structure.units, subject.costs, subject.summarizer.scores, self._formats.sensitivity,
                whole, self.fraction, SEARCH.reference, seed=subject.seed, constraints=self._limits,
            )  # fmt: skip
            if not len(drawn.plans):
                raise BudgetError(f"No random plan of {self.board.name} comes near {self.fraction:.3g} of its bytes.")
            return drawn.plans.removed[0], drawn.bits[0], macs
        if name in RANDOM_AND_BITS:
            bits = self._bits_alone()
            if bits is not None:
                return self.nothing, bits, fisher
            name = f"{FORMULA}/search@{min(whole)}bit"
        judge, width = _SEARCH.fullmatch(name).groups()  # type: ignore[union-attr]
        widths = (int(width),) if width else whole
        if width and self.draw.cost(self.nothing, self._alike(int(width))) <= self.fraction * self.draw.dense:
            return self.nothing, np.full(len(self._formats.layers), int(width)), 0.0
        leader = PlanFormula(FORMATTED_NATS) if judge == FORMULA else self.labeler
        search = replace(SEARCH, seed=derive_seed(f"{self.board.name}/0", self.seed))
        found = search.run(subject.summarizer, leader, "weight_bytes", self.fraction, self._limits,
                           formats=self._formats.offering(widths))  # fmt: skip
        assert found.bits is not None
        return found.removed, found.bits, macs

    def _bits_alone(self) -> np.ndarray | None:
        """`(n_layers,)` bits while nothing is removed, lowered step by step; None if the fewest are too many."""
        formats, nothing = self._formats, self.nothing
        widths = np.sort(formats.widths)[::-1]
        nats = formats.offering(widths.tolist()).layer_nats()
        level = np.zeros(len(formats.layers), dtype=np.int64)
        cost = self.draw.cost(nothing, formats.rows(widths[level]))
        while cost > self.fraction * self.draw.dense:
            steps = []
            for layer in np.flatnonzero(level < len(widths) - 1):
                lower = level + (np.arange(len(level)) == layer)
                saved = cost - self.draw.cost(nothing, formats.rows(widths[lower]))
                steps.append(((nats[lower[layer], layer] - nats[level[layer], layer]) / max(saved, 1e-9), layer))
            if not steps:
                return None
            level[min(steps)[1]] += 1
            cost = self.draw.cost(nothing, formats.rows(widths[level]))
        return widths[level]

    def _trained(self, name: str, removed: np.ndarray, bits: np.ndarray) -> float:
        """Metric on test examples of a plan that is repaired, rounded and fine-tuned."""
        key = f"finetuned {hashlib.sha256(removed.tobytes() + bits.tobytes()).hexdigest()}"
        if key not in self._done:
            layers = dict(zip(self._formats.layers, bits.tolist(), strict=True))
            oracle = replace(self.subject.oracle, moments=("finetuned",))
            (outcome,) = oracle.measure(self.subject.bench, removed, layers)
            self._done[key] = [outcome.metric["test"]]
            log.info("%s, seed %d: %s ends at %.2f", self.board.name, self.seed, name, outcome.metric["test"])
        return self._done[key][0]
