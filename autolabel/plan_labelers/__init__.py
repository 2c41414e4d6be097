"""Plan labelers, one file each."""

from autolabel.plan_labelers.gbdt import GBDTPlanLabeler
from autolabel.plan_labelers.ridge import RidgePlanLabeler
from autolabel.plan_labelers.set_network import SetPlanLabeler

__all__ = ["GBDTPlanLabeler", "RidgePlanLabeler", "SetPlanLabeler"]
