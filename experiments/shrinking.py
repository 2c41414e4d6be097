"""The stage that makes the small network: slice, divide, repair, mask, fine-tune, quantise, and leave the artifact."""

import logging
from collections.abc import Iterable, Mapping
from dataclasses import asdict, replace
from typing import Any

import numpy as np
import torch
from torch import fx, nn

from autolabel.weight_cells import label_weights
from compress.artifact import save_artifact
from compress.budget import cost_words
from compress.channel_shares import share_scores
from compress.counting import count_macs
from compress.factor_formats import part_formats
from compress.fake_quantization import quantized_weights
from compress.files import write_json
from compress.float_rounding import round_floats_
from compress.folding import fold_batch_norm
from compress.layer_moments import weight_readers
from compress.masking import density_of
from compress.number_format import NumberFormat
from compress.plan import CompressionPlan, LayerFormat
from compress.quantization import prepare_quantized
from compress.rewinding import rewind_
from compress.second_order_pruning import prune_weights_
from compress.sparsifier import Sparsifier
from compress.sparsity_schedule import SparsitySchedule
from compress.sparsity_schedules import OneShotSchedule, PolynomialSchedule
from compress.statistics import collect_statistics
from compress.structure import analyze, analyze_changed
from compress.task import evaluate
from compress.training_hook import TrainingHook
from compress.weight_rounding import round_weights_
from experiments.components import acts_in
from experiments.embedding_task import TARGET_NOISE
from experiments.labelling import Labelling
from experiments.quantities import format_metric, metric_words
from experiments.settings import DENSITY
from experiments.tracker import to_json

# The artifact's manifest before later stages enter their files, from which it can be made again.
SAVED_MANIFEST = "artifact.json"
# By what part of their value metric and loss are worse where training did harm.
_HARM = 0.1
log = logging.getLogger(__name__)


class Shrinking(Labelling):
    """From the plan to the artifact."""

    def compress(self) -> None:
        """Apply the plan, repair, fine-tune, quantise, and leave the artifact."""
        plan = CompressionPlan.load(self.run_dir.path / "plan.json")
        stages: dict[str, dict[str, float]] = {}
        small = self.pruned(plan)
        label = self.batches("label", limit=self.config.measure.images)
        dense_loss = evaluate(self.model, self.task, label)[1]
        realised: dict[str, float] = {}
        if self.parts.student is None:  # which knows nothing yet that could be repaired
            stages["pruned"] = self.metrics_of(small, "test")
            realised["pruned"] = evaluate(small, self.task, label)[1] - dense_loss
            small = self.repaired(plan)
            stages["recovered"] = self.metrics_of(small, "test")
            realised["recovered"] = evaluate(small, self.task, label)[1] - dense_loss
        judged = self.parts.student is None and self.config.finetune.epochs > 0
        repaired = self.metrics_of(small, "validation") if judged else None
        small = self.trained(small, plan)
        if repaired is not None:
            self.warn_of_harm(repaired, self.metrics_of(small, "validation"))
        stages["fine_tuned"] = self.metrics_of(small, "test")
        final, plan = small, self.final_plan(small, plan)
        if self.quantizes and part_formats(plan):
            if plan.activation_bits is None and self.config.quantize.activation_bits is not None:
                # No warning: it is the default, which nobody asked for.
                log.info("Activations stay float: quantize.activation_bits acts on layers that compute on integers.")
            # Before its formats, for the float32 file. Ranks are of the module itself.
            ranks = {
                name: LayerFormat(32, "float32", rank=f.rank, rank_scheme=f.rank_scheme)
                for name, f in plan.layer_formats.items()
                if f.rank
            }
            plain = replace(plan, layer_formats=ranks, activation_bits=None)
            save_artifact(self.run_dir.path / "unquantized", small, plain, self.example)
            final = self.quantize(small, plan)
        if final is not small or self.config.export.float_bits < 32:
            round_floats_(final, self.config.export.float_bits)
            stages["quantized"] = self.metrics_of(final, "test")
        realised["final"] = evaluate(final, self.task, label)[1] - dense_loss
        # A new artifact has no exported files: that stage is no longer done.
        (self.run_dir.path / "export.json").unlink(missing_ok=True)
        manifest = save_artifact(
            self.run_dir.path / "artifact", final, plan, self.example, self.input_spec(), self.data.class_names
        )
        write_json(self.run_dir.file(SAVED_MANIFEST), manifest)
        self._tell(plan, small, manifest["weight_bytes"], stages, realised)

    def trained(self, small: fx.GraphModule, plan: CompressionPlan) -> fx.GraphModule:
        """The model after fine-tuning, with masks where the plan or the configuration wants them."""
        settings, finetune = self.config.sparsify, self.config.finetune
        self.prune_weights(small, plan)
        masks = self.sparsifier(small, plan)
        if settings.rewind is None or masks is None:
            hooks = [*([] if masks is None else [masks]), *self.penalties("finetune", small)]
            path = self.run_dir.path / "checkpoint" / "float.safetensors"
            if not finetune.epochs and masks is not None:
                masks.attach(small, 0, 0)
            self.finetune(small, finetune.epochs, finetune.lr, "finetune", path, hooks=hooks)
            return small
        pruning = {name: value for name, value in vars(masks).items() if name in _PRUNING}
        rewind_(
            small, self.task, self.train_batches(), density=masks.density, rounds=settings.rounds,
            rewind=settings.rewind, early=settings.early, pruning=pruning,
            folder=self.run_dir.path / "checkpoint" / "rounds", hooks=self.penalties("finetune", small),
            epochs=finetune.epochs, lr=finetune.lr, **self.training_settings(),
        )  # fmt: skip
        return small

    @property
    def sparsifies(self) -> bool:
        """Whether the configuration wants masks besides the plan's."""
        parts = self.parts
        settings = self.config.sparsify
        wanted = (parts.pattern, parts.weight_score, parts.sparsity_schedule, settings.density, settings.threshold,
                  settings.rewind, settings.update)  # fmt: skip
        return any(value is not None for value in wanted) or settings.by != "score"

    @property
    def density(self) -> float | None:
        """Of the masks that the configuration wants; None for the pattern's own, or what a threshold leaves."""
        settings, pattern = self.config.sparsify, self.parts.pattern
        if settings.density is not None or not self.sparsifies:
            return settings.density if self.sparsifies else 1.0
        if settings.threshold is not None:
            return None
        return None if pattern is not None and pattern.least_density > 0 else DENSITY

    def prune_weights(self, small: fx.GraphModule, plan: CompressionPlan) -> None:
        """Remove weights at once, the others making up for them, if that is configured; in place."""
        settings = self.config.sparsify
        if settings.update is None:
            return
        pattern = self.parts.pattern
        keep: Any = (pattern.n, pattern.m) if pattern is not None and pattern.name == "n_of_m" else self.density
        given = {name: f.density for name, f in part_formats(plan).items() if f.density < 1}
        others = self._without_update(small)
        layers = {name: given.get(name, keep) for name in density_of(small, settings.skip).layers if name not in others}
        if dense := [name for name in others if name not in given]:
            log.warning(
                "sparsify.update leaves %s dense: no conv or linear with a weight of its own.", ", ".join(dense)
            )
        prune_weights_(small, layers, self.recovery_inputs(), method=settings.update, seed=self.config.seed)

    def _without_update(self, small: fx.GraphModule) -> list[str]:
        """The layers, but those that are skipped, whose weights no second moments say how to update."""
        updated = {reader.layer for reader in weight_readers(small)}
        return [name for name in density_of(small, self.config.sparsify.skip).layers if name not in updated]

    def sparsifier(self, small: fx.GraphModule, plan: CompressionPlan) -> Sparsifier | None:
        """The hook that removes weights and holds their zeros; None where all stay."""
        settings, parts = self.config.sparsify, self.parts
        given = {name: f.density for name, f in part_formats(plan).items() if f.density < 1}
        if not self.sparsifies and not given:
            return None
        calibration = self.batches(
            "calibration", self.config.measure.batch_size, self.config.measure.images, noise=TARGET_NOISE
        )
        scores = None
        if settings.by == "labeler":
            label = self.batches("label", self.config.measure.batch_size, limit=self.config.measure.images)
            scores = label_weights(small, self.task, calibration, label, self.parts.labeler, skip=settings.skip).scores
        elif settings.by == "criterion":
            structure, criterion = analyze(small, self.example), self.parts.criterion
            statistics = collect_statistics(structure, self.task, calibration, criterion.needs)
            scores = share_scores(structure, criterion.score(statistics))
        density = self.density
        if settings.update:  # which has removed what it can
            others = self._without_update(small)
            density, given = 1.0, {name: share for name, share in given.items() if name in others}
        schedule: SparsitySchedule = OneShotSchedule() if settings.threshold is not None else PolynomialSchedule()
        return Sparsifier(
            density, parts.pattern or "unstructured", settings.scope, given, settings.floor,
            settings.skip, parts.weight_score, settings.normalize, parts.sparsity_schedule or schedule,
            self.task, calibration, scores, settings.threshold,
        )  # fmt: skip

    def penalties(self, stage: str, model: nn.Module | None = None) -> list[TrainingHook]:
        """The configured penalty where it acts in this training, on the units of the model where it asks for them."""
        penalty = self.parts.penalty
        if penalty is None or stage not in self.config.penalized or not acts_in(penalty, stage):
            return []
        if model is not None and getattr(penalty, "needs_structure", False):
            return [penalty.of_structure(analyze(model, self.example))]
        return [penalty]

    def final_plan(self, small: fx.GraphModule, plan: CompressionPlan) -> CompressionPlan:
        """The plan with the number format that is configured, and the densities that came of masks."""
        formats = dict(plan.layer_formats)
        if self.quantizes:
            formats = {name: self.in_scheme(layer_format) for name, layer_format in formats.items()}
        if self.sparsifies or any(f.density < 1 for f in formats.values()):
            for name, share in density_of(small).layers.items():
                if share < 1 and name in formats:
                    formats[name] = replace(formats[name], density=share)
                elif share < 1 and not any(name.startswith(f"{whole}.") for whole in formats):
                    formats[name] = LayerFormat(32, "float32", density=share)
        bits = None if plan.activation_bits is None else self.activation_bits(formats.values())
        return replace(plan, layer_formats=formats, activation_bits=bits)

    def activation_bits(self, formats: Iterable[LayerFormat]) -> int | None:
        """What activations have beside layers of these formats: few bits only where some layer computes on integers."""
        settings = self.config.quantize
        integers = self.quantizes and any(self.in_scheme(layer_format).on_integers for layer_format in formats)
        return settings.activation_bits if integers and not settings.trained_ranges else None

    def in_scheme(self, layer_format: LayerFormat) -> LayerFormat:
        """The format with the number format that is configured, at the closest bits that this has."""
        settings = self.config.quantize
        return NumberFormat(settings.scheme, settings.granularity, settings.group_size).applied(layer_format)

    def quantize(self, small: fx.GraphModule, plan: CompressionPlan) -> fx.GraphModule:
        """The model in the plan's formats, trained on with them."""
        settings = self.config.quantize
        prepared = self.in_formats(small, plan, "rounding.json")
        hooks: list[TrainingHook] = self.penalties("quantize")
        path = self.run_dir.path / "checkpoint" / "quantized.safetensors"
        self.finetune(prepared, settings.epochs, settings.lr, "quantize", path, hooks=hooks)
        return prepared

    def in_formats(self, small: fx.GraphModule, plan: CompressionPlan, told: str | None = None) -> fx.GraphModule:
        """The model in the plan's formats, not trained with them yet.

        Args:
            told: file of the run that what rounding did is written to.
        """
        settings, inputs = self.config.quantize, self.recovery_inputs()
        quantizer = self.parts.quantizer
        rounds = self.parts.rounding is not None and self.quantizes
        errors: list[Any] = []
        if rounds and settings.trained_ranges:
            small, errors = self._rounded(small, replace(plan, activation_bits=None), inputs)
        prepared = prepare_quantized(small, plan, inputs, quantizer, reduce_range=settings.reduce_range,
                                     trained_ranges=settings.trained_ranges)  # fmt: skip
        if rounds and not settings.trained_ranges:
            errors = self._round(prepared, inputs)
        if rounds and told is not None:
            write_json(self.run_dir.file(told), to_json([asdict(error) for error in errors]))
        return prepared

    def tried(self, small: fx.GraphModule, plan: CompressionPlan, steps: int, name: str, seed: int) -> fx.GraphModule:
        """What a repaired model becomes in so many steps of training in the plan's formats and masks.

        A penalty on bits takes no part: it makes the models smaller than their plans, each by another factor.
        """
        plan = self.with_activations(plan)
        self.prune_weights(small, plan)
        masks = self.sparsifier(small, plan)
        if masks is not None:
            masks.schedule = OneShotSchedule()
            masks.attach(small, 0, 0)
        plan = self.final_plan(small, plan)
        # Which holds masks too.
        model = self.in_formats(small, plan) if part_formats(plan) else small
        if steps:
            self.finetune_steps(model, steps, self.config.quantize.lr, name, seed)
        return model

    def with_activations(self, plan: CompressionPlan) -> CompressionPlan:
        """The plan with what is configured for activations, if it has formats."""
        bits = self.activation_bits(plan.layer_formats.values())
        chosen = replace(plan, activation_bits=bits, activation_ranges=self.config.quantize.activation_ranges)
        return chosen if plan.layer_formats else plan

    def _rounded(
        self, small: fx.GraphModule, plan: CompressionPlan, inputs: list[Any]
    ) -> tuple[fx.GraphModule, list[Any]]:
        """The model, batch norms folded, with rounded weights: where the training of their ranges begins."""
        fixed = prepare_quantized(small, plan, inputs, self.parts.quantizer,
                                  reduce_range=self.config.quantize.reduce_range)  # fmt: skip
        errors = self._round(fixed, inputs)
        folded, values = fold_batch_norm(small, inputs[0]), dict(fixed.named_parameters())
        with torch.no_grad():
            for name, value in folded.named_parameters():
                value.copy_(values[name])
        return folded, errors

    def _round(self, prepared: fx.GraphModule, inputs: list[Any]) -> list[Any]:
        if not quantized_weights(prepared):
            log.warning("The plan leaves every layer in float: rounding has no effect.")
            return []
        return list(round_weights_(prepared, self.parts.rounding, inputs, seed=self.config.seed))

    def cost_of(self, plan: CompressionPlan) -> tuple[float, float]:
        """`(macs, weight_bytes)` of a plan, weights on integers."""
        costs = self.planned_costs
        formats = plan.layer_formats if self.quantizes else {}
        bits = np.array([formats[name].bits if name in formats else 0 for name in costs.layer_names])
        return costs.total(plan.removed_mask(self.planned.units), bits)

    def warn_of_excess(self, met: Mapping[str, float]) -> None:
        """Say which bounds of the budget these costs exceed: a plan is made before formats and masks are chosen."""
        for name, bound in self.parts.budget.absolute(self.costs.dense).items():
            if met.get(name, 0.0) > bound:
                came = cost_words(met[name])
                self.warnings.append(f"The budget of {cost_words(bound)} {name} is exceeded: it came to {came}.")

    def warn_of_harm(self, before: Mapping[str, float], after: Mapping[str, float]) -> None:
        """Say that fine-tuning did harm, if metric and loss are both worse by a tenth: one alone may be chance.

        Args:
            before, after: `metric` and `loss` on validation data, of the repaired and of the fine-tuned network.
        """
        signs = {"metric": 1 if self.task.higher_is_better else -1, "loss": -1}
        if all(sign * (before[key] - after[key]) > _HARM * abs(before[key]) for key, sign in signs.items()):
            was, is_now = format_metric(before["metric"]), format_metric(after["metric"])
            lower = "finetune.lr or penalty.strength" if self.penalties("finetune") else "finetune.lr"
            more = ", or keep more weights" if self.sparsifies else ""
            self.warnings.append(
                f"Fine-tuning did harm: {metric_words(self.task.metric_name)} on validation data was {was} "
                f"after the repair and is {is_now} now; lower {lower}{more}."
            )

    def _tell(
        self, plan: CompressionPlan, small: fx.GraphModule, stored_bytes: int, stages: dict[str, Any],
        realised: dict[str, float],
    ) -> None:  # fmt: skip
        """Write what came of it."""
        formats = plan.layer_formats if self.quantizes else {}
        macs, weight_bytes = self.cost_of(plan)
        counted = count_macs(analyze_changed(small, self.planned))
        ranks = any(layer_format.rank for layer_format in plan.layer_formats.values())
        promised = plan.predicted_cost.get("macs", macs)
        # Ranks may cost less than was planned with.
        gap = max(counted - promised, 0.0) if ranks else abs(counted - promised)
        if gap > 1e-6 * max(promised, 1.0):
            self.warnings.append(f"The plan promised {promised:.0f} MACs, the model has {counted:.0f}.")
        if ranks or not all(f.on_integers for f in formats.values()):
            weight_bytes = float(stored_bytes)
        asked = {k: v for k, v in asdict(self.config.budget).items() if v is not None}
        met = {"macs": counted, "weight_bytes": weight_bytes}
        self.warn_of_excess(met)
        result = {
            "stages": stages,
            "macs": counted,
            "params": sum(p.numel() for p in small.parameters()),
            "weight_bytes": weight_bytes,
            "predicted_damage": plan.predicted_damage,
            "realised_damage": realised,
            "budget": {
                "asked": asked,
                "met": {**plan.predicted_cost, **met},
                "stopped_by": plan.provenance.get("stopped_by"),
            },
        }
        write_json(self.run_dir.file("result.json"), to_json(result))


# What a `Sparsifier` was made with that lottery tickets use again.
_PRUNING = ("pattern", "scope", "overrides", "floor", "skip", "score", "normalize", "task", "batches", "scores")
