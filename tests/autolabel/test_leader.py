"""Who judges the plans of a search and of a race."""

from autolabel.few_shot import AdaptedPlanLabeler
from autolabel.leader import choose_judges, choose_leader
from autolabel.plan_formula import PlanFormula
from autolabel.pretrained import load_plan_labeler


def test_a_formula_leads_and_the_favourites_of_the_labeler_race():
    labeler = load_plan_labeler()
    assert choose_leader(labeler) == PlanFormula()
    assert choose_judges(labeler, 3) == [PlanFormula(), labeler, labeler]


def test_a_labeler_that_measured_plans_corrected_leads_everywhere():
    corrected = object.__new__(AdaptedPlanLabeler)
    assert choose_leader(corrected) is corrected
    assert choose_judges(corrected, 2) == [corrected, corrected]
