"""Scores one packed file on the official test set, from nothing but the file, the named model's code and the data."""

import re
from collections.abc import Mapping, Sequence
from dataclasses import asdict
from importlib import resources
from pathlib import Path
from typing import Any

import torch
from omegaconf import OmegaConf
from torch import nn

from compress.artifact import load_artifact
from compress.costs import FLOAT_BYTES
from compress.errors import ArtifactError
from compress.packed_header import read_about
from compress.packing import PackedFile
from compress.task import Task
from experiments.config import build
from experiments.data import make_batches

SCORING_BATCH = 250
_ACCURACY = "accuracy_percent"
_DEFINED_IN = {"model": "experiments.models", "data": "experiments.data"}


def evaluate_file(path: str | Path, limit: int | None = None) -> dict[str, Any]:
    """Bytes and metric of a packed file, as plain JSON.

    Keys: `file`, `model`, `data`, `metric_name`, `metric`, `error_percent` (100 less an accuracy, null for other
    metrics), `file_bytes`, `examples`, and `tensors`: what each takes in the file (`name`, `values`, `bits`,
    `raw_bytes`, `packed_bytes`, `coded_bytes`, `entropy`).

    Args:
        path: from `pack_artifact` with `about`. The names that it tells must be files of `conf/model`, `conf/data` and
            `conf/task` (default: classification); nothing else in it is looked up.
        limit: score the first so many test examples only.

    Raises:
        ArtifactError: if the file is missing, damaged, or names something that is not there.
        CompressError: if the data cannot be read.
    """
    path = Path(path)
    about = {"task": "classification", **read_about(PackedFile(path))}
    model, data, task = (_component(path, group, about) for group in ("model", "data", "task"))
    batches = make_batches(data.test, SCORING_BATCH, limit)
    metric, tensors = score_packed(path, model, task, batches)
    return {
        "file": path.name,
        "model": about["model"],
        "data": about["data"],
        "metric_name": task.metric_name,
        "metric": metric,
        "error_percent": round(100.0 - metric, 6) if task.metric_name == _ACCURACY else None,
        "file_bytes": path.stat().st_size,
        "examples": sum(len(task.inputs(batch)[0]) for batch in batches),
        "tensors": tensors,
    }


def model_of(path: str | Path) -> nn.Module:
    """The dense model that a packed file names, with any weights. Raises ArtifactError as `evaluate_file` does."""
    return _component(Path(path), "model", read_about(PackedFile(path)))


def tensor_sizes(told: Mapping[str, Any]) -> dict[str, Any]:
    """Sizes of one tensor, as a run's `packed.json` has them: `raw_bytes` as float32, `packed_bytes` at its bits,
    `coded_bytes` in the file; `entropy` in bits for each value, None of floats."""
    own = {name: int(told[name]) for name in ("values", "bits", "packed_bytes", "coded_bytes")}
    entropy = told["entropy"]
    return {"name": told["name"], **own, "raw_bytes": FLOAT_BYTES * own["values"],
            "entropy": None if entropy is None else float(entropy)}  # fmt: skip


def score_packed(
    path: Path, base_model: nn.Module, task: Task, batches: Sequence[Any]
) -> tuple[float, list[dict[str, Any]]]:
    """The task's metric of a packed file, decoded here and run by torch on the CPU; what each tensor takes in it."""
    module = load_artifact(path, base_model)
    with torch.inference_mode():
        outputs = torch.cat([module(*task.inputs(batch)) for batch in batches])
    coded = [tensor_sizes({**asdict(tensor), "packed_bytes": tensor.packed_bytes}) for tensor in module.meta["coded"]]
    return float(task.score(outputs, list(batches))), coded


def _component(path: Path, group: str, about: dict[str, str]) -> Any:
    """What the yaml of this name gives, with the weights that a model starts from left out: only its shapes matter."""
    name = about.get(group)
    if name is None:
        raise ArtifactError(f"{path} does not name its {group}. Pack it with about={{'{group}': ...}}.")
    folder = resources.files("conf") / group
    if not re.fullmatch(r"\w+", name, re.ASCII) or not (folder / f"{name}.yaml").is_file():
        raise ArtifactError(f"{path} names the {group} {name!r}, which is no file of conf/{group}.")
    config = OmegaConf.create({"seed": 0, group: OmegaConf.create((folder / f"{name}.yaml").read_text())})
    node = OmegaConf.to_container(config, resolve=True)[group]
    if group == "model" and "weights" in node:
        node["weights"] = None
    with torch.random.fork_rng(devices=[]):
        return build(node, group, within=_DEFINED_IN.get(group))
