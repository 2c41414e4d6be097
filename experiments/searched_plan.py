"""Plans that a labeler of whole plans or a formula likes best, or that win a race, and formats chosen around them."""

import contextlib
import hashlib
import logging
import math
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import replace
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from filelock import FileLock

from autolabel.allocators import LearnedSearchAllocator
from autolabel.competence import Verdict
from autolabel.format_summary import FORMATTED_NATS
from autolabel.learning import join_scores
from autolabel.plan_formula import PlanFormula
from autolabel.plan_labeler import PlanLabeler
from autolabel.plan_race import PlanRace, choose_entrants
from autolabel.plan_search import PlanSearch
from autolabel.plan_summary import PlanSummarizer
from autolabel.pretrained import load_competence, load_plan_labeler
from autolabel.row_log import Notes, RowLog
from autolabel.tables import LabelTable
from compress.allocation import allocate
from compress.allocator import Allocator
from compress.allocators import GreedyAllocator
from compress.budget import Budget
from compress.errors import BudgetError, DataError
from compress.plan import CompressionPlan
from compress.scores import Scores
from compress.statistics import Statistics
from experiments.compared_methods import ADDING, searches_bits
from experiments.plan_prediction import repaired_loss
from experiments.progress import progress

if TYPE_CHECKING:
    from experiments.workbench import Workbench

log = logging.getLogger(__name__)
# Like the races of `no_regret`: so many plans of criteria enter beside the favourites of searches, and the rounds take
# these parts of the fine-tuning.
_FORMULAS = 5
_ROUNDS = (1 / 8, 3 / 8)
_SPENDING = ("threshold", "greedy")


def told_competence(plans: Mapping[str, CompressionPlan], chosen: str) -> list[str]:
    """What is to be said of the labeler of whole plans: whether it knows such networks, what it found, and whose plan
    was taken.

    Args:
        plans: name of the method -> its plan.
        chosen: the method whose plan was taken.
    """
    told: dict[str, list[str]] = {}
    for plan in plans.values():
        found = plan.provenance.get("competence")
        if found is not None:
            told.setdefault(f"This network lies {found['told']}.", []).append(_told_search(plan))
    taken = f"By validation loss the plan of {chosen} was taken."
    return [" ".join([where, *dict.fromkeys(texts), taken]) for where, texts in told.items()]


def _told_search(plan: CompressionPlan) -> str:
    measured = (plan.provenance.get("search_plans") or {}).get("measured")
    if "race" in plan.provenance:
        more = f", after searches that repaired and measured {measured} plans" if measured else ""
        return f"Two favourites of it raced with one of a formula and with plans of criteria{more}."
    search = plan.provenance["search"]
    chosen = (
        f"Of {search['judged']:,} plans {measured} were repaired and measured; the one that lost least"
        if measured
        else f"Its favourite out of {search['judged']:,} plans"
    )
    return (
        f"{chosen} has a score of {search['score']:.2f} (0 is the "
        "mean of random plans, in their standard deviations, lower is better); its members differ by "
        f"{search['spread']:.2f}."
    )


class PlanFinder:
    """Finds plans of the budget's size. No label of a removal is measured for them; each search may measure
    `compare.search_plans` whole plans after their repair.

    Args:
        experiment: with structure, costs, budget and constraints.
        statistics, batches: of calibration examples.
        seed: of searches and trainings.
        formats: damages of layers' formats. With them a plan is found for the MACs, and one solve over what it removes
            and over all formats meets the other bounds; units that need not go then may come back. Where bytes are the
            only bound and bits the only formats, what goes and the bits of layers are searched together, and these
            damages are not read.
        label: batches that whole plans are measured on.
        folder: of what was tried, so that killed work goes on.
    """

    def __init__(
        self, experiment: "Workbench", statistics: Statistics, batches: Iterable[Any], seed: int,
        formats: LabelTable | None, label: Sequence[Any], folder: Path,
    ) -> None:  # fmt: skip
        self.experiment, self.seed, self.formats = experiment, seed, formats
        self._label, self._folder = label, folder
        self._summarizer: PlanSummarizer = experiment.plan_summarizer(statistics, list(batches), seed)
        self._features_macs = statistics.forward_macs + self._summarizer.forward_macs
        budget = experiment.parts.budget
        # What goes and the bits of layers together.
        together = formats is not None and searches_bits(experiment.config)
        self._bits = experiment.format_summarizer(list(batches)) if together else None
        self._size = budget if formats is None or together else Budget(macs=budget.macs)
        self._found: dict[tuple[int, str], CompressionPlan] = {}

    def search(self, by_formula: bool = False) -> CompressionPlan:
        """The labeler's or a formula's favourite among thousands of plans, or what loses least of those it measures."""
        formula = PlanFormula() if self._bits is None else PlanFormula(FORMATTED_NATS)
        found = self._favourite(0, formula if by_formula else self._labeler)
        if self._bits is None:
            found = self._with_formats(found)
        return found if by_formula else self._told(found)

    def race(self) -> CompressionPlan:
        """The winner among favourites of the labeler and of a formula, and plans of criteria, after brief trainings.

        What races is what would leave: the channels that are gone after formats were chosen too, trained in floats.
        """
        units = self.experiment.structure.units
        searches = ((0, self._labeler), (0, PlanFormula()), (1, self._labeler))
        found = [self._favourite(number, judge) for number, judge in searches]
        favourites = [plan.removed_mask(units) for plan in found]
        measured = [plan.provenance["search_plans"] for plan in found if "search_plans" in plan.provenance]
        chosen_macs = self._features_macs + sum(told["forward_macs"] - self._features_macs for told in measured)
        likely = choose_entrants(self._labeler, self._summarizer, favourites, self._formula_masks(), _FORMULAS)
        entrants: dict[bytes, CompressionPlan] = {}
        for mask in likely:
            try:
                plan = self._with_formats(self._plan(mask))
            except BudgetError:
                # Others may come to the bytes; if none does, that is the answer.
                if mask is likely[-1] and not entrants:
                    raise
                continue
            entrants.setdefault(plan.removed_mask(units).tobytes(), plan)
        plans = list(entrants.values())
        steps = self.experiment.finetuning_steps
        first = max(1, round(_ROUNDS[0] * steps))
        race = PlanRace((first, max(first + 1, round(_ROUNDS[1] * steps))))
        known = self._notes("race")

        def train(mask: np.ndarray, steps: int) -> tuple[float, float]:
            name = f"{steps} steps of {hashlib.sha256(mask.tobytes()).hexdigest()}"
            if name not in known:
                known[name] = list(self._tried(mask, steps))
            return known[name][0], known[name][1]

        with progress("racing plans") as on_plan:
            result = race.run(train, [plan.removed_mask(units) for plan in plans], on_plan)
        if result.losses and not np.isfinite(result.losses[-1]).any():
            log.warning("No plan of the race outlived its training: the first favourite takes its place.")
        log.info("The race of %d plans took %.3g MACs.", len(plans), result.forward_macs)
        told = {
            "entrants": len(plans), "winner": result.winner, "steps": list(race.steps),
            "forward_macs": chosen_macs + result.forward_macs,
            "losses": [[float(x) if np.isfinite(x) else None for x in row] for row in result.losses],
        }  # fmt: skip
        winner = plans[result.winner]
        own: dict[str, Any] = {"allocator": "race", "plan_labeler": self._labeler.name, "race": told}
        if measured:
            own["search_plans"] = {"measured": sum(told["measured"] for told in measured), "forward_macs": chosen_macs}
        return self._told(replace(winner, provenance={**winner.provenance, **own}))

    @cached_property
    def _labeler(self) -> PlanLabeler:
        return load_plan_labeler(self.experiment.config.plan_labeler, self._bits is not None)

    def _notes(self, name: str) -> Notes:
        """Numbers of this seed that outlive a kill."""
        return RowLog(self._folder / f"{name}_{self.seed}.jsonl", self._folder.name, (), ()).notes

    @cached_property
    def _verdict(self) -> Verdict:
        """Whether the labeler knows networks like this one."""
        nothing = np.zeros((1, len(self.experiment.structure.units)), dtype=bool)
        known = load_competence(self.experiment.config.plan_labeler, self._bits is not None)
        found = known.judge(self._summarizer.summarize(nothing))
        log.info("This network lies %s.", found)
        return found

    def _told(self, plan: CompressionPlan) -> CompressionPlan:
        """The plan, which says whether the labeler knows networks like this one."""
        return replace(plan, provenance={**plan.provenance, "competence": self._verdict.record()})

    def _favourite(self, number: int, judge: PlanLabeler | PlanFormula) -> CompressionPlan:
        """What the search of this number finds for a judge, after some plans were measured if that is asked for."""
        if (number, judge.name) in self._found:
            return self._found[number, judge.name]
        experiment, count = self.experiment, self.experiment.config.compare.search_plans
        whose = "formula" if isinstance(judge, PlanFormula) else "labeler"
        name = f"search_{whose}_{number}"
        # Two methods may want the same search, perhaps in two processes: the first one measures.
        lock = FileLock(self._folder / f"{name}_{self.seed}.lock") if count else contextlib.nullcontext()
        with lock, progress("searching plans") as on_round:
            measure = repaired_loss(experiment, self._label, self._notes(name) if count else None)
            search = PlanSearch(seed=self.seed + 1000 * number, measured=count)
            found = LearnedSearchAllocator(self._summarizer, judge, search, on_round, measure, self._bits).allocate(
                experiment.structure.units, None, experiment.costs, self._size, experiment.parts.constraints
            )
        if count:
            told = {
                "measured": found.provenance["search"]["measured"],
                "forward_macs": self._features_macs + measure.forward_macs,
            }
            found = replace(found, provenance={**found.provenance, "search_plans": told})
        self._found[number, judge.name] = found
        return found

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
        inputs = experiment.recovery_inputs()
        small = experiment.repaired(self._plan(removed), inputs)
        dense, own = experiment.costs.dense_macs, experiment.costs.total(removed)[0]
        macs = (dense + own) * sum(len(batch[0]) for batch in inputs) + own * len(experiment.data.validation)
        try:
            # To its end: validation examples that chose an epoch could not tell plans apart.
            done = experiment.finetune_steps(
                small, steps, experiment.config.finetune.lr, None, self.seed, select=False
            )  # fmt: skip
        except DataError as error:
            # A training that breaks is one reason to race.
            log.warning("A plan leaves the race: %s", error)
            return math.inf, macs + (3 * own + dense) * steps * size
        loss = experiment.metrics_of(small, "validation")["loss"]
        return loss, macs + (3 * own + dense) * done * size

    def _with_formats(self, plan: CompressionPlan) -> CompressionPlan:
        """One solve over what a plan removes and over all formats."""
        if self.formats is None:
            return plan
        units = self.experiment.structure.units
        removed, removable = plan.removed_mask(units), units.removable
        # What stays is not on the menu, so that whichever allocator is configured must let go what was found, as far as
        # the MACs want it; what goes does no damage that a sum over units could tell.
        damage = np.where(removed, 0.0, np.nan)
        try:
            whole = self._solve(damage, self.experiment.parts.allocator)
        except BudgetError:
            # The bytes want more to go than the MACs did. An allocator that does not add damages would take the same
            # of every group, wherever they lie.
            stays = removable & ~removed
            damage[stays] = self._summarizer.scores["fisher"][stays[removable]]
            configured: Any = self.experiment.parts.allocator
            adds = type(configured).name in ADDING
            whole = self._solve(damage, configured if adds else GreedyAllocator(configured.always_quantize))
        return replace(whole, predicted_damage=None, provenance={**whole.provenance, **plan.provenance})

    def _solve(self, damage: np.ndarray, allocator: Allocator) -> CompressionPlan:
        """The plan of least damage, `(n_units,)` nats of what may go and the formats of layers."""
        experiment, units = self.experiment, self.experiment.structure.units
        scores = join_scores(
            experiment.structure, Scores(units.ids, ("removed",), damage[:, None], "nats"), self.formats
        )  # fmt: skip
        return allocate(
            units, scores, experiment.costs, experiment.parts.budget, allocator=allocator,
            constraints=experiment.parts.constraints,
        )  # fmt: skip
