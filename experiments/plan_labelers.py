"""Plan labelers by the names that jobs and tables know them by."""

from collections.abc import Callable, Mapping
from functools import partial

from autolabel.plan_blend import BlendPlanLabeler
from autolabel.plan_labeler import PlanLabeler
from autolabel.plan_labelers import GBDTPlanLabeler, RidgePlanLabeler, SetPlanLabeler

LABELERS: Mapping[str, Callable[[], PlanLabeler]] = {
    "labeler/gbdt": GBDTPlanLabeler,
    "labeler/lambdarank": partial(GBDTPlanLabeler, objective="lambdarank"),
    "labeler/set_network": SetPlanLabeler,
    "labeler/ridge": RidgePlanLabeler,
    "labeler/blend": BlendPlanLabeler,
}
