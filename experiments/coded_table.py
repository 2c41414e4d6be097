"""What one file of a whole model holds, layer by layer: the raw tables of records and of curves over bytes."""

import csv
import io
import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, fields
from pathlib import Path
from typing import Any

from compress.artifact import load_artifact
from compress.artifact_files import PACKED
from compress.attributes import value_of
from compress.errors import ArtifactError
from compress.files import read_json, write_atomic
from compress.splitting import part_names
from compress.structure import Structure, analyze
from experiments.config import build, config_of
from experiments.data import make_batches
from experiments.packed_evaluation import SCORING_BATCH, score_packed, tensor_sizes
from experiments.results import command_of
from experiments.run_dir import read_manifest as read_run

# Columns of what a file holds of one layer, see `CodedRow`.
LAYER_COLUMNS = (
    "layer",
    "dense_weights",
    "kept_weights",
    "bits",
    "coded_bytes",
    "raw_bytes",
    "packed_bytes",
    "entropy",
)


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
        raw_bytes: of the weights that the file holds of it, as float32; None in tables from before it was told.
        packed_bytes: the same at their bits, without coding and without gaps.
        entropy: bits for each of these weights that no coder without context can go below, see
            `compress.tensor_coding.CodedTensor`; of several
            tensors the mean over weights. None where one of them is of floats, and in tables from before.
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
    raw_bytes: int | None = None
    packed_bytes: int | None = None
    entropy: float | None = None


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
        "metric": round(score_packed(packed, model, task, batches)[0], 4),
        "dense_metric": round(dense["test"]["metric"], 4),
        "file_bytes": packed.stat().st_size, "dense_bytes": int(dense["weight_bytes"]),
        "command": command_of(run), "commit": run["code"].get("commit", ""), "versions": json.dumps(run["libraries"]),
    }  # fmt: skip
    layers = layers_of(folder, analyze(model, tuple(value[:2] for value in task.inputs(batches[0]))))
    whole: dict[str, Any] = {"layer": "", "bits": 0, "entropy": mean_entropy(layers)}
    for name in ("dense_weights", "kept_weights", "coded_bytes", "raw_bytes", "packed_bytes"):
        whole[name] = sum(layer[name] for layer in layers)
    return [CodedRow(**shared, **layer) for layer in (whole, *layers)]


def mean_entropy(parts: Sequence[Mapping[str, Any]]) -> float | None:
    """Bits for each weight of several tensors or layers: entropies weighed by `raw_bytes`, None where one has none."""
    known = [(part["entropy"], part["raw_bytes"]) for part in parts if part["raw_bytes"]]
    if not known or any(entropy is None for entropy, _ in known):
        return None
    return round(sum(entropy * size for entropy, size in known) / sum(size for _, size in known), 4)


def layers_of(folder: Path, structure: Structure) -> list[dict[str, Any]]:
    """What the packed file of a run holds, layer by layer: the fields of `CodedRow` from `layer` on, but for what made
    it.

    Args:
        folder: of the run.
        structure: of the dense network; factors of a layer of low rank count for the layer together.
    """
    told = {tensor["name"]: tensor for tensor in read_json(folder / "packed.json")["tensors"]}
    ranks = {
        name
        for name, given in read_json(folder / "artifact" / "plan.json")["layer_formats"].items()
        if given.get("rank")
    }
    found: dict[str, dict[str, Any]] = {}
    layer_of: dict[str, str] = {}
    for layer in structure.traced.layers():
        empty = dict.fromkeys(("kept_weights", "bits", "coded_bytes", "raw_bytes", "packed_bytes"), 0)
        whole = value_of(structure.traced.module, layer.weight).numel()
        found.setdefault(layer.name, {"layer": layer.name, "dense_weights": whole, **empty, "tensors": []})
        parts = (f"{part}.weight" for part in part_names(layer.name)) if layer.name in ranks else (layer.weight,)
        layer_of |= dict.fromkeys(parts, layer.name)
    small = load_artifact(folder / "artifact" / PACKED, structure)
    for name in layer_of.keys() & told.keys():
        entry = found[layer_of[name]]
        entry["kept_weights"] += int((value_of(small, name) != 0).sum())
        entry["bits"] = max(entry["bits"], int(told[name]["bits"]))
        sizes = tensor_sizes(told[name])
        for size in ("coded_bytes", "raw_bytes", "packed_bytes"):
            entry[size] += sizes[size]
        entry["tensors"].append(sizes)
    for entry in found.values():
        entry["entropy"] = mean_entropy(entry.pop("tensors"))
    return list(found.values())
