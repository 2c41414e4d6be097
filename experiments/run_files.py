"""What a run folder holds, read for the report: every file may be absent, a damaged one is named."""

import csv
import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from autolabel.joint_damage import JointDamage
from autolabel.tables import LabelTable
from compress.errors import ArtifactError
from compress.files import read_json
from compress.plan import CompressionPlan
from compress.units import UnitTable
from experiments.front_table import FRONT_FILE, FrontRow
from experiments.raw_table import read_raw
from experiments.trackers.jsonl import FILE_NAME, read_records

COMPARISON_COLUMNS = ("method", "seed", "stage", "metric")
JOINT_FILE = "joint_widths.npz"
REPORT_JSON, REPORT_HTML, FIGURES = "report.json", "report.html", "figures"
# What is measured and decided about the dense network.
DECISION_FILES = (
    "features.npz", "labels.npz", "layer_labels.npz", "held_out.npz", JOINT_FILE, "labeler.json", "group_steps.json",
    "explanations.json", "comparison.csv", "choice.json", "plan_damage.json",
    FRONT_FILE,
)  # fmt: skip


@dataclass(frozen=True)
class Trial:
    """One row of `comparison.csv`; `metric`, `loss`, `macs` and `weight_bytes` are None where they are unknown."""

    method: str
    seed: str
    stage: str
    metric: float | None
    loss: float | None
    macs: float | None
    weight_bytes: float | None
    command: str


@dataclass(frozen=True, eq=False)
class RunFiles:
    """The files of a run, None (or empty, for `curves`) where a stage was switched off or has not run yet.

    Attributes:
        folder: of the run.
        manifest, dense, costs, labeler, group_steps, explanations, choice, plan_damage, result, packed, export: the
            JSON objects of these names.
        warnings: texts of `warnings.json`.
        units, labels, layer_labels, held_out, plan: tables and plan of these names.
        joint: what widths do together, if that was learned.
        comparison: rows of `comparison.csv`.
        front: rows of `front.csv`.
        curves: metric name -> `[(step, value), ...]` from `metrics.jsonl`.
        config: text of the resolved configuration.
    """

    folder: Path
    manifest: Mapping[str, Any] | None
    dense: Mapping[str, Any] | None
    costs: Mapping[str, Any] | None
    labeler: Mapping[str, Any] | None
    group_steps: Mapping[str, Any] | None
    explanations: Mapping[str, Any] | None
    choice: Mapping[str, Any] | None
    plan_damage: Mapping[str, Any] | None
    result: Mapping[str, Any] | None
    packed: Mapping[str, Any] | None
    export: Mapping[str, Any] | None
    warnings: tuple[str, ...] | None
    units: UnitTable | None
    labels: LabelTable | None
    layer_labels: LabelTable | None
    held_out: LabelTable | None
    joint: JointDamage | None
    plan: CompressionPlan | None
    comparison: tuple[Trial, ...] | None
    front: tuple[FrontRow, ...] | None
    curves: Mapping[str, list[tuple[int, float]]]
    config: str | None


def read_run(folder: str | Path) -> RunFiles:
    """The files of the run in `folder`.

    Raises:
        ArtifactError: if there is no such folder, or a file that is there is damaged.
    """
    folder = Path(folder)
    if not folder.is_dir():
        raise ArtifactError(f"{folder} is not a folder. Give the folder of a run.")

    def load(name: str, read: Callable[[Path], Any]) -> Any:
        path = folder / name
        return read(path) if path.exists() else None

    objects = (
        "manifest",
        "dense",
        "costs",
        "labeler",
        "group_steps",
        "explanations",
        "choice",
        "plan_damage",
        "result",
        "packed",
        "export",
    )
    return RunFiles(
        folder=folder,
        **{name: load(f"{name}.json", _read_object) for name in objects},
        warnings=load("warnings.json", _read_warnings),
        units=load("units.npz", UnitTable.load),
        labels=load("labels.npz", LabelTable.load),
        layer_labels=load("layer_labels.npz", LabelTable.load),
        held_out=load("held_out.npz", LabelTable.load),
        joint=load(JOINT_FILE, JointDamage.load),
        plan=load("plan.json", CompressionPlan.load),
        comparison=load("comparison.csv", read_comparison),
        front=load(FRONT_FILE, lambda path: tuple(read_raw(path, FrontRow))),
        curves=load(FILE_NAME, _read_curves) or {},
        config=load(".hydra/config.yaml", lambda path: path.read_text(encoding="utf-8", errors="replace")),
    )


def pick(value: Any, *keys: str) -> Any:
    """The value under nested keys, None where one is absent."""
    for key in keys:
        if not isinstance(value, Mapping) or key not in value:
            return None
        value = value[key]
    return value


def number(value: Any, *keys: str) -> float | None:
    """The finite number under nested keys, None for anything else."""
    value = pick(value, *keys)
    if isinstance(value, bool) or not isinstance(value, (int, float)) or not math.isfinite(value):
        return None
    return value


def _read_object(path: Path) -> Mapping[str, Any]:
    value = read_json(path)
    if not isinstance(value, dict):
        raise ArtifactError(f"{path} must hold a JSON object. Delete it and run the stage that writes it again.")
    return value


def _read_warnings(path: Path) -> tuple[str, ...]:
    value = read_json(path)
    if not isinstance(value, list):
        raise ArtifactError(f"{path} must hold a JSON list of texts. Delete it and run the last stage again.")
    return tuple(str(text) for text in value)


def read_comparison(path: Path) -> tuple[Trial, ...]:
    """The rows of a `comparison.csv` or of a raw table of one. Raises ArtifactError if it lacks a column."""
    with path.open(encoding="utf-8", newline="") as file:
        reader = csv.DictReader(file)
        missing = [name for name in COMPARISON_COLUMNS if name not in (reader.fieldnames or ())]
        if missing:
            raise ArtifactError(f"{path} lacks the columns {missing}. Delete it and run the comparison again.")
        return tuple(
            Trial(
                row["method"],
                row["seed"],
                row["stage"],
                *(_parse(row.get(c)) for c in _NUMBERS),
                command=row.get("command") or "",
            )
            for row in reader
        )


_NUMBERS = ("metric", "loss", "macs", "weight_bytes")


def _parse(text: str | None) -> float | None:
    try:
        return number(float(text or ""))
    except ValueError:
        return None


def _read_curves(path: Path) -> Mapping[str, list[tuple[int, float]]]:
    """Later lines of the same step count, as a resumed run repeats steps; none of a stage that was done anew since."""
    curves: dict[str, dict[str, dict[int, float]]] = {}
    stage, keys = "", {}
    for record in read_records(path):
        if record.get("kind") == "stage":
            stage = str(record.get("name"))
            if keys.get(stage) != record.get("key"):
                curves[stage] = {}
            keys[stage] = record.get("key")
        if record.get("kind", "metrics") != "metrics" or not isinstance(record.get("step"), int):
            continue
        for name, value in record.get("values", record).items():
            if number(value) is not None and name not in ("step", "time"):
                curves.setdefault(stage, {}).setdefault(name, {})[record["step"]] = float(value)
    return {name: sorted(points.items()) for of_stage in curves.values() for name, points in of_stage.items()}
