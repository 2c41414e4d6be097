"""What compression is: units, costs, plans, pruning, quantisation, recovery. Knows nothing of learning."""

from compress.application import apply_plan, simulate_plan
from compress.budget import Budget
from compress.errors import ArtifactError, BudgetError, CompressError, DataError, PlanError, TraceError
from compress.plan import CompressionPlan, LayerFormat
from compress.scores import Scores
from compress.structure import Structure, analyze, find_units
from compress.task import ClassificationTask, Task, evaluate
from compress.units import UnitTable

__all__ = [
    "ArtifactError",
    "Budget",
    "BudgetError",
    "ClassificationTask",
    "CompressError",
    "CompressionPlan",
    "DataError",
    "LayerFormat",
    "PlanError",
    "Scores",
    "Structure",
    "Task",
    "TraceError",
    "UnitTable",
    "analyze",
    "apply_plan",
    "evaluate",
    "find_units",
    "simulate_plan",
]
