"""The stages of a run that say what the parts of a network are worth: features, widths alone and together, labels."""

import warnings
from dataclasses import asdict
from pathlib import Path
from typing import Any

import numpy as np

from autolabel.explanation import explain, layer_steps, top_features
from autolabel.extraction import extract_features
from autolabel.feature import describe_features
from autolabel.features.criteria import CRITERIA
from autolabel.joint_widths import learn_joint_widths
from autolabel.learning import Learned, learn_labels
from autolabel.measuring import measure
from autolabel.tables import LabelTable
from compress.criterion import Criterion
from compress.files import write_json
from experiments.progress import progress
from experiments.run_files import JOINT_FILE
from experiments.tracker import to_json
from experiments.workbench import Workbench

LAYER_ROWS = "layer_rows.jsonl"


class Labelling(Workbench):
    """What is measured and learned before anything is decided."""

    def write_features(self) -> None:
        """Features of every removable unit."""
        features = extract_features(self.structure, task=self.task, statistics=self.statistics)
        features.save(self.run_dir.file("features.npz"))

    def measure_layers(self, rows_file: Path | None = None) -> None:
        """Damage of every width of every layer: the sensitivity curves.

        Args:
            rows_file: of measured rows; None for the run's own.
        """
        settings = self.config.measure
        batches = self.batches("label", settings.batch_size, limit=settings.images)
        oracle = self.parts.oracles["layer_choice"]
        with progress("layer sensitivity") as on_row:
            labels = measure(
                self.structure,
                None,
                self.task,
                batches,
                oracle,
                None,
                seed=self.config.seed,
                rows_file=rows_file or self.run_dir.file(LAYER_ROWS),
                on_row=on_row,
            )
        labels.save(self.run_dir.file("layer_labels.npz"))

    def measure_joint(self) -> None:
        """What the widths of all layers do together, if it is asked for."""
        plans, settings = self.config.quantize.joint_plans, self.config.measure
        self.run_dir.file(JOINT_FILE).unlink(missing_ok=True)
        if not plans:
            return
        batches = self.batches("label", settings.batch_size, limit=settings.images)
        labels = LabelTable.load(self.run_dir.path / "layer_labels.npz")
        with progress("widths together") as on_plan:
            joint = learn_joint_widths(self.width_bench, batches, labels, plans, self.config.seed, on_plan)
        joint.save(self.run_dir.file(JOINT_FILE))

    def judged_criteria(self) -> dict[str, Criterion]:
        """Name -> criterion that the labeler is held against: those that are compared, and all that are features."""
        found = dict(self.parts.baselines)
        for name, criterion in CRITERIA.items():
            if criterion not in found.values():
                # A baseline of that name may have other settings.
                found[f"{name} (raw)" if name in found else name] = criterion
        configured = self.parts.criterion
        if configured not in found.values():
            found[f"{configured.name} (configured)" if configured.name in found else configured.name] = configured
        return found

    def learn(self) -> None:
        """Measure a sample, learn from it, label every unit."""
        settings = self.config.measure
        batches = self.batches("label", settings.batch_size, limit=settings.images)
        oracle = self.parts.oracles["removal"]
        formats = LabelTable.load(self.run_dir.path / "layer_labels.npz") if self.quantizes else None
        with progress("measuring") as on_row, warnings.catch_warnings():
            # Criteria that are only judged here: who is compared by one is told so then.
            warnings.filterwarnings("ignore", message=".*have no batch norm.*", category=UserWarning)
            learned = learn_labels(
                self.structure,
                self.task,
                batches,
                self.statistics,
                self.parts.labeler,
                oracle,
                sample=settings.sample,
                criteria=self.judged_criteria(),
                **self.sampling(formats),
                seed=self.config.seed,
                rows_file=self.run_dir.file("rows.jsonl"),
                on_row=on_row,
            )
        learned.labels.save(self.run_dir.file("labels.npz"))
        learned.held_out.save(self.run_dir.file("held_out.npz"))
        learned.labeler.save(self.run_dir.file("labeler"))
        units, labels = self.structure.units, learned.labels
        known = set(labels.unit_ids)
        groups = dict.fromkeys(str(units.group[i]) for i in np.flatnonzero(units.removable) if units.ids[i] in known)
        steps = {group: [asdict(step) for step in layer_steps(units, self.costs, labels, group)] for group in groups}
        write_json(self.run_dir.file("group_steps.json"), to_json(steps))
        write_json(self.run_dir.file("explanations.json"), to_json(_explanations(learned)))
        described = describe_features()
        top = top_features(learned.labeler, learned.features) if learned.labeler.name != "mean" else ()
        held_out = [
            {**asdict(a), "kind": "labeler" if i == 0 else "criterion"} for i, a in enumerate(learned.agreement)
        ]
        best = max((a.spearman for a in learned.agreement[1:] if a.spearman is not None), default=-1.0)
        own = learned.agreement[0].spearman
        write_json(
            self.run_dir.file("labeler.json"),
            to_json(
                {
                    "labeler": learned.labeler.name,
                    "n_measured": int(np.isfinite(learned.measured.damage).any(1).sum()),
                    "n_units": len(learned.labels.unit_ids),
                    "seconds": learned.seconds,
                    "forward_macs": learned.measured.forward_macs,
                    "naive_macs": learned.measured.naive_macs,
                    "held_out": held_out,
                    "coverage": learned.coverage,
                    "won": own is not None and own >= best,
                    "top_features": [{**asdict(f), "description": described.get(f.name, "")} for f in top],
                }
            ),
        )
        self.tracker.log_table(
            "labels",
            ["unit", "source", "damage", "lower", "upper"],
            [
                [unit, str(source), damage, lower, upper]
                for unit, source, damage, lower, upper in zip(
                    learned.labels.unit_ids,
                    learned.labels.source,
                    learned.labels.damage[:, 0].tolist(),
                    learned.labels.lower[:, 0].tolist(),
                    learned.labels.upper[:, 0].tolist(),
                    strict=True,
                )
            ],
        )


def _explanations(learned: Learned) -> dict[str, Any]:
    """Words -> explanation of a few telling units, those first whose label was not measured."""
    if learned.labeler.name == "mean":
        return {}
    labels = learned.labels
    damage, width = labels.damage[:, labels.choices.index("removed")], (labels.upper - labels.lower)[:, 0]
    rows = np.flatnonzero(np.isfinite(damage) & (labels.source != "measured"))
    rows = rows if len(rows) else np.flatnonzero(np.isfinite(damage))
    order = rows[np.argsort(damage[rows], kind="stable")]
    if not len(order):
        return {}
    chosen = {
        "least predicted damage": order[0],
        "median": order[len(order) // 2],
        "most predicted damage": order[-1],
        "widest interval": rows[np.argmax(np.nan_to_num(width[rows]))],
    }
    return {
        words: asdict(explain(learned.labeler, learned.features, labels.unit_ids[row], "removed", 5, learned.measured))
        for words, row in chosen.items()
        # Told once, by the first of these words.
        if row not in list(chosen.values())[: list(chosen).index(words)]
    }
