"""Plans of all methods on one board with one seed, and what becomes of them."""

import hashlib
import logging
from collections.abc import Callable, Collection, Mapping, Sequence
from dataclasses import replace
from functools import partial
from itertools import count, takewhile
from typing import Any

import numpy as np

from autolabel.plan_formula import PlanFormula
from autolabel.plan_labeler import PlanLabeler
from autolabel.plan_oracle import RepairedLoss, loss_and_macs
from autolabel.plan_race import brief_training, choose_entrants
from autolabel.plan_search import PlanSearch
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
from compress.scores import Scores
from experiments.board_run import BoardRun
from experiments.boards import BOTH, FORMULA, LABELER
from experiments.compared_methods import Method
from experiments.seeding import derive_seed

log = logging.getLogger(__name__)
JUDGES = (FORMULA, LABELER, BOTH)
# The favourite of searches, what loses least of the plans that one search repairs and measures, the winner of a race of
# favourites, and that of a race in which measured plans stand in their place.
WAYS = ("search", "measured", "race", "measured_race")
SEARCHES = tuple(f"{judge}/{way}" for judge in JUDGES for way in WAYS)
# Of plans that are trained to the end, the one that loses least on validation examples: of those that came into the
# last round of a race, and of all that are compared.
FINALS: Mapping[str, str] = {f"{judge}/finals": f"{judge}/race" for judge in JUDGES}
ALL_FINALS = "all/finals"
CRITERIA: Mapping[str, Callable[[int], Any]] = {
    "magnitude": lambda seed: MagnitudeCriterion(),
    "taylor": lambda seed: TaylorCriterion(),
    "fisher": lambda seed: FisherCriterion(),
    "second_order": lambda seed: SecondOrderCriterion(),
    "reconstruction": lambda seed: ReconstructionCriterion(),
    "random": lambda seed: RandomCriterion(seed=seed),
}
SEARCH = PlanSearch(rounds=8, children=48, reference=40)
# Formulas that need no data.
_FREE = ("magnitude", "random")


class BoardRunner(BoardRun):
    """Plans that remove units, on a board of so many MACs; `done` holds plans that were found, too."""

    def __init__(self, *board: Any) -> None:
        super().__init__(*board)
        self._scores: dict[str, Scores] = {}
        self._favourites: dict[tuple[str, int], np.ndarray] = {}
        self._brief: dict[tuple[bytes, int], tuple[float, float]] = {}
        self._tried: dict[str, tuple[list[tuple[float, np.ndarray]], float]] = {}

    def rows(self) -> list[dict[str, Any]]:
        """One row for each method, and one of the dense network."""
        found = [self._dense_row()]
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
        for judge in JUDGES:
            found |= self._searched(judge, formulas)
        return found

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

    def _searched(self, name: str, formulas: Mapping[str, np.ndarray]) -> dict[str, tuple[np.ndarray, float]]:
        """What a judge's searches and races come to, as far as it is asked for."""
        wanted = [f"{name}/{way}" for way in WAYS if f"{name}/{way}" in self.settings.methods]
        missing = {way.removeprefix(f"{name}/") for way in wanted if way not in self._done}
        if missing & {"measured", "measured_race"}:
            tried, macs = self._measured(name)
            if "measured" in missing:
                self._note(f"{name}/measured", tried[0], macs)
            if "measured_race" in missing:
                entrants = self._entrants(name, tried[: self.settings.searches], formulas)
                self._race(f"{name}/measured_race", entrants, macs)
        if missing & {"search", "race"}:
            self._search_and_race(name, formulas, missing)
        return {way: self._noted(way) for way in wanted}

    def _search_and_race(self, name: str, formulas: Mapping[str, np.ndarray], missing: Collection[str]) -> None:
        """The favourite of several searches, and the winner among their favourites and the criteria's liked best; of
        both the better repaired one of two, and the winner among favourites of both."""
        leader = self._leader(name)
        searches = [(leader, number) for number in range(self.settings.searches)]
        if name == BOTH:
            # Of each its first one, then the labeler's others.
            searches = [searches[0], (PlanFormula(), 0), *searches[1:-1]]
        found = [self._favourite(judge, number) for judge, number in searches]
        entrants = self._entrants(name, found, formulas)
        if "race" in missing:
            self._race(f"{name}/race", entrants, self._statistics_macs)
        if "search" in missing:
            if name == BOTH:
                self._note(f"{name}/search", *self._best_repaired(found[:2], self._statistics_macs))
            else:
                self._note(f"{name}/search", entrants[0], self._statistics_macs)

    def _entrants(self, name: str, found: Sequence[np.ndarray], formulas: Mapping[str, np.ndarray]) -> list[np.ndarray]:
        """All of them compared with one another: each search knows its own random plans only."""
        others = list(formulas.values())
        return choose_entrants(self._leader(name), self.subject.summarizer, found, others, self.settings.candidates)

    def _race(self, name: str, entrants: Sequence[np.ndarray], macs: float) -> None:
        """Note who wins and who comes into the last round; `macs` were spent before."""
        result = self.settings.race.scaled(self.subject.settings.steps / 128).run(self._brief_training, entrants)
        macs += result.forward_macs
        last = np.flatnonzero(np.isfinite(result.losses[-1])) if result.losses else []
        for number, i in enumerate(last if len(last) else [result.winner]):
            self._note(f"{name} finalist {number}", entrants[i], macs)
        self._note(name, entrants[result.winner], macs)

    def _leader(self, judge: str) -> PlanLabeler | PlanFormula:
        if judge == FORMULA:
            return PlanFormula()
        return self.labeler

    def _repaired_loss(self) -> RepairedLoss:
        refitted = replace(self.subject.oracle, moments=("refitted",))
        return RepairedLoss(partial(loss_and_macs, self.subject.bench, refitted, "validation"), self._done)

    def _best_repaired(self, masks: Sequence[np.ndarray], macs: float) -> tuple[np.ndarray, float]:
        """The plan that loses least on validation examples after its repair, and the MACs that all of it took."""
        measure = self._repaired_loss()
        losses = np.array([measure(mask) for mask in masks])
        return masks[int(np.argmin(np.where(np.isfinite(losses), losses, np.inf)))], macs + measure.forward_macs

    def _measured(self, name: str) -> tuple[list[np.ndarray], float]:
        """The plans that the searches of a judge measure, those first that lose least after their repair; the MACs."""
        tried, macs = [], self._statistics_macs
        for judge in (LABELER, FORMULA) if name == BOTH else (name,):
            found, spent = self._measured_by(self._leader(judge))
            tried, macs = [*tried, *found], macs + spent
        tried.sort(key=lambda found: (not np.isfinite(found[0]), found[0]))
        return list({mask.tobytes(): mask for _, mask in tried}.values()), macs

    def _measured_by(self, leader: PlanLabeler | PlanFormula) -> tuple[list[tuple[float, np.ndarray]], float]:
        """The plans that a search measures, each with what it loses after its repair, and the MACs that it took."""
        if leader.name not in self._tried:
            tried: list[tuple[float, np.ndarray]] = []
            measure, search = self._repaired_loss(), replace(self._search(0), measured=self.settings.measured)

            def kept(mask: np.ndarray) -> float:
                tried.append((measure(mask), mask))
                return tried[-1][0]

            limits = self.subject.settings.constraints
            search.run(self.subject.summarizer, leader, "macs", self.fraction, limits, measure=kept)
            self._tried[leader.name] = tried, measure.forward_macs
        return self._tried[leader.name]

    def _search(self, number: int) -> PlanSearch:
        return replace(SEARCH, seed=derive_seed(f"{self.board.name}/{number}", self.seed))

    def _favourite(self, leader: PlanLabeler | PlanFormula, number: int) -> np.ndarray:
        if (leader.name, number) not in self._favourites:
            limits = self.subject.settings.constraints
            self._favourites[leader.name, number] = (
                self._search(number).run(self.subject.summarizer, leader, "macs", self.fraction, limits).removed
            )
        return self._favourites[leader.name, number]

    def _brief_training(self, mask: np.ndarray, steps: int) -> tuple[float, float]:
        """What a race does to a plan: several races may try the same one, and each of them pays."""
        key = mask.tobytes(), steps
        if key not in self._brief:
            self._brief[key] = brief_training(self.subject.bench, self.subject.oracle)(mask, steps)
        return self._brief[key]

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
