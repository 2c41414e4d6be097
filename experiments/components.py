"""The objects that a configuration names, all built before any work starts."""

from collections.abc import Mapping
from dataclasses import asdict, dataclass, field
from typing import Any

from torch.nn.parameter import is_lazy

from autolabel.labeler import Labeler
from autolabel.oracle import Oracle
from compress.allocator import Allocator, Constraints
from compress.budget import Budget
from compress.criterion import Criterion
from compress.distillation import Distillation
from compress.errors import CompressError
from compress.exporter import Exporter
from compress.factorizer import Factorizer
from compress.pattern import SparsityPattern
from compress.quantizer import Quantizer
from compress.rounding import Rounding
from compress.runtime import Runtime
from compress.sparsity_schedule import SparsitySchedule
from compress.task import Task
from compress.training_hook import TrainingHook
from compress.weight_score import WeightScore
from experiments.config import ConfigError, build
from experiments.seeding import seeded
from experiments.settings import Config

# Components that a run may do without -> where they come from.
OPTIONAL = {
    "distillation": "compress.distillations", "penalty": "compress.penalties", "pattern": "compress.patterns",
    "weight_score": "compress.weight_scores", "sparsity_schedule": "compress.sparsity_schedules",
    "rounding": "compress.roundings", "factorizer": "compress.factorizers",
}  # fmt: skip


@dataclass(frozen=True)
class Components:
    """What one run works with. Labelers learn, so every labeler to be fitted anew is built anew."""

    model: Any
    data: Any
    task: Task
    labeler: Labeler
    criterion: Criterion
    allocator: Allocator
    quantizer: Quantizer
    exporter: Exporter
    runtime: Runtime
    budget: Budget
    constraints: Constraints
    student: Any = None
    distillation: Distillation | None = None
    penalty: TrainingHook | None = None
    pattern: SparsityPattern | None = None
    weight_score: WeightScore | None = None
    sparsity_schedule: SparsitySchedule | None = None
    rounding: Rounding | None = None
    factorizer: Factorizer | None = None
    baselines: Mapping[str, Criterion] = field(default_factory=dict)
    oracles: Mapping[str, Oracle] = field(default_factory=dict)


def acts_in(penalty: TrainingHook, stage: str) -> bool:
    """Whether a penalty acts in this training: one on quantised weights has nothing to do before they are."""
    return getattr(penalty, "needs_formats", False) == (stage == "quantize")


def build_components(config: Config) -> Components:
    """Every component of `config`.

    Raises:
        ConfigError: for a component that cannot be built, or settings out of range; the message names the key.
    """
    return Components(
        model=_build_model(config.model, "model"),
        data=build(config.data, "data", within="experiments.data"),
        task=build(config.task, "task"),
        labeler=build(config.labeler, "labeler", within="autolabel.labelers"),
        criterion=build(config.criterion, "criterion", within="compress.criteria"),
        allocator=build(config.allocator, "allocator", within="compress.allocators"),
        quantizer=build(config.quantizer, "quantizer", within="compress.quantizers"),
        exporter=build(config.exporter, "exporter", within="compress.exporters"),
        runtime=build(config.runtime, "runtime", within="compress.runtimes"),
        budget=_build_settings(Budget, config.budget),
        constraints=_build_settings(Constraints, config.constraints),
        **{
            name: build(node, name, within=within)
            for name, within in OPTIONAL.items()
            if (node := getattr(config, name)) is not None
        },
        student=_build_student(config),
        baselines={
            name: build(node, f"baselines.{name}", within="compress.criteria")
            for name, node in config.baselines.items()
        },
        oracles={
            name: build(node, f"oracles.{name}", within="autolabel.oracles") for name, node in config.oracles.items()
        },
    )


def _build_model(node: Any, key: str) -> Any:
    try:
        model = build(node, key, within="experiments.models")
    except RuntimeError as error:
        # torch's own for a width below zero.
        raise ConfigError(f"'{key}' cannot be built from {node['_target_']}: {str(error).splitlines()[0]}") from error
    for name, parameter in model.named_parameters():
        if not is_lazy(parameter) and not parameter.numel():
            raise ConfigError(f"'{key}': {name} has no values, its shape is {tuple(parameter.shape)}: a width is 0.")
    return model


def _build_student(config: Config) -> Any:
    """The student, its first weights the same beside any dense model; None where there is none."""
    if config.student is None:
        return None
    with seeded("student", config.seed):
        return _build_model(config.student, "student")


def _build_settings(kind: type, settings: Any) -> Any:
    """A frozen dataclass of a library from the settings of the same names, lists as tuples."""
    values = {name: tuple(value) if isinstance(value, list) else value for name, value in asdict(settings).items()}
    try:
        return kind(**values)
    except CompressError as error:
        raise ConfigError(str(error)) from error
