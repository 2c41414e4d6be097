from . import (
    allocators,
    criteria,
    distillations,
    exporters,
    factorizers,
    patterns,
    penalties,
    quantizers,
    roundings,
    runtimes,
    sparsity_schedules,
    weight_formats,
    weight_scores,
)
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
    "allocators",
    "analyze",
    "apply_plan",
    "bake_formats",
    "check_budget",
    "closest_feasible",
    "collect_statistics",
    "criteria",
    "distillations",
    "evaluate",
    "exporters",
    "factorizers",
    "find_units",
    "finetune_",
    "load_artifact",
    "pack_artifact",
    "pareto_front",
    "patterns",
    "penalties",
    "prepare_quantized",
    "quantizers",
    "recover_",
    "repack_artifact",
    "round_floats_",
    "roundings",
    "runtimes",
    "save_artifact",
    "score_units",
    "simulate_plan",
    "sparsity_schedules",
    "unit_costs",
    "weight_formats",
    "weight_scores",
]
