from .allocation import allocate, check_budget, closest_feasible
from .allocator import Constraints
from .application import apply_plan, simulate_plan
from .artifact import load_artifact, save_artifact
from .budget import Budget
from .counting import unit_costs
from .criterion import score_units
from .errors import ArtifactError, BudgetError, CompressError, DataError, PlanError, TraceError
from .finetuning import finetune_
from .float_rounding import round_floats_
from .formatted_weight import bake_formats
from .packed_artifact import pack_artifact, repack_artifact
from .pareto import pareto_front
from .plan import CompressionPlan, LayerFormat
from .quantization import prepare_quantized
from .recovery import recover_
from .scores import Scores
from .statistics import collect_statistics
from .structure import Structure, analyze, find_units
from .task import ClassificationTask, Task, evaluate
from .units import UnitTable

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
