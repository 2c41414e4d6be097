"""Every method at the same budget, repaired and fine-tuned alike; the best on validation data writes the plan."""

import csv
import io
import json
import logging
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from filelock import FileLock, Timeout

from autolabel.joint_damage import JointDamage
from autolabel.joint_widths import joint_labels
from autolabel.learning import join_scores, learn_labels
from autolabel.tables import LabelTable
from compress.allocation import allocate
from compress.criteria import FisherCriterion
from compress.criterion import score_units
from compress.errors import ArtifactError, BudgetError
from compress.files import read_json, write_atomic, write_json
from compress.plan import CompressionPlan
from compress.quantizer import FLOAT_BITS
from compress.scores import Scores, as_damage
from compress.statistics import Statistics
from compress.task import evaluate
from experiments.compared_methods import ADDING, CRITERION, LABELER, RACE, REFIT_LOSS, Method, methods_of
from experiments.components import build_components
from experiments.embedding_task import TARGET_NOISE
from experiments.manifest import describe_code, library_versions, typed_command
from experiments.progress import progress
from experiments.searched_plan import PlanFinder, told_competence

if TYPE_CHECKING:
    from experiments.workbench import Workbench

log = logging.getLogger(__name__)
# Prices of widths that are tried, times the one at the plan of added damages.
_PRICES = (1.0, 0.1, 0.3, 3.0, 10.0)
COLUMNS = (
    "method",
    "seed",
    "stage",
    "metric",
    "loss",
    "macs",
    "weight_bytes",
    "validation_metric",
    "validation_loss",
    "command",
    "commit",
    "versions",
)


class Comparison:
    """Runs all methods over all seeds, one row at a time, and resumes from the rows that are there."""

    def __init__(
        self, experiment: "Workbench", labels: LabelTable | None, formats: LabelTable | None,
        joint: JointDamage | None = None,
    ) -> None:  # fmt: skip
        self.experiment, self.labels, self.formats, self.joint = experiment, labels, formats, joint
        self.settings = experiment.config.compare
        self.methods = methods_of(experiment.config, experiment.parts)
        self.criteria = {**experiment.parts.baselines, CRITERION: experiment.parts.criterion}
        # Rows of other settings lie elsewhere: a helper that began before a change cannot disturb what came after it.
        self.folder = experiment.run_dir.path / "comparison" / experiment.run_dir.stage_key("compare")

    def run(self) -> CompressionPlan:
        """Write `comparison.csv` and `choice.json`; return the plan of the best method."""
        self.measure_rows()
        seeds = self._seeds()
        rows = [row for seed in seeds for m in self.methods for row in read_rows(self._file(m, seed, "rows"))]
        self._write(rows)
        refused = []
        for method in self.methods:
            told = [read_json(self._file(method, seed, "rows")).get("refused") for seed in seeds]
            for reason in dict.fromkeys(filter(None, told)):
                log.warning("%s takes no part: %s", method.name, reason)
                refused.append(reason)
        self.methods = [m for m in self.methods if all(read_rows(self._file(m, seed, "rows")) for seed in seeds)]
        if not self.methods:
            raise BudgetError(refused[0])
        plans = {m.name: CompressionPlan.load(self._file(m, seeds[0], "plan")) for m in self.methods}
        return self._choose(rows, plans)

    def measure_rows(self) -> None:
        """Measure what is not there yet. What another process is at (`experiments.join`) is waited for last."""
        self.folder.mkdir(parents=True, exist_ok=True)
        shared = {seed: _Seed(self, seed) for seed in self._seeds()}
        tasks = [(seed, method) for seed in shared for method in self.methods]
        left = list(tasks)
        with progress("comparing methods") as on_row:
            for wait in (False, True):
                for seed, method in tasks:
                    if (seed, method) in left and self._rows(method, seed, shared[seed], wait):
                        left.remove((seed, method))
                        on_row(len(tasks) - len(left), len(tasks))

    def _chooses_all(self, method: Method) -> bool:
        """Whether it may remove units and choose formats, ranks too: if its budget cannot be met, none can."""
        formats = self.formats is None or method.chooses_formats(self.settings)
        return formats and not method.keeps_units and not method.searches

    def _seeds(self) -> list[int]:
        return list(dict.fromkeys([self.experiment.config.seed, *self.experiment.config.seeds]))

    def _file(self, method: Method, seed: int, kind: str) -> Path:
        return self.folder / f"{method.name.replace('/', '-')}_{seed}.{kind}.json"

    def _rows(self, method: Method, seed: int, shared: "_Seed", wait: bool) -> bool:
        """Whether the rows are there now; False if another process is at them and `wait` is not set."""
        path, plan_path = self._file(method, seed, "rows"), self._file(method, seed, "plan")
        try:
            with FileLock(path.with_suffix(".lock"), timeout=-1 if wait else 0):
                if path.exists():
                    return True
                rows, refused = [], None
                try:
                    # Before its rows: a training that is resumed goes on with the plan that it began with.
                    if not plan_path.exists():
                        shared.plan(method).save(plan_path)
                except BudgetError as error:
                    # The others may have more to choose from.
                    if self._chooses_all(method):
                        raise
                    refused = str(error)
                else:
                    rows = self._measure(method, seed, CompressionPlan.load(plan_path))
                made = {"commit": str(describe_code().get("commit", "")), "versions": json.dumps(library_versions())}
                write_json(path, {"made": made, "rows": rows, "refused": refused})
                return True
        except Timeout:
            return False

    def _measure(self, method: Method, seed: int, plan: CompressionPlan) -> list[dict[str, Any]]:
        """Test and validation metrics after each stage; validation chooses, test is only told."""
        experiment = self.experiment
        macs, weight_bytes = plan.predicted_cost["macs"], plan.predicted_cost["weight_bytes"]
        rows = []

        def note(stage: str, model: Any) -> None:
            test = evaluate(model, experiment.task, experiment.batches("test"))
            validation = evaluate(model, experiment.task, experiment.batches("validation"))
            rows.append(
                {
                    "method": method.name,
                    "seed": seed,
                    "stage": stage,
                    "metric": test[0],
                    "loss": test[1],
                    "macs": macs,
                    "weight_bytes": weight_bytes,
                    "validation_metric": validation[0],
                    "validation_loss": validation[1],
                }
            )
            log.info("%s, seed %d, %s: %s %.2f", method.name, seed, stage, experiment.task.metric_name, test[0])

        small = experiment.pruned(plan)
        note("pruned", small)
        small = experiment.repaired(plan)
        note("recovered", small)
        if self.settings.finetune_epochs and method.name in (self.settings.finetune_methods or [method.name]):
            settings = experiment.config.finetune
            # A long training goes on where a killed one stopped; one that ended needs its file no more.
            checkpoint = self._file(method, seed, "checkpoint").with_suffix(".safetensors")
            name = f"compare/{method.name}"
            experiment.finetune(small, self.settings.finetune_epochs, settings.lr, name, checkpoint, seed)
            note("fine_tuned", small)
        if self.settings.tries:
            name = f"compare/{method.name}/trial"
            note("tried", experiment.tried(small, plan, self.settings.trial_steps, name, seed))
        self._file(method, seed, "checkpoint").with_suffix(".safetensors").unlink(missing_ok=True)
        return rows

    def _write(self, rows: list[dict[str, Any]]) -> None:
        constant = {"command": typed_command()}
        text = io.StringIO()
        writer = csv.DictWriter(text, COLUMNS, lineterminator="\n")
        writer.writeheader()
        writer.writerows({**row, **constant} for row in rows)
        write_atomic(self.experiment.run_dir.file("comparison.csv"), lambda file: file.write(text.getvalue().encode()))

    def _choose(self, rows: list[dict[str, Any]], plans: Mapping[str, CompressionPlan]) -> CompressionPlan:
        """The method with the lowest validation loss after repair, the labeler first among equals."""
        stage = self.settings.choose_after
        candidates = []
        for method in self.methods:
            own = [row for row in rows if row["method"] == method.name and row["stage"] == stage]
            candidates.append(
                {
                    "method": method.name,
                    "macs": own[0]["macs"],
                    "validation_metric": float(np.mean([row["validation_metric"] for row in own])),
                    "validation_loss": float(np.mean([row["validation_loss"] for row in own])),
                }
            )
        best = min(candidates, key=lambda c: (c["validation_loss"], not Method(c["method"]).learned))
        own = [c for c in candidates if Method(c["method"]).learned]
        reason = f"lowest validation loss after the stage '{stage}', mean over {len(self._seeds())} seed(s)"
        if Method(best["method"]).solves_formats:
            reason += "; it removes no unit, and has its formats from measured labels"
        elif own and not Method(best["method"]).learned:
            gap = min(c["validation_loss"] for c in own) - best["validation_loss"]
            reason += f"; the labeler loses by {gap:.4f}, so the plan falls back to {best['method']}"
            if Method(best["method"]).searches:
                reason += ", which looks at whole plans instead of adding labels of units"
            self.experiment.warnings.append(f"The labeler was not the best: {reason}.")
        write_json(
            self.experiment.run_dir.file("choice.json"),
            {
                "chosen": best["method"],
                "reason": reason,
                "candidates": candidates,
                "plan_labeler": told_competence(plans, best["method"]),
            },
        )
        plan = plans[best["method"]]
        return replace(
            plan, provenance={**plan.provenance, "method": best["method"], "seed": self.experiment.config.seed}
        )


def read_rows(path: Path) -> list[dict[str, Any]]:
    """The rows of one method and seed, each with the commit and versions that measured it.

    Raises:
        ArtifactError: if the file is missing or damaged.
    """
    found = read_json(path)
    try:
        return [{**row, **found["made"]} for row in found["rows"]]
    except (TypeError, KeyError) as error:
        raise ArtifactError(f"{path} is damaged ({error!r}). Delete it and run the same command again.") from error


class _Seed:
    """Statistics and labels of one seed: other calibration and label examples from the same two parts of the data."""

    def __init__(self, comparison: Comparison, seed: int) -> None:
        self.comparison, self.seed = comparison, seed
        self._statistics: Statistics | None = None
        self._labels: LabelTable | None = None
        self._finders: dict[bool, PlanFinder] = {}
        if seed == comparison.experiment.config.seed:
            self._labels = comparison.labels

    def plan(self, method: Method) -> CompressionPlan:
        """The plan of a method on this seed's data."""
        formats, joint = self.comparison.formats, self.comparison.joint
        formats = method.menu(formats, self.comparison.settings)
        if method.searches:
            finder = self._finder(formats)
            return finder.race() if method.spending == RACE else finder.search(method.source == REFIT_LOSS)
        if method.healing != 1:
            return self._healed_plan(method, formats)
        if formats is None or joint is None:
            return self._added_plan(method, formats)
        # What one more bit costs hangs on all the others: the best of several prices, by the law itself.
        first = self._added_plan(method, formats)
        bench = self.comparison.experiment.width_bench
        price = joint.marginal(self._width_total(first, joint))
        plans = [first, *(self._added_plan(method, joint_labels(formats, bench, joint, factor * price))
                          for factor in _PRICES)]  # fmt: skip
        damages = [self._removal_damage(plan, method) + float(joint.of_sum(self._width_total(plan, joint)))
                   for plan in plans]  # fmt: skip
        best = int(np.argmin(damages))
        known = plans[best].predicted_damage is not None
        return replace(plans[best], predicted_damage=damages[best] if known else None)

    def _finder(self, formats: LabelTable | None) -> PlanFinder:
        """One for all methods that search."""
        key = formats is None
        if key not in self._finders:
            batches, label = self._pool()
            self._finders[key] = PlanFinder(
                self.comparison.experiment, self.statistics, batches, self.seed, formats, label, self.comparison.folder
            )
        return self._finders[key]

    def _healed_plan(self, method: Method, formats: LabelTable) -> CompressionPlan:
        """The plan of least added damage where formats do less of it; it foretells what is measured all the same."""
        plan = self._added_plan(method, replace(formats, damage=formats.damage * method.healing))
        if plan.predicted_damage is None:
            return plan
        removal = self._removal_damage(plan, method)
        return replace(plan, predicted_damage=removal + (plan.predicted_damage - removal) / method.healing)

    def _width_total(self, plan: CompressionPlan, joint: JointDamage) -> float:
        """Sum of the corrected damages of a plan's widths; one that was not measured counts as harmless."""
        bench, formats = self.comparison.experiment.width_bench, plan.layer_formats
        chosen = [formats[name].bits if name in formats else FLOAT_BITS for name in bench.layers]
        chosen = [bits if bits in bench.bits else FLOAT_BITS for bits in chosen]
        return float(bench.taken(np.array([chosen]))[0] @ joint.corrected)

    def _removal_damage(self, plan: CompressionPlan, method: Method) -> float:
        """Sum of the scores of what a plan removes, as they are spent."""
        structure = self.comparison.experiment.structure
        scores = join_scores(structure, self._as_spent(self._scores(method), method.allocator)).removal
        return float(np.nansum(scores[plan.removed_mask(structure.units)]))

    def _added_plan(self, method: Method, formats: LabelTable | None) -> CompressionPlan:
        """The plan of least added damage."""
        experiment = self.comparison.experiment
        own, allocator = self._scores(method), method.allocator
        scores = join_scores(experiment.structure, self._as_spent(own, allocator), formats)
        # Formats follow one rule for all methods, that of the configured allocator.
        configured: Any = experiment.parts.allocator
        always = formats is not None and configured.always_quantize
        if type(configured).name == allocator:
            allocator = replace(configured, always_quantize=always)
        constraints = experiment.parts.constraints
        constraints = replace(constraints, floor=1.0, floors={}) if method.keeps_units else constraints
        plan = allocate(
            experiment.structure.units,
            scores,
            experiment.costs,
            experiment.parts.budget,
            allocator=allocator,
            constraints=constraints,
            always_quantize=always,
        )
        return plan if _in_nats(own) else replace(plan, predicted_damage=None)

    def _scores(self, method: Method) -> Scores | LabelTable:
        if method.source == LABELER:
            return self.labels
        criterion = self.comparison.criteria[method.source]
        if hasattr(criterion, "seed"):
            criterion = replace(criterion, seed=self.seed)
        return score_units(self.comparison.experiment.structure, criterion, self.statistics)

    def _as_spent(self, scores: Scores | LabelTable, allocator: str) -> Scores | LabelTable:
        """A criterion that only orders is spent as if it were damage: that is what comparing it per MAC means."""
        if _in_nats(scores) or allocator not in ADDING:
            return scores
        structure = self.comparison.experiment.structure
        return as_damage(scores, score_units(structure, FisherCriterion(), self.statistics))

    @property
    def statistics(self) -> Statistics:
        """Statistics of this seed's calibration examples."""
        if self._statistics is None:
            experiment = self.comparison.experiment
            own = self.seed == experiment.config.seed
            self._statistics = experiment.statistics if own else experiment.statistics_of(self._pool()[0])
        return self._statistics

    @property
    def labels(self) -> LabelTable:
        """Labels learned from this seed's examples."""
        if self._labels is None:
            experiment = self.comparison.experiment
            settings = experiment.config.measure
            oracle = experiment.parts.oracles["removal"]
            labeler = build_components(experiment.config).labeler
            rows_file = self.comparison.folder / f"rows_{self.seed}.jsonl"
            with FileLock(rows_file.with_suffix(".lock")):
                learned = learn_labels(
                    experiment.structure,
                    experiment.task,
                    self._pool()[1],
                    self.statistics,
                    labeler,
                    oracle,
                    sample=settings.sample,
                    **experiment.sampling(self.comparison.formats),
                    seed=self.seed,
                    rows_file=rows_file,
                )
            self._labels = learned.labels
        return self._labels

    def _pool(self) -> tuple[list[Any], list[Any]]:
        """Calibration and label batches: of the run's own seed as they are, of others dealt anew from both parts."""
        experiment = self.comparison.experiment
        settings, data = experiment.config.measure, experiment.data
        size = min(settings.batch_size, 64, len(data.calibration), len(data.label))
        sizes = {part: len(getattr(data, part)) // size for part in ("calibration", "label")}
        first, chosen = sizes["calibration"], max(min(settings.images // size, sizes["label"]), 1)
        rows = np.arange(sum(sizes.values()))
        calibration, label = rows[:first], rows[first : first + chosen]
        if self.seed != experiment.config.seed:
            rows = np.random.default_rng([self.seed, 1]).permutation(rows)
            calibration, label = np.sort(rows[chosen:]), np.sort(rows[:chosen])
        plain, noisy = (
            [batch for part, n in sizes.items() for batch in experiment.batches(part, size, noise=noise)[:n]]
            for noise in (0.0, TARGET_NOISE)
        )
        return [noisy[row] for row in calibration], [plain[row] for row in label]


def _in_nats(scores: Scores | LabelTable) -> bool:
    return isinstance(scores, LabelTable) or scores.scale == "nats"
