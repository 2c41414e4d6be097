"""What the stages of a run share: components, the dense model, its batches, and the steps of a repair."""

import math
from collections.abc import Mapping, Sequence
from dataclasses import replace
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor, fx, nn

from autolabel.active_sampling import ACTIVE, ActiveSampling
from autolabel.choice_bench import ChoiceBench
from autolabel.format_summary import FormatSummarizer
from autolabel.joint_widths import WidthBench
from autolabel.learning import join_scores
from autolabel.plan_criteria import plan_criteria
from autolabel.plan_summary import PlanSummarizer
from autolabel.tables import LabelTable
from compress.allocation import allocate, check_budget
from compress.application import slice_model
from compress.costs import CostTable
from compress.counting import unit_costs
from compress.data_free import check_inputs_can_be_made, synthesize_batches
from compress.distiller import Distiller
from compress.errors import BudgetError, CompressError, PlanError
from compress.factor_formats import factorize_plan
from compress.finetuning import finetune_
from compress.graph import check_finite
from compress.input_moments import collect_input_moments
from compress.layer_choice import LayerChoice
from compress.layer_trial import coded_bits
from compress.output_sensitivity import collect_output_sensitivity
from compress.plan import CompressionPlan
from compress.prunable_weights import prunable_weights
from compress.recovery import recover_
from compress.statistics import USUAL_KINDS, Statistics, collect_statistics
from compress.structure import Structure, analyze
from compress.task import evaluate
from compress.training_hook import TrainingHook
from experiments.components import Components, build_components
from experiments.config import ConfigError
from experiments.data import ShuffledBatches, make_batches
from experiments.embedding_task import TARGET_NOISE
from experiments.latencies import LATENCIES, layer_latencies
from experiments.placement import PlacedBatches, placed
from experiments.run_dir import RunDir
from experiments.settings import Config
from experiments.teacher import RememberingTeacher
from experiments.tracker import Tracker

EVALUATION_BATCH = 500
# Enough for a matrix of second moments of gradients; each costs several backward passes.
_SENSITIVITY_BATCHES = 8


class Workbench:
    """Components of one run, the dense model, and what is computed from them on demand."""

    def __init__(self, config: Config, run_dir: RunDir, tracker: Tracker) -> None:
        self.config, self.run_dir, self.tracker = config, run_dir, tracker
        self.parts: Components = build_components(config)
        self.model: nn.Module = self.parts.model
        self.task, self.data = self.parts.task, self.parts.data
        self.warnings: list[str] = []
        check_finite(self.model)

    @cached_property
    def structure(self) -> Structure:
        """The traced dense model."""
        return analyze(self.model, self.example)

    @cached_property
    def planned(self) -> Structure:
        """The traced network that the plan is of: the dense model, or the student of another architecture."""
        return self.structure if self.parts.student is None else analyze(self.parts.student, self.example)

    @cached_property
    def teacher(self) -> RememberingTeacher:
        """The dense model, asked once about each batch. Its weights must have their final values."""
        return RememberingTeacher(self.model)

    @cached_property
    def example(self) -> tuple[Any, ...]:
        batch = make_batches(self.data.calibration, 2, limit=2)[0]
        return tuple(self.task.inputs(batch))

    @cached_property
    def costs(self) -> Any:
        """Costs of every unit; with bits as coded where the budget bounds them."""
        costs, budget, oracle = unit_costs(self.structure), self.config.budget, self.parts.oracles["layer_choice"]
        if not self.quantizes or self.parts.student is not None:
            return costs
        costs = replace(costs, number_format=oracle.number_format)
        if budget.latency_ms is not None:
            table = layer_latencies(self.run_dir.path / LATENCIES, self.config, self.parts, self.structure)
            costs = replace(costs, latency_ms=table.for_layers(costs.layer_names))
        if budget.coded_bytes is None:
            return costs
        moments = None
        if any(choice.rank for choice in oracle.layer_choices):
            moments = collect_input_moments(self.structure.traced.module, self.recovery_inputs(), seed=self.config.seed)
        return replace(costs, coded_bits=coded_bits(
            self.structure, oracle.layer_choices, oracle.quantizer, costs.layer_names, moments, oracle.number_format
        ))  # fmt: skip

    @property
    def planned_costs(self) -> CostTable:
        """Costs of the units that the plan is of."""
        return self.costs if self.parts.student is None else unit_costs(self.planned)

    def batches(
        self, part: str, batch_size: int | None = None, limit: int | None = None, noise: float = 0.0
    ) -> list[Any]:
        """Batches of a part of the data, with the dense model's outputs as targets where the task wants them."""
        found = make_batches(getattr(self.data, part), batch_size or EVALUATION_BATCH, limit)
        attach = getattr(self.task, "attach_targets", None)
        if attach is None:
            return found
        return attach(self.model, found, noise=noise, seed=self.config.seed)

    @cached_property
    def width_bench(self) -> WidthBench:
        """The network with its layers in any widths."""
        oracle = self.parts.oracles["layer_choice"]
        return WidthBench(self.structure, self.task, oracle.quantizer, oracle.bits, oracle.number_format)

    @cached_property
    def statistics(self) -> Statistics:
        """Statistics of the calibration data."""
        return self.statistics_of(self.batches("calibration", self.config.measure.batch_size, noise=TARGET_NOISE))

    def statistics_of(self, batches: Sequence[Any]) -> Statistics:
        """Statistics of these batches, of all kinds that the configured criteria read."""
        criteria = (self.parts.criterion, *self.parts.baselines.values())
        needs = {*USUAL_KINDS, *(kind for criterion in criteria for kind in criterion.needs)}
        return collect_statistics(self.structure, self.task, batches, needs)

    def plan_summarizer(self, statistics: Statistics, batches: Sequence[Any], seed: int) -> PlanSummarizer:
        """Summarises plans for what was learned on other networks."""
        few = batches[:_SENSITIVITY_BATCHES]
        sensitivity = collect_output_sensitivity(self.structure, self.task, few, seed=seed)
        return PlanSummarizer(statistics, sensitivity, self.costs, plan_criteria())

    def format_summarizer(self, batches: Sequence[Any]) -> FormatSummarizer:
        """Summarises the bits of plans for what was learned on other networks."""
        choices = [LayerChoice(bits) for bits in sorted(self.config.quantize.bits)]
        bench = ChoiceBench(self.structure, self.task, self.parts.quantizer, choices)
        return FormatSummarizer(self.structure, self.costs, self.task, batches[:_SENSITIVITY_BATCHES], bench)

    def sampling(self, formats: LabelTable | None) -> dict[str, Any]:
        """How `learn_labels` draws units: `strategy` and `active`.

        Args:
            formats: labels of layers, for plans that choose widths too.
        """
        strategy = self.config.measure.sampling
        if strategy != ACTIVE:
            return {"strategy": strategy}
        units, costs, parts = self.structure.units, self.costs, self.parts
        allocator = replace(parts.allocator, always_quantize=self.quantizes and parts.allocator.always_quantize)

        def decide(labels: LabelTable) -> np.ndarray:
            plan = allocate(
                units, join_scores(self.structure, labels, formats), costs, parts.budget, allocator=allocator,
                constraints=parts.constraints,
            )  # fmt: skip
            return plan.removed_mask(units)[units.removable]

        saved = costs.weight_bytes if parts.budget.macs is None else costs.macs
        return {"strategy": "stratified", "active": ActiveSampling(decide, saved[units.removable, 0])}

    def refuse_what_would_fail(self) -> None:
        """Refuse what the networks rule out, before anything is trained. Raises ConfigError or BudgetError."""
        self.refuse_missing_statistics()
        self.refuse_impossible_budget()
        self.refuse_unknown_layers()
        self.refuse_unknown_pairs()

    def refuse_unknown_layers(self) -> None:
        """Raises ConfigError where `sparsify.skip` names no layer of the network that is made small."""
        if self.config.quantize.ranks:  # whose layers have names of their own after they are divided
            return
        try:
            prunable_weights(self.planned.traced.module, self.config.sparsify.skip)
        except PlanError as error:
            raise ConfigError(f"sparsify.skip: {error}") from None

    def refuse_missing_statistics(self) -> None:
        """Raises ConfigError where `recovery.data_free` finds no statistics to make inputs from."""
        if not self.config.recovery.data_free:
            return
        try:
            check_inputs_can_be_made(self.structure.traced.module, self.example)
        except CompressError as error:
            raise ConfigError(f"recovery.data_free: {error}") from None

    def refuse_unknown_pairs(self) -> None:
        """Raises ConfigError where the distillation finds no layers to compare, or names some that are not there."""
        distillation = self.parts.distillation
        if distillation is None or distillation.reads == "outputs" or not self.config.finetune.alpha:
            return
        if self.config.quantize.ranks:  # as above
            return
        try:
            Distiller(distillation, self.planned.traced.module, self.model, self.example, self.config.seed)
        except CompressError as error:
            raise ConfigError(f"distillation: {error}") from None

    def refuse_impossible_budget(self) -> None:
        """Raises BudgetError for a budget that no plan meets, ConfigError for constraints on what is not there."""
        parts, units, costs = self.parts, self.structure.units, self.costs
        choices = ["removed", *(parts.oracles["layer_choice"].choices if self.quantizes else ())]
        try:
            check_budget(units, costs, parts.budget, parts.constraints, choices, always_quantize=self.quantizes)
        except BudgetError:
            raise
        except CompressError as error:
            raise ConfigError(str(error)) from None

    @property
    def quantizes(self) -> bool:
        return self.config.quantize.enabled

    def metrics_of(self, model: nn.Module, part: str) -> dict[str, float]:
        metric, loss = evaluate(model, self.task, self.batches(part))
        return {"metric": metric, "loss": loss}

    def pruned(self, plan: CompressionPlan) -> fx.GraphModule:
        """The model without what the plan removes, its layers of low rank divided; in evaluation mode."""
        return self._divided(self._sliced(plan), plan, None)

    def repaired(self, plan: CompressionPlan, inputs: list[tuple[Tensor, ...]] | None = None) -> fx.GraphModule:
        """The same after recovery without labels: of the sliced model, and once more after its layers are divided."""
        inputs = inputs or self.recovery_inputs()
        small = self._sliced(plan)
        ranks = any(layer_format.rank for layer_format in plan.layer_formats.values())
        if plan.remove_channels or not ranks:
            self._repair(small, plan, inputs)
        if ranks:
            small = self._divided(small, plan, inputs)
            self._repair(small, plan, inputs)
        return small

    def _sliced(self, plan: CompressionPlan) -> fx.GraphModule:
        return slice_model(self.planned, plan.removed_mask(self.planned.units)).eval()

    def _divided(
        self, small: fx.GraphModule, plan: CompressionPlan, inputs: list[tuple[Tensor, ...]] | None
    ) -> fx.GraphModule:
        """The model with the plan's layers of low rank, their outputs as close as can be on calibration inputs."""
        names = [name for name, layer_format in plan.layer_formats.items() if layer_format.rank]
        if not names:
            return small
        moments = collect_input_moments(small, inputs or self.recovery_inputs(), names, seed=self.config.seed)
        return factorize_plan(small, plan, moments).eval()

    def _repair(self, small: fx.GraphModule, plan: CompressionPlan, inputs: list[tuple[Tensor, ...]]) -> None:
        """Recovery without labels, in place."""
        settings = self.config.recovery
        recover_(
            small,
            self.structure,
            inputs,
            plan=plan,
            steps=settings.steps,
            layers=settings.layers,
            ridge=settings.ridge,
            max_rows=settings.max_rows,
            seed=self.config.seed,
        )

    def recovery_inputs(self) -> list[tuple[Tensor, ...]]:
        """Unlabelled inputs for recovery, from the calibration part."""
        settings, size = self.config.recovery, self.config.measure.batch_size
        if settings.data_free:
            return self._synthetic_inputs
        if not settings.augment:
            return [tuple(self.task.inputs(b)) for b in self.batches("calibration", size, limit=settings.images)]
        part = self.data.calibration if settings.images is None else self.data.calibration.take(settings.images)
        return [tuple(self.task.inputs(batch)) for batch in ShuffledBatches(part, size, self.config.seed)]

    @cached_property
    def _synthetic_inputs(self) -> list[tuple[Tensor, ...]]:
        size, images = self.config.measure.batch_size, self.config.recovery.images or 512
        n_batches = max(1, images // size)
        return synthesize_batches(
            self.structure.traced.module, self.example, n_batches=n_batches, batch_size=size, seed=self.config.seed
        )

    def train_batches(self, seed: int | None = None, examples: int | None = None) -> PlacedBatches:
        """Augmented batches of the training part, or of its first `examples`, in another order every epoch."""
        settings, seed = self.config.finetune, self.config.seed if seed is None else seed
        part = self.data.train if examples is None else self.data.train.take(min(examples, len(self.data.train)))
        batches = ShuffledBatches(part, settings.batch_size, seed, views=settings.views)
        return PlacedBatches(batches, torch.device(self.config.device))

    def training_settings(self) -> dict[str, Any]:
        """What all trainings after the plan share."""
        settings = self.config.finetune
        return {
            "teacher": self.teacher,
            "distillation": self.parts.distillation,
            "weight_decay": settings.weight_decay,
            "alpha": settings.alpha,
            "temperature": settings.temperature,
            "optimizer": settings.optimizer,
            "patience": settings.patience,
            "precision": settings.precision,
            "range_rate": self.config.quantize.range_rate,
            "validation": PlacedBatches(self.batches("validation"), torch.device(self.config.device))
            if settings.select == "best"
            else None,
        }

    def finetune(
        self,
        small: fx.GraphModule,
        epochs: int,
        lr: float,
        name: str | None,
        checkpoint: Path | None = None,
        seed: int | None = None,
        hooks: Sequence[TrainingHook] = (),
        examples: int | None = None,
        select: bool = True,
    ) -> None:
        """Fine-tune with distillation from the dense model, in place, on the first `examples` or on all.

        Args:
            name: what its metrics are logged as; None for a training that is not told of.
            select: whether the epoch is chosen that the settings ask for; else the last.
        """
        if not epochs:
            return
        with placed([small, self.teacher], torch.device(self.config.device)):
            finetune_(
                small,
                self.task,
                self.train_batches(seed, examples),
                epochs=epochs,
                lr=lr,
                hooks=hooks,
                checkpoint=checkpoint,
                on_metrics=None if name is None else self.log_as(name),
                progress=name is not None,
                **(self.training_settings() if select else {**self.training_settings(), "validation": None}),
            )

    @property
    def finetuning_steps(self) -> int:
        """Optimizer steps of a fine-tuning in the comparison, or of the chosen plan's where none is compared."""
        epochs = self.config.compare.finetune_epochs or self.config.finetune.epochs
        return epochs * self._epoch_steps

    def finetune_steps(
        self, small: fx.GraphModule, steps: int, lr: float, name: str | None, seed: int, select: bool = True
    ) -> int:
        """Fine-tune for about so many steps, see `finetune`, in equal epochs over a part of the training data; return
        how many."""
        epochs = math.ceil(steps / self._epoch_steps)
        each = math.ceil(steps / epochs)
        examples = each * self.config.finetune.batch_size
        self.finetune(small, epochs, lr, name, seed=seed, examples=examples, select=select)
        return epochs * each

    @property
    def _epoch_steps(self) -> int:
        return max(1, len(self.data.train) // self.config.finetune.batch_size)

    def input_spec(self) -> dict[str, Any]:
        if self.data.layout == "tokens":
            return {"layout": "tokens", "inputs": ["input_ids", "attention_mask"]}
        return {
            "shape": list(self.data.input_shape),
            "mean": list(self.data.mean),
            "std": list(self.data.std),
            "layout": self.data.layout,
        }

    def log_as(self, prefix: str) -> Any:
        def on_metrics(metrics: Mapping[str, float], step: int) -> None:
            self.tracker.log_metrics({f"{prefix}/{name}": value for name, value in metrics.items()}, step)

        return on_metrics
