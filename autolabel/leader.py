"""Who judges the plans of a search and of a race."""

from typing import Any

from autolabel.competence import Verdict
from autolabel.few_shot import AdaptedPlanLabeler
from autolabel.plan_formula import PlanFormula
from autolabel.plan_labeler import PlanLabeler

# Of the rule below: what was found by another one is not taken for its finding.
RULE_VERSION = 2


def choose_leader(labeler: PlanLabeler | AdaptedPlanLabeler) -> AdaptedPlanLabeler | PlanFormula:
    """The labeler if it was corrected by measured plans of this network, by which it orders other plans better
    (docs/who_predicts.md; what it then finds was not trained to the end on many boards). Else the formula that came
    closest to it on networks that it never saw: what the labeler likes without such plans ends no better than what the
    formula likes, within its competence no more than outside (docs/no_regret.md)."""
    return labeler if isinstance(labeler, AdaptedPlanLabeler) else PlanFormula()


def choose_judges(
    labeler: PlanLabeler | AdaptedPlanLabeler, searches: int
) -> list[PlanLabeler | AdaptedPlanLabeler | PlanFormula]:
    """One for each search whose favourite enters a race: who leads, and the labeler in all others, since trainings tell
    which of the two knows this network."""
    return [choose_leader(labeler), *[labeler] * (searches - 1)]


def competence_record(verdict: Verdict, leader: str) -> dict[str, Any]:
    """What a searched plan's provenance says under `competence`; `leader` is the name of who judged its search."""
    return {"inside": verdict.inside, "told": str(verdict), "leader": leader}
