"""The stages of one run, files in and files out: any of them can be run again alone, and a killed run goes on."""

import logging
from collections.abc import Callable
from dataclasses import asdict, fields
from typing import Any

import safetensors.torch
import torch
from torch import Tensor

from autolabel.active_sampling import ACTIVE
from autolabel.features.criteria import CRITERIA
from autolabel.joint_damage import JointDamage
from autolabel.plan_search import MEASURED_VERSION
from autolabel.tables import LabelTable
from compress.artifact import load_artifact
from compress.artifact_files import MANIFEST, PACKED, drop_files, register_file
from compress.budget import Budget
from compress.errors import ArtifactError
from compress.files import read_json, write_atomic, write_json
from compress.finetuning import finetune_
from compress.packed_artifact import pack_artifact
from compress.plan import CompressionPlan
from experiments.compared_methods import LABELER, RACE, SEARCHES_VERSION, Method
from experiments.comparison import Comparison
from experiments.components import OPTIONAL
from experiments.config_names import names_of
from experiments.data import ShuffledBatches
from experiments.exporting import export_run
from experiments.front import solve_front
from experiments.front_table import FRONT_FILE, FrontRow
from experiments.labelling import LAYER_ROWS
from experiments.latencies import LATENCIES
from experiments.placement import PlacedBatches, placed
from experiments.plan_prediction import predict_recovered
from experiments.progress import progress
from experiments.raw_table import write_raw
from experiments.run_dir import RunDir
from experiments.run_files import FIGURES, JOINT_FILE, REPORT_HTML, REPORT_JSON
from experiments.settings import Config
from experiments.shrinking import SAVED_MANIFEST
from experiments.stage_settings import stage_settings
from experiments.teaching import Teaching
from experiments.tracker import Tracker, to_json
from experiments.warning_log import collected_warnings

log = logging.getLogger(__name__)
# What differs between two runs of one configuration without meaning anything.
VOLATILE = ("name", "command", "commit", "versions", "machine")
# What says of the artifact's files what they are, and what later stages say of the artifact.
REPORTED = ("warnings.json", REPORT_JSON, REPORT_HTML, FIGURES)
TOLD_OF_ARTIFACT = ("packed.json", "export.json", *REPORTED)


def run_experiment(config: Config, run_dir: RunDir, tracker: Tracker) -> dict[str, Any]:
    """Run every stage that is not done yet and return the final metrics.

    Raises:
        CompressError: for whatever the user can mend; an impossible budget is refused before anything is trained.
    """
    torch.use_deterministic_algorithms(True, warn_only=True)
    experiment = Experiment(config, run_dir, tracker)
    experiment.run()
    # Only here: processes that help, and runs that are refused or go on for hours, draw nothing when they begin.
    from experiments.report import write_report

    report = write_report(run_dir.path)
    run_dir.add_output(run_dir.file("report.json"))
    for path in sorted(run_dir.file(FIGURES).glob("*.png")):
        tracker.log_figure(path.stem, path)
    tracker.log_artifact(run_dir.path / "artifact")
    return {name: value for name, value in report.items() if name not in VOLATILE}


class Experiment(Teaching):
    """One run, stage by stage."""

    def run(self) -> None:
        """Every stage in order."""
        self.refuse_what_would_fail()
        stage, settings = self._run_stage, self._settings
        self._told: list[str] = []
        dense = ["dense/model.safetensors"]
        stage(
            "dense",
            self.train_dense,
            outputs=[*dense, "dense.json"],
            settings=settings("model", "data", "train", *(("penalty", "penalized") if self.penalties("train") else ())),
            scratch=["dense/checkpoint.safetensors"],
        )
        self.load_dense()
        student = self.parts.student is not None
        planned = settings("student") if student else {}
        stage("units", self.write_units, inputs=dense, outputs=["units.npz", "costs.json"], settings=planned)
        if student:
            plan_settings = settings("student", "quantize", *(["front"] if self.config.front else []))
            stage("student", self.plan_student, inputs=dense, outputs=["plan.json"], settings=plan_settings)
        else:
            self._run_decision(dense)
        self._run_rest(dense)
        write_json(self.run_dir.file("warnings.json"), self._told)

    def _run_decision(self, dense: list[str]) -> None:
        """The stages from the dense network to its plan."""
        stage, settings = self._run_stage, self._settings
        stage(
            "features",
            self.write_features,
            inputs=dense,
            outputs=["features.npz"],
            settings=settings("data", "measure"),
        )
        stage(
            "layers",
            self.measure_layers,
            inputs=dense,
            outputs=["layer_labels.npz"],
            settings=settings("data", "measure", "oracles", "quantizer"),
            scratch=[LAYER_ROWS],
        )
        timed = [LATENCIES] if self.config.budget.latency_ms is not None else []
        joint = [JOINT_FILE] if self.config.quantize.joint_plans else []
        stage(
            "joint",
            self.measure_joint,
            inputs=[*dense, "layer_labels.npz"],
            outputs=joint,
            settings=settings("data", "measure", "oracles", "quantizer", "quantize"),
        )
        active = self.config.measure.sampling == ACTIVE
        known = (*self.parts.baselines.values(), *CRITERIA.values())
        labels = ["labels.npz"] if self.config.measure.removals else []
        learned = ["labels.npz", "held_out.npz", "labeler.json", "group_steps.json", "explanations.json", "labeler"]
        if labels:
            stage(
                "labels",
                self.learn,
                inputs=[*dense, "features.npz", *(["layer_labels.npz", *timed] if active else [])],
                outputs=learned,
                settings=settings(
                    "data",
                    "measure",
                    "labeler",
                    "oracles",
                    "baselines",
                    *(["criterion"] if self.parts.criterion not in known else []),
                    *(["budget", "constraints", "allocator", "quantize"] if active else []),
                ),
                scratch=["rows.jsonl"],
            )
        else:
            self.run_dir.delete(learned)
        stage(
            "compare",
            self.compare,
            inputs=[*dense, *labels, "layer_labels.npz", *joint, *timed],
            outputs=["comparison.csv", "choice.json", "plan.json"],
            settings=self.compare_settings(),
            scratch=["comparison"],
        )
        if self.config.measure.plans:
            stage(
                "predict",
                self.predict,
                inputs=[*dense, "plan.json"],
                outputs=["plan_damage.json"],
                settings=settings("data", "measure", "recovery", "constraints", "plan_labeler"),
            )
        else:
            (self.run_dir.path / "plan_damage.json").unlink(missing_ok=True)
        if self.config.front and self.parts.budget != Budget():
            ways = {"compare": {"formats_for": self.config.compare.formats_for}}
            stage(
                "front",
                self.front,
                inputs=[*dense, "labels.npz", "layer_labels.npz", "plan.json", *timed],
                outputs=[FRONT_FILE],
                settings=ways | settings("data", "measure", "oracles", "quantizer", "budget", "constraints",
                                         "allocator", "quantize", "front"),
            )  # fmt: skip
        else:
            (self.run_dir.path / FRONT_FILE).unlink(missing_ok=True)

    def _run_rest(self, dense: list[str]) -> None:
        """The stages from the plan to the files that leave."""
        stage, settings = self._run_stage, self._settings
        stage(
            "compress",
            self.compress,
            inputs=[*dense, "plan.json"],
            # Not the whole folder: later stages add files to it, and their names to its manifest.
            outputs=["artifact/model.safetensors", "artifact/plan.json", "unquantized/*", SAVED_MANIFEST,
                     "result.json"],
            settings=settings("data", "measure", "recovery", "finetune", "quantize", "quantizer", "sparsify",
                              "penalized", "labeler", "export", "student", *OPTIONAL,
                              *(["criterion"] if self.config.sparsify.by == "criterion" else [])),
            scratch=["checkpoint", "artifact", "unquantized"],
            told=TOLD_OF_ARTIFACT,
        )  # fmt: skip
        self.renew_manifest()
        stage(
            "pack",
            self.pack,
            inputs=["artifact/model.safetensors", "artifact/plan.json"],
            outputs=["artifact/weights.packed", "packed.json"],
            settings=settings("export", "model", "data", "student"),
            told=REPORTED,
        )
        if self.config.export.formats:
            stage(
                "export",
                self.export,
                inputs=[*dense, "plan.json", "artifact/model.safetensors"],
                outputs=["export.json", "dense/model.onnx", "artifact/*.onnx"],
                settings=settings("data", "measure", "export", "exporter", "runtime"),
                told=REPORTED,
            )

    def _run_stage(self, name: str, work: Callable[[], None], **files: Any) -> None:
        """Run a stage that is not done; what it warned of is kept, so that a later session tells it too."""
        path = self.run_dir.path / "warnings" / f"{name}.json"

        def work_and_tell() -> None:
            self.warnings.clear()
            self.tracker.begin_stage(name, self.run_dir.stage_key(name))
            with collected_warnings(self.warnings):
                work()
            path.parent.mkdir(exist_ok=True)
            write_json(path, self.warnings)

        self.run_dir.run_stage(name, work_and_tell, **files)
        self._told += read_json(path) if path.exists() else []

    def _settings(self, *names: str) -> dict[str, Any]:
        return stage_settings(self.config, names)

    def compare_settings(self) -> dict[str, Any]:
        """What the comparison depends on besides its input files."""
        names = ["data", "measure", "labeler", "oracles", "criterion", "baselines", "allocator", "budget",
                 "constraints", "recovery", "quantize", "compare", "seeds", "plan_labeler"]  # fmt: skip
        compare = self.config.compare
        races = any(Method(name).spending == RACE for name in compare.methods)
        trained = ["finetune"] if compare.finetune_epochs or compare.trial_steps or races else []
        trained += ["distillation"] if trained and self.config.distillation is not None else []
        tried = ["quantizer", "sparsify", *OPTIONAL] if compare.tries else []
        searches = {"searches": SEARCHES_VERSION} if any(Method(name).searches for name in compare.methods) else {}
        if searches and compare.search_plans:
            searches["measured_search"] = MEASURED_VERSION
        # No seed named is the run's own.
        seeds = {"seeds": self.config.seeds or [self.config.seed]}
        return searches | self._settings(*names, *trained, *tried) | seeds

    def train_dense(self) -> None:
        """Train the dense model where the experiment says so, and keep its weights."""
        settings, device = self.config.train, torch.device(self.config.device)
        if settings.epochs:
            hooks = self.penalties("train", self.model)
            with placed([self.model], device):
                finetune_(
                    self.model,
                    self.task,
                    PlacedBatches(ShuffledBatches(self.data.train, settings.batch_size, self.config.seed), device),
                    epochs=settings.epochs,
                    lr=settings.lr,
                    weight_decay=settings.weight_decay,
                    validation=PlacedBatches(self.batches("validation"), device),
                    checkpoint=self.run_dir.path / "dense" / "checkpoint.safetensors",
                    optimizer=settings.optimizer,
                    hooks=hooks,
                    on_metrics=self.log_as("train"),
                )
        state = {name: value.detach().cpu().contiguous() for name, value in self.model.state_dict().items()}
        data = safetensors.torch.save(_untied(state))
        write_atomic(self.run_dir.file("dense/model.safetensors"), lambda file: file.write(data))
        parameters = sum(p.numel() for p in self.model.parameters())
        write_json(
            self.run_dir.file("dense.json"),
            {
                "metric_name": self.task.metric_name,
                "higher_is_better": self.task.higher_is_better,
                "test": self.metrics_of(self.model, "test"),
                "validation": self.metrics_of(self.model, "validation"),
                "macs": self.costs.dense_macs,
                "params": parameters,
                "weight_bytes": self.costs.dense_weight_bytes,
            },
        )

    def load_dense(self) -> None:
        """Give the model the weights that the dense stage kept."""
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
        # Bits as coded are those of these weights, not of what a model begins its training with.
        self.__dict__.pop("costs", None)

    def write_units(self) -> None:
        """What may be decided on, and what it costs."""
        self.planned.units.save(self.run_dir.file("units.npz"))
        costs = self.planned_costs
        layers = [
            {"name": n, "macs": m, "weights": w, "params": p}
            for n, m, w, p in zip(
                costs.layer_names, costs.layer_macs, costs.layer_weights, costs.layer_params, strict=True
            )
        ]
        write_json(
            self.run_dir.file("costs.json"),
            to_json(
                {
                    "layers": layers,
                    "uncounted": costs.uncounted,
                    "dense_macs": self.costs.dense_macs,
                    "dense_weight_bytes": self.costs.dense_weight_bytes,
                }
            ),
        )

    def compare(self) -> None:
        """Plans of every method at the same budget, repaired alike; the best on validation data becomes the plan."""
        chosen = self.with_activations(self.comparison().run())
        chosen.save(self.run_dir.file("plan.json"))

    def comparison(self) -> Comparison:
        """The comparison of methods on the labels that were learned, if there are any."""
        labels = LabelTable.load(self.run_dir.path / "labels.npz") if self.config.measure.removals else None
        formats = LabelTable.load(self.run_dir.path / "layer_labels.npz") if self.quantizes else None
        joint = JointDamage.load(self.run_dir.path / JOINT_FILE) if self.config.quantize.joint_plans else None
        return Comparison(self, labels, formats, joint)

    def predict(self) -> None:
        """What the plan will do after its repair, from random plans that are repaired and measured."""
        plan = CompressionPlan.load(self.run_dir.path / "plan.json")
        with progress("measuring plans") as on_plan:
            found = predict_recovered(self, plan, self.config.measure.plans, on_plan)
        write_json(self.run_dir.file("plan_damage.json"), found)

    def front(self) -> None:
        """What other budgets would cost in damage as the labeler predicts it."""
        labels = LabelTable.load(self.run_dir.path / "labels.npz")
        knapsack = Method(f"{LABELER}/knapsack")
        chooses = self.quantizes and knapsack.chooses_formats(self.config.compare)
        formats = LabelTable.load(self.run_dir.path / "layer_labels.npz") if chooses else None
        plan = CompressionPlan.load(self.run_dir.path / "plan.json")
        with progress("solving for other budgets") as on_plan:
            rows = solve_front(self, labels, formats, plan, self.config.front, on_plan)
        write_raw(self.run_dir, FRONT_FILE, [field.name for field in fields(FrontRow)], map(vars, rows))

    def renew_manifest(self) -> None:
        """Write the artifact's manifest again, whatever became of it, with the files that later stages added."""
        folder = self.run_dir.path / "artifact"
        write_json(folder / MANIFEST, read_json(self.run_dir.path / SAVED_MANIFEST))
        for path in (folder / PACKED, *sorted(folder.glob("*.onnx"))):
            if path.exists():
                register_file(folder, path.name)

    def pack(self) -> None:
        """The artifact in one entropy-coded file, and what each tensor takes in it."""
        coder = self.config.export.coder
        coded = pack_artifact(self.run_dir.path / "artifact", coder, names_of(self.config), self.planned)
        tensors = [{**asdict(tensor), "packed_bytes": tensor.packed_bytes} for tensor in coded]
        size = (self.run_dir.path / "artifact" / PACKED).stat().st_size
        self.warn_of_excess({"coded_bytes": size})
        write_json(self.run_dir.file("packed.json"), {"file_bytes": size, "coder": coder, "tensors": tensors})

    def export(self) -> None:
        """Files that run, checked and timed in fresh processes."""
        # What an earlier export left is checked with the artifact: a file that was refused since must not be missed.
        drop_files(self.run_dir.path / "artifact", ".onnx")
        final = load_artifact(self.run_dir.path / "artifact", self.planned)
        before = self.run_dir.path / "unquantized"
        found = export_run(self, final, load_artifact(before, self.planned) if before.exists() else None)
        self.warnings += found.pop("warnings")
        write_json(self.run_dir.file("export.json"), to_json(found))


def _untied(state: dict[str, Tensor]) -> dict[str, Tensor]:
    """Copies where two names share memory, which safetensors refuses."""
    seen: set[int] = set()
    out = {}
    for name, value in state.items():
        out[name] = value.clone() if value.data_ptr() in seen else value
        seen.add(value.data_ptr())
    return out
