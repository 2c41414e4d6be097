"""What compression is: units, costs, plans, pruning, quantisation, recovery. Knows nothing of learning."""

from compress.allocation import allocate, check_budget, closest_feasible
from compress.allocator import Constraints
from compress.application import apply_plan, simulate_plan
from compress.artifact import load_artifact, save_artifact
from compress.budget import Budget
from compress.counting import unit_costs
from compress.criterion import score_units
from compress.errors import ArtifactError, BudgetError, CompressError, DataError, PlanError, TraceError
from compress.finetuning import finetune_
from compress.float_rounding import round_floats_
from compress.formatted_weight import bake_formats
from compress.packed_artifact import pack_artifact, repack_artifact
from compress.pareto import pareto_front
from compress.plan import CompressionPlan, LayerFormat
from compress.quantization import prepare_quantized
from compress.recovery import recover_
from compress.scores import Scores
from compress.statistics import collect_statistics
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
    "Constraints",
    "DataError",
    "LayerFormat",
    "PlanError",
    "Scores",
    "Structure",
    "Task",
    "TraceError",
    "UnitTable",
    "allocate",
    "analyze",
    "apply_plan",
    "bake_formats",
    "check_budget",
    "closest_feasible",
    "collect_statistics",
    "evaluate",
    "find_units",
    "finetune_",
    "load_artifact",
    "pack_artifact",
    "pareto_front",
    "prepare_quantized",
    "recover_",
    "repack_artifact",
    "round_floats_",
    "save_artifact",
    "score_units",
    "simulate_plan",
    "unit_costs",
]
