"""The stages of one run, files in and files out: any of them can be run again alone, and a killed run goes on."""

import logging
from collections.abc import Mapping, Sequence
from dataclasses import asdict, replace
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
import safetensors.torch
import torch
from torch import Tensor, fx, nn

from autolabel.explanation import top_features
from autolabel.extraction import extract_features
from autolabel.feature import describe_features
from autolabel.learning import learn_labels
from autolabel.measuring import measure
from autolabel.tables import LabelTable
from compress.allocation import check_budget
from compress.application import slice_model
from compress.artifact import load_artifact, save_artifact
from compress.counting import count_macs, unit_costs
from compress.errors import ArtifactError
from compress.files import write_atomic, write_json
from compress.finetuning import finetune_
from compress.graph import check_finite
from compress.plan import CompressionPlan
from compress.quantization import prepare_quantized
from compress.recovery import recover_
from compress.statistics import Statistics, collect_statistics
from compress.structure import Structure, analyze
from compress.task import evaluate
from experiments.comparison import Comparison
from experiments.components import Components, build_components
from experiments.data import ShuffledBatches, make_batches
from experiments.exporting import export_run
from experiments.progress import progress
from experiments.report import write_figures, write_report
from experiments.run_dir import RunDir
from experiments.settings import Config
from experiments.tracker import Tracker, to_json

log = logging.getLogger(__name__)
EVALUATION_BATCH = 500


def run_experiment(config: Config, run_dir: RunDir, tracker: Tracker) -> dict[str, Any]:
    """Run every stage that is not done yet and return the final metrics.

    Raises:
        CompressError: for whatever the user can mend; an impossible budget is refused before anything is trained.
    """
    torch.use_deterministic_algorithms(True, warn_only=True)
    experiment = Experiment(config, run_dir, tracker)
    experiment.run()
    report = write_report(run_dir.path)
    run_dir.add_output(run_dir.file("report.json"))
    for name, path in write_figures(run_dir.path).items():
        tracker.log_figure(name, path)
    tracker.log_artifact(run_dir.path / "artifact")
    return report


class Experiment:
    """One run: its components, the dense model, and what the stages share in memory."""

    def __init__(self, config: Config, run_dir: RunDir, tracker: Tracker) -> None:
        self.config, self.run_dir, self.tracker = config, run_dir, tracker
        self.parts: Components = build_components(config)
        self.model: nn.Module = self.parts.model
        self.task, self.data = self.parts.task, self.parts.data
        self.warnings: list[str] = []
        check_finite(self.model)

    def run(self) -> None:
        """Every stage in order."""
        self._refuse_impossible_budget()
        stage, settings = self.run_dir.run_stage, self._settings
        dense = ["dense/model.safetensors"]
        stage("dense", self.train_dense, outputs=[*dense, "dense.json"], settings=settings("model", "data", "train"),
              scratch=["dense/checkpoint.safetensors"])  # fmt: skip
        self._load_dense()
        stage("units", self.write_units, inputs=dense, outputs=["units.npz", "costs.json"])
        stage(
            "features",
            self.write_features,
            inputs=dense,
            outputs=["features.npz"],
            settings=settings("data", "measure"),
        )
        stage("layers", self.measure_layers, inputs=dense, outputs=["layer_labels.npz"],
              settings=settings("data", "measure", "quantize"), scratch=["layer_rows.jsonl"])  # fmt: skip
        stage("labels", self.learn, inputs=[*dense, "features.npz"], outputs=["labels.npz", "held_out.npz", "labeler.json", "labeler"],
              settings=settings("data", "measure", "labeler", "baselines"), scratch=["rows.jsonl"])  # fmt: skip
        compare = settings(
            "data", "measure", "baselines", "allocator", "budget", "constraints", "recovery", "compare", "seeds"
        )
        stage("compare", self.compare, inputs=[*dense, "labels.npz", "layer_labels.npz"],
              outputs=["comparison.csv", "choice.json", "plan.json"], settings=compare,
              scratch=["comparison"])  # fmt: skip
        stage("compress", self.compress, inputs=[*dense, "plan.json"], outputs=["artifact", "result.json"],
              settings=settings("data", "recovery", "finetune", "quantize"), scratch=["checkpoint"])  # fmt: skip
        if self.config.export.formats:
            stage("export", self.export, inputs=[*dense, "plan.json", "artifact/model.safetensors"],
                  outputs=["export.json", "dense/model.onnx"], settings=settings("export"))  # fmt: skip
        write_json(self.run_dir.file("warnings.json"), self.warnings)

    def _settings(self, *names: str) -> dict[str, Any]:
        chosen = {name: getattr(self.config, name) for name in ("seed", "threads", "task", *names)}
        return {name: to_json(asdict(v) if hasattr(v, "__dataclass_fields__") else v) for name, v in chosen.items()}

    # -- shared ------------------------------------------------------------------------------------------------------

    @cached_property
    def structure(self) -> Structure:
        """The traced dense model."""
        return analyze(self.model, self._example)

    @cached_property
    def _example(self) -> tuple[Any, ...]:
        batch = make_batches(self.data.calibration, 2, limit=2)[0]
        return tuple(self.task.inputs(batch))

    @cached_property
    def costs(self) -> Any:
        """Costs of every unit."""
        return unit_costs(self.structure)

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
    def statistics(self) -> Statistics:
        """Statistics of the calibration data."""
        return self.statistics_of(self.batches("calibration", self.config.measure.batch_size, noise=0.05))

    def statistics_of(self, batches: Sequence[Any]) -> Statistics:
        """Statistics of these batches."""
        return collect_statistics(self.structure, self.task, batches)

    def _refuse_impossible_budget(self) -> None:
        choices = ["removed", *(f"{bits}bit" for bits in self.config.quantize.bits)] if self._quantizes else ["removed"]
        check_budget(self.structure.units, self.costs, self.parts.budget, self.parts.constraints, choices,
                     always_quantize=self._quantizes)  # fmt: skip

    @property
    def _quantizes(self) -> bool:
        return self.config.quantize.enabled

    def _metrics(self, model: nn.Module, part: str) -> dict[str, float]:
        metric, loss = evaluate(model, self.task, self.batches(part))
        return {"metric": metric, "loss": loss}

    # -- stages ------------------------------------------------------------------------------------------------------

    def train_dense(self) -> None:
        """Train the dense model where the experiment says so, and keep its weights."""
        settings = self.config.train
        if settings.epochs:
            finetune_(self.model, self.task, ShuffledBatches(self.data.train, settings.batch_size, self.config.seed),
                      epochs=settings.epochs, lr=settings.lr, weight_decay=settings.weight_decay,
                      validation=self.batches("validation"), checkpoint=self.run_dir.path / "dense" / "checkpoint.safetensors",
                      optimizer=settings.optimizer, on_metrics=self._log("train"))  # fmt: skip
        state = {name: value.detach().cpu().contiguous() for name, value in self.model.state_dict().items()}
        data = safetensors.torch.save(_untied(state))
        write_atomic(self.run_dir.file("dense/model.safetensors"), lambda file: file.write(data))
        parameters = sum(p.numel() for p in self.model.parameters())
        write_json(self.run_dir.file("dense.json"), {
            "metric_name": self.task.metric_name, "higher_is_better": self.task.higher_is_better,
            "test": self._metrics(self.model, "test"), "validation": self._metrics(self.model, "validation"),
            "macs": self.costs.dense_macs, "params": parameters, "weight_bytes": self.costs.dense_weight_bytes,
        })  # fmt: skip

    def _load_dense(self) -> None:
        path = self.run_dir.path / "dense" / "model.safetensors"
        try:
            state = safetensors.torch.load(path.read_bytes())
        except (OSError, safetensors.SafetensorError) as error:
            raise ArtifactError(f"{path} is damaged ({error}). Delete it and run again.") from error
        own = self.model.state_dict()
        with torch.no_grad():
            for name, value in state.items():
                own[name].copy_(value)
        self.model.eval()

    def write_units(self) -> None:
        """What may be decided on, and what it costs."""
        self.structure.units.save(self.run_dir.file("units.npz"))
        costs = self.costs
        layers = [{"name": n, "macs": m, "weights": w, "params": p} for n, m, w, p in zip(
            costs.layer_names, costs.layer_macs, costs.layer_weights, costs.layer_params, strict=True)]  # fmt: skip
        write_json(self.run_dir.file("costs.json"), to_json({
            "layers": layers, "uncounted": costs.uncounted, "dense_macs": costs.dense_macs,
            "dense_weight_bytes": costs.dense_weight_bytes,
        }))  # fmt: skip

    def write_features(self) -> None:
        """Features of every removable unit."""
        features = extract_features(self.structure, task=self.task, statistics=self.statistics)
        features.save(self.run_dir.file("features.npz"))

    def measure_layers(self) -> None:
        """Damage of every width of every layer: the sensitivity curves."""
        settings = self.config.measure
        batches = self.batches("label", settings.batch_size, limit=settings.images)
        oracle = self.parts.oracles["layer_choice"]
        with progress("layer sensitivity") as on_row:
            labels = measure(self.structure, None, self.task, batches, oracle, None, seed=self.config.seed,
                             rows_file=self.run_dir.file("layer_rows.jsonl"), on_row=on_row)  # fmt: skip
        labels.save(self.run_dir.file("layer_labels.npz"))

    def learn(self) -> None:
        """Measure a sample, learn from it, label every unit."""
        settings = self.config.measure
        batches = self.batches("label", settings.batch_size, limit=settings.images)
        oracle = self.parts.oracles["removal"]
        with progress("measuring") as on_row:
            learned = learn_labels(
                self.structure, self.task, batches, self.statistics, self.parts.labeler, oracle,
                sample=settings.sample, criteria=self.parts.baselines, strategy=settings.sampling,
                seed=self.config.seed, rows_file=self.run_dir.file("rows.jsonl"), on_row=on_row,
            )  # fmt: skip
        learned.labels.save(self.run_dir.file("labels.npz"))
        learned.held_out.save(self.run_dir.file("held_out.npz"))
        learned.labeler.save(self.run_dir.file("labeler"))
        described = describe_features()
        top = top_features(learned.labeler, learned.features) if learned.labeler.name != "mean" else ()
        held_out = [
            {**asdict(a), "kind": "labeler" if i == 0 else "criterion"} for i, a in enumerate(learned.agreement)
        ]
        best = max((a.spearman for a in learned.agreement[1:] if a.spearman is not None), default=-1.0)
        own = learned.agreement[0].spearman
        write_json(self.run_dir.file("labeler.json"), to_json({
            "labeler": learned.labeler.name, "n_measured": int(np.isfinite(learned.measured.damage).any(1).sum()),
            "n_units": len(learned.labels.unit_ids), "seconds": learned.seconds,
            "forward_macs": learned.measured.forward_macs, "naive_macs": learned.measured.naive_macs,
            "held_out": held_out, "coverage": learned.coverage, "won": own is not None and own >= best,
            "top_features": [{**asdict(f), "description": described.get(f.name, "")} for f in top],
        }))  # fmt: skip
        self.tracker.log_table("labels", ["unit", "source", "damage", "lower", "upper"], [
            [unit, str(source), damage, lower, upper] for unit, source, damage, lower, upper in zip(
                learned.labels.unit_ids, learned.labels.source, learned.labels.damage[:, 0].tolist(),
                learned.labels.lower[:, 0].tolist(), learned.labels.upper[:, 0].tolist(), strict=True)])  # fmt: skip

    def compare(self) -> None:
        """Plans of every method at the same budget, repaired alike; the best on validation data becomes the plan."""
        labels = LabelTable.load(self.run_dir.path / "labels.npz")
        formats = LabelTable.load(self.run_dir.path / "layer_labels.npz") if self._quantizes else None
        comparison = Comparison(self, labels, formats)
        chosen = comparison.run()
        if chosen.layer_formats:
            chosen = replace(chosen, activation_bits=self.config.quantize.activation_bits)
        chosen.save(self.run_dir.file("plan.json"))

    def compress(self) -> None:
        """Apply the plan, repair, fine-tune, quantise, and leave the artifact."""
        plan = CompressionPlan.load(self.run_dir.path / "plan.json")
        stages: dict[str, dict[str, float]] = {}
        small = self.pruned(plan)
        stages["pruned"] = self._metrics(small, "test")
        label = self.batches("label", limit=self.config.measure.images)
        dense_loss = evaluate(self.model, self.task, label)[1]
        realised = {"pruned": evaluate(small, self.task, label)[1] - dense_loss}
        self.repair(small, plan)
        stages["recovered"] = self._metrics(small, "test")
        realised["recovered"] = evaluate(small, self.task, label)[1] - dense_loss
        self.finetune(small, self.config.finetune.epochs, self.config.finetune.lr, "finetune", self.run_dir.path / "checkpoint" / "float.safetensors")  # fmt: skip
        stages["fine_tuned"] = self._metrics(small, "test")
        final: fx.GraphModule = small
        if self._quantizes and plan.layer_formats:
            final = self.quantize(small, plan)
            stages["quantized"] = self._metrics(final, "test")
        realised["final"] = evaluate(final, self.task, label)[1] - dense_loss
        save_artifact(
            self.run_dir.path / "artifact", final, plan, self._example, self._input_spec(), self.data.class_names
        )
        bits = np.array([plan.layer_formats[n].bits if n in plan.layer_formats else 0 for n in self.costs.layer_names])
        macs, weight_bytes = self.costs.total(plan.removed_mask(self.structure.units), bits)
        counted = count_macs(small, self._example)
        if abs(counted - macs) > 1e-6 * max(macs, 1.0):
            self.warnings.append(f"The plan promised {macs:.0f} MACs, the sliced model has {counted:.0f}.")
        asked = {k: v for k, v in asdict(self.config.budget).items() if v is not None}
        write_json(self.run_dir.file("result.json"), to_json({
            "stages": stages, "macs": counted, "params": sum(p.numel() for p in small.parameters()),
            "weight_bytes": weight_bytes, "predicted_damage": plan.predicted_damage, "realised_damage": realised,
            "budget": {"asked": asked, "met": {"macs": counted, "weight_bytes": weight_bytes},
                       "stopped_by": plan.provenance.get("stopped_by")},
        }))  # fmt: skip

    def export(self) -> None:
        """Files that run, checked and timed in fresh processes."""
        final = load_artifact(self.run_dir.path / "artifact", self.model)
        found = export_run(self, final)
        self.warnings += found.pop("warnings")
        write_json(self.run_dir.file("export.json"), to_json(found))

    # -- steps that the comparison uses too --------------------------------------------------------------------------

    def pruned(self, plan: CompressionPlan) -> fx.GraphModule:
        """The sliced model in evaluation mode."""
        small = slice_model(self.structure, plan.removed_mask(self.structure.units))
        return small.eval()

    def repair(
        self, small: fx.GraphModule, plan: CompressionPlan, inputs: list[tuple[Tensor, ...]] | None = None
    ) -> None:
        """Recovery without labels, in place."""
        settings = self.config.recovery
        inputs = inputs or self.recovery_inputs()
        recover_(small, self.structure, inputs, plan=plan, steps=settings.steps, layers=settings.layers,
                 ridge=settings.ridge, max_rows=settings.max_rows, seed=self.config.seed)  # fmt: skip

    def recovery_inputs(self) -> list[tuple[Tensor, ...]]:
        """Unlabelled inputs for recovery, from the calibration part."""
        settings, size = self.config.recovery, self.config.measure.batch_size
        if not settings.augment:
            return [tuple(self.task.inputs(b)) for b in self.batches("calibration", size, limit=settings.images)]
        part = self.data.calibration if settings.images is None else self.data.calibration.take(settings.images)
        return [tuple(self.task.inputs(batch)) for batch in ShuffledBatches(part, size, self.config.seed)]

    def finetune(
        self,
        small: fx.GraphModule,
        epochs: int,
        lr: float,
        name: str,
        checkpoint: Path | None = None,
        seed: int | None = None,
    ) -> None:
        """Fine-tune with distillation from the dense model, in place."""
        settings = self.config.finetune
        if not epochs:
            return
        seed = self.config.seed if seed is None else seed
        batches = ShuffledBatches(self.data.train, settings.batch_size, seed)
        finetune_(small, self.task, batches, teacher=self.model, epochs=epochs, lr=lr, weight_decay=settings.weight_decay,
                  alpha=settings.alpha, temperature=settings.temperature, optimizer=settings.optimizer,
                  patience=settings.patience, validation=self.batches("validation"), checkpoint=checkpoint,
                  on_metrics=self._log(name))  # fmt: skip

    def quantize(self, small: fx.GraphModule, plan: CompressionPlan) -> fx.GraphModule:
        """The model in the plan's formats, trained on with them."""
        settings = self.config.quantize
        prepared = prepare_quantized(small, plan, self.recovery_inputs(), self.parts.quantizer)
        self.finetune(
            prepared,
            settings.epochs,
            settings.lr,
            "quantize",
            self.run_dir.path / "checkpoint" / "quantized.safetensors",
        )
        return prepared

    def _input_spec(self) -> dict[str, Any]:
        if self.data.layout == "tokens":
            return {"layout": "tokens", "inputs": ["input_ids", "attention_mask"]}
        return {"shape": list(self.data.input_shape), "mean": list(self.data.mean), "std": list(self.data.std),
                "layout": self.data.layout}  # fmt: skip

    def _log(self, prefix: str) -> Any:
        def on_metrics(metrics: Mapping[str, float], step: int) -> None:
            self.tracker.log_metrics({f"{prefix}/{name}": value for name, value in metrics.items()}, step)

        return on_metrics


def _untied(state: dict[str, Tensor]) -> dict[str, Tensor]:
    """Copies where two names share memory, which safetensors refuses."""
    seen: set[int] = set()
    out = {}
    for name, value in state.items():
        out[name] = value.clone() if value.data_ptr() in seen else value
        seen.add(value.data_ptr())
    return out
