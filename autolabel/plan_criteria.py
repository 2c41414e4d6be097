"""The criteria whose shares the summary of a plan holds: the same for every network and every plan labeler."""

from compress.criteria import (
    ActivationCriterion,
    FisherCriterion,
    MagnitudeCriterion,
    ReconstructionCriterion,
    SecondOrderCriterion,
    TaylorCriterion,
    WandaCriterion,
)
from compress.criterion import Criterion


def plan_criteria() -> dict[str, Criterion]:
    """Name -> criterion. A plan labeler that was fitted with others reads other columns, and says so."""
    return {
        "magnitude": MagnitudeCriterion(),
        "activation": ActivationCriterion(),
        "wanda": WandaCriterion(),
        "taylor": TaylorCriterion(),
        "fisher": FisherCriterion(),
        "second_order": SecondOrderCriterion(),
        "reconstruction": ReconstructionCriterion(),
    }
