"""Plans that a labeler of whole plans likes best, or that win a race, and formats of layers chosen around them."""

import hashlib
import logging
from collections.abc import Iterable
from dataclasses import replace
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from autolabel.allocators import LearnedSearchAllocator
from autolabel.learning import join_scores
from autolabel.plan_labeler import PlanLabeler
from autolabel.plan_race import PlanRace, choose_entrants
from autolabel.plan_search import PlanSearch
from autolabel.plan_summary import PlanSummarizer
from autolabel.pretrained import load_competence, load_plan_labeler
from autolabel.row_log import RowLog
from autolabel.tables import LabelTable
from compress.allocation import allocate
from compress.budget import Budget
from compress.errors import BudgetError
from compress.plan import CompressionPlan
from compress.scores import Scores
from compress.statistics import Statistics
from experiments.progress import progress

if TYPE_CHECKING:
    from experiments.workbench import Workbench

log = logging.getLogger(__name__)
# As on the boards of `no_regret`: favourites of so many searches enter a race, so many plans of formulas, and its
# rounds take these parts of the fine-tuning.
_SEARCHES = 3
_FORMULAS = 5
_ROUNDS = (1 / 8, 3 / 8)
_SPENDING = ("threshold", "greedy")


class PlanFinder:
    """Finds plans of the budget's size. No label of a removal is measured for them.

    Args:
        experiment: with structure, costs, budget and constraints.
        statistics, batches: of calibration examples.
        seed: of searches and trainings.
        formats: damages of layers' formats. With them the plan is found for the MACs, and one solve over what it
            removes and over all formats meets the other bounds; units that need not go then may come back.
    """

    def __init__(
        self, experiment: "Workbench", statistics: Statistics, batches: Iterable[Any], seed: int,
        formats: LabelTable | None,
    ) -> None:  # fmt: skip
        self.experiment, self.seed, self.formats = experiment, seed, formats
        self._summarizer: PlanSummarizer = experiment.plan_summarizer(statistics, list(batches), seed)
        budget = experiment.parts.budget
        self._size = budget if formats is None else Budget(macs=budget.macs)

    def search(self) -> CompressionPlan:
        """The labeler's favourite among hundreds of plans; nothing is run."""
        return self._with_formats(self._favourite(self.seed))

    def race(self, notes: Path) -> CompressionPlan:
        """The winner among the labeler's favourites and plans of formulas after brief trainings.

        Args:
            notes: file of what was tried, so that a killed race goes on.
        """
        units = self.experiment.structure.units
        found = [self._favourite(derived) for derived in (self.seed + 1000 * i for i in range(_SEARCHES))]
        favourites = [plan.removed_mask(units) for plan in found]
        entrants = choose_entrants(self._labeler, self._summarizer, favourites, self._formula_masks(), _FORMULAS)
        steps = self.experiment.finetuning_steps
        race = PlanRace(tuple(max(1, round(part * steps)) for part in _ROUNDS))
        known = RowLog(notes, notes.parent.name, (), ()).notes

        def train(mask: np.ndarray, steps: int) -> tuple[float, float]:
            name = f"{steps} steps of {hashlib.sha256(mask.tobytes()).hexdigest()}"
            if name not in known:
                known[name] = list(self._tried(mask, steps))
            return known[name][0], known[name][1]

        with progress("racing plans") as on_plan:
            result = race.run(train, entrants, on_plan)
        log.info("The race of %d plans took %.3g MACs.", len(entrants), result.forward_macs)
        found_by = "search" if any((entrants[result.winner] == mask).all() for mask in favourites) else "formula"
        told = {
            "entrants": len(entrants), "winner_from": found_by, "steps": list(race.steps),
            "forward_macs": result.forward_macs,
            "losses": [[float(loss) for loss in row if np.isfinite(loss)] for row in result.losses],
        }  # fmt: skip
        winner = self._plan(entrants[result.winner])
        return self._with_formats(
            replace(winner, provenance={"allocator": "race", "plan_labeler": self._labeler.name, "race": told})
        )

    @cached_property
    def _labeler(self) -> PlanLabeler:
        """The configured plan labeler; the run is told where it knows no networks like this one."""
        experiment, folder = self.experiment, self.experiment.config.plan_labeler
        nothing = np.zeros((1, len(experiment.structure.units)), dtype=bool)
        verdict = load_competence(folder).judge(self._summarizer.summarize(nothing))
        log.info("This network lies %s.", verdict)
        warning = f"This network lies {verdict}. The searched plan competes, and validation chooses among all methods."
        if not verdict.inside and self.seed == experiment.config.seed and warning not in experiment.warnings:
            experiment.warnings.append(warning)
        return load_plan_labeler(folder)

    def _favourite(self, seed: int) -> CompressionPlan:
        experiment = self.experiment
        with progress("searching plans") as on_round:
            search = LearnedSearchAllocator(self._summarizer, self._labeler, PlanSearch(seed=seed), on_round)
            return search.allocate(
                experiment.structure.units, None, experiment.costs, self._size, experiment.parts.constraints
            )

    def _formula_masks(self) -> list[np.ndarray]:
        """What each criterion removes below one threshold, and per cost."""
        experiment, found = self.experiment, []
        units = experiment.structure.units
        removable = tuple(units.ids[row] for row in np.flatnonzero(units.removable))
        for values in self._summarizer.scores.values():
            # A criterion that only orders is spent as if it were damage: that is what comparing it per MAC means.
            scores = Scores(removable, ("removed",), values[:, None], "nats")
            scores = join_scores(experiment.structure, scores)
            for allocator in _SPENDING:
                plan = allocate(units, scores, experiment.costs, self._size, allocator=allocator,
                                constraints=experiment.parts.constraints)  # fmt: skip
                found.append(plan.removed_mask(units))
        return found

    def _plan(self, removed: np.ndarray) -> CompressionPlan:
        units = self.experiment.structure.units
        macs, weight_bytes = self.experiment.costs.total(removed)
        return CompressionPlan.removing(
            units, [units.ids[row] for row in np.flatnonzero(removed)],
            predicted_cost={"macs": macs, "weight_bytes": weight_bytes},
        )  # fmt: skip

    def _tried(self, removed: np.ndarray, steps: int) -> tuple[float, float]:
        """Loss on validation examples after the repair and so many steps, and the MACs that they took."""
        experiment, size = self.experiment, self.experiment.config.finetune.batch_size
        small = experiment.repaired(self._plan(removed))
        experiment.finetune_steps(small, steps, experiment.config.finetune.lr, None, self.seed)
        loss = experiment.metrics_of(small, "validation")["loss"]
        dense, own = experiment.costs.dense_macs, experiment.costs.total(removed)[0]
        repaired = sum(len(inputs[0]) for inputs in experiment.recovery_inputs())
        macs = (dense + own) * repaired + (3 * own + dense) * steps * size + own * len(experiment.data.validation)
        return loss, macs

    def _with_formats(self, plan: CompressionPlan) -> CompressionPlan:
        """One solve over what a plan removes and over all formats."""
        if self.formats is None:
            return plan
        # What stays is not on the menu, so that whichever allocator is configured must let go what was found, as far as
        # the MACs want it; what goes does no damage that a sum over units could tell.
        removed = plan.removed_mask(self.experiment.structure.units)
        try:
            whole = self._solve(np.where(removed, 0.0, np.nan))
        except BudgetError:
            # The bytes want more to go than the MACs did.
            more = np.where(removed, 0.0, np.nan)
            rows = self.experiment.structure.units.removable & ~removed
            more[rows] = self._summarizer.scores["fisher"][rows[self.experiment.structure.units.removable]]
            whole = self._solve(more)
        return replace(whole, predicted_damage=None, provenance={**whole.provenance, **plan.provenance})

    def _solve(self, damage: np.ndarray) -> CompressionPlan:
        """The plan of least damage, `(n_units,)` nats of what may go and the formats of layers."""
        experiment, units = self.experiment, self.experiment.structure.units
        scores = join_scores(
            experiment.structure, Scores(units.ids, ("removed",), damage[:, None], "nats"), self.formats
        )  # fmt: skip
        return allocate(
            units, scores, experiment.costs, experiment.parts.budget, allocator=experiment.parts.allocator,
            constraints=experiment.parts.constraints,
        )  # fmt: skip
