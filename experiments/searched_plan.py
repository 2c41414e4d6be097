"""The plan that a labeler of whole plans likes best, and formats of layers chosen around it."""

import logging
from collections.abc import Iterable
from dataclasses import replace
from typing import TYPE_CHECKING, Any

import numpy as np

from autolabel.allocators import LearnedSearchAllocator
from autolabel.learning import join_scores
from autolabel.plan_search import PlanSearch
from autolabel.pretrained import load_competence, load_plan_labeler
from autolabel.tables import LabelTable
from compress.allocation import allocate
from compress.budget import Budget
from compress.plan import CompressionPlan
from compress.scores import Scores
from compress.statistics import Statistics
from experiments.progress import progress

if TYPE_CHECKING:
    from experiments.stages import Experiment

log = logging.getLogger(__name__)


def search_plan(
    experiment: "Experiment", statistics: Statistics, batches: Iterable[Any], seed: int, formats: LabelTable | None
) -> CompressionPlan:
    """The favourite of the plan labeler among plans of the budget's size. No label of a removal is measured for it.

    Args:
        experiment: with structure, costs, budget and constraints.
        statistics, batches: of calibration examples.
        seed: of the search.
        formats: damages of layers' formats. With them the search spends the MACs, and one solve over what it removes
            and over all formats meets the other bounds; units that need not go then may come back.
    """
    labeler = load_plan_labeler(experiment.config.plan_labeler)
    summarizer = experiment.plan_summarizer(statistics, batches, seed)
    units, budget = experiment.structure.units, experiment.parts.budget
    verdict = load_competence(experiment.config.plan_labeler).judge(
        summarizer.summarize(np.zeros((1, len(units)), dtype=bool))
    )
    log.info("This network lies %s.", verdict)
    if not verdict.inside and seed == experiment.config.seed:
        experiment.warnings.append(
            f"This network lies {verdict}. The searched plan competes, and validation chooses among all methods."
        )
    with progress("searching plans") as on_round:
        search = LearnedSearchAllocator(summarizer, labeler, PlanSearch(seed=seed), on_round)
        size = budget if formats is None else Budget(macs=budget.macs)
        plan = search.allocate(units, None, experiment.costs, size, experiment.parts.constraints)
    if formats is None:
        return plan
    # What stays is not on the menu, so that whichever allocator is configured must let go what the search found, as far
    # as the MACs want it; what goes does no damage that a sum over units could tell.
    going = np.where(plan.removed_mask(units), 0.0, np.nan)
    scores = join_scores(experiment.structure, Scores(units.ids, ("removed",), going[:, None], "nats"), formats)
    whole = allocate(
        units, scores, experiment.costs, budget, allocator=experiment.parts.allocator,
        constraints=experiment.parts.constraints,
    )  # fmt: skip
    return replace(whole, predicted_damage=None, provenance={**whole.provenance, **plan.provenance})
