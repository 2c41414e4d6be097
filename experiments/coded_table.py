"""What one file of a whole model holds, layer by layer: the raw tables of records and of curves over bytes."""

import csv
import io
import json
from collections.abc import Sequence
from dataclasses import dataclass, fields
from pathlib import Path
from typing import Any

from compress.artifact import PACKED, load_artifact
from compress.attributes import value_of
from compress.errors import ArtifactError
from compress.files import read_json, write_atomic
from compress.splitting import part_names
from compress.structure import analyze
from experiments.config import build, config_of
from experiments.data import make_batches
from experiments.packed_evaluation import SCORING_BATCH, score_packed
from experiments.results import command_of
from experiments.run_dir import read_manifest as read_run


@dataclass(frozen=True)
class CodedRow:
    """One layer of one file, or the whole file where `layer` is empty.

    Attributes:
        experiment, seed: of the run.
        metric: of the file on the test set, decoded anew; dense_metric: of the dense network.
        file_bytes: its size; dense_bytes: of the dense network's parameters in float32.
        layer: name of the dense network's layer.
        dense_weights, kept_weights: how many it had, and how many are not zero in the file.
        bits: of each stored weight before coding, 32 for floats.
        coded_bytes: of its weights in the file.
    """

    experiment: str
    seed: int
    metric_name: str
    metric: float
    dense_metric: float
    file_bytes: int
    dense_bytes: int
    layer: str
    dense_weights: int
    kept_weights: int
    bits: int
    coded_bytes: int
    command: str
    commit: str
    versions: str


def collect_coded(folders: Sequence[str | Path], path: str | Path) -> int:
    """Write the rows of these finished runs to a CSV file; returns how many.

    The metric is taken again from the packed file alone, on the whole test set.

    Raises:
        ArtifactError: if a folder is no finished run with a packed file.
    """
    rows = [row for folder in folders for row in _rows(Path(folder))]
    text = io.StringIO()
    writer = csv.DictWriter(text, [field.name for field in fields(CodedRow)], lineterminator="\n")
    writer.writeheader()
    writer.writerows(vars(row) for row in rows)
    write_atomic(path, lambda file: file.write(text.getvalue().encode()))
    return len(rows)


def _rows(folder: Path) -> list[CodedRow]:
    run = read_run(folder)
    if run["status"] != "finished":
        raise ArtifactError(f"The run in {folder} is {run['status']}, not finished. Finish it first.")
    config, packed, dense = config_of(folder), folder / "artifact" / PACKED, read_json(folder / "dense.json")
    model = build(config.final_model, "model", within="experiments.models")
    task = build(config.task, "task")
    data = build(config.data, "data", within="experiments.data")
    batches = make_batches(data.test, SCORING_BATCH)
    shared: dict[str, Any] = {
        "experiment": config.name, "seed": config.seed, "metric_name": task.metric_name,
        "metric": round(score_packed(packed, model, task, batches), 4),
        "dense_metric": round(dense["test"]["metric"], 4),
        "file_bytes": packed.stat().st_size, "dense_bytes": int(dense["weight_bytes"]),
        "command": command_of(run), "commit": run["code"].get("commit", ""), "versions": json.dumps(run["libraries"]),
    }  # fmt: skip
    layers = _layers(folder, model, task.inputs(batches[0]))
    whole = {"layer": "", "bits": 0, "coded_bytes": sum(layer["coded_bytes"] for layer in layers)}
    for name in ("dense_weights", "kept_weights"):
        whole[name] = sum(layer[name] for layer in layers)
    return [CodedRow(**shared, **layer) for layer in (whole, *layers)]


def _layers(folder: Path, model: Any, inputs: Any) -> list[dict[str, Any]]:
    """One entry for each layer of the dense model; factors of a layer of low rank count for it together."""
    told = {tensor["name"]: tensor for tensor in read_json(folder / "packed.json")["tensors"]}
    ranks = {
        name
        for name, given in read_json(folder / "artifact" / "plan.json")["layer_formats"].items()
        if given.get("rank")
    }
    found: dict[str, dict[str, Any]] = {}
    layer_of: dict[str, str] = {}
    for layer in analyze(model, tuple(value[:2] for value in inputs)).traced.layers():
        empty = {"dense_weights": value_of(model, layer.weight).numel(), "kept_weights": 0, "bits": 0, "coded_bytes": 0}
        found.setdefault(layer.name, {"layer": layer.name, **empty})
        parts = (f"{part}.weight" for part in part_names(layer.name)) if layer.name in ranks else (layer.weight,)
        layer_of |= dict.fromkeys(parts, layer.name)
    small = load_artifact(folder / "artifact" / PACKED, model)
    for name in layer_of.keys() & told.keys():
        entry = found[layer_of[name]]
        entry["kept_weights"] += int((value_of(small, name) != 0).sum())
        entry["bits"] = max(entry["bits"], int(told[name]["bits"]))
        entry["coded_bytes"] += int(told[name]["coded_bytes"])
    return list(found.values())
