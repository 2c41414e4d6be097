"""Checks a run folder again: hashes, and metric, size and latency of its files as ONNX Runtime runs them.

    python -m experiments.evaluate RUN
    python -m experiments.evaluate FILE      # a packed file: its bytes, and its error on the official test set

Prints a table (of a run) and ends with one line of JSON. Exit status: 0 all as the run said, 1 a file is missing,
damaged or altered or a metric is not what the run reported.
"""

import argparse
import json
import math
import sys
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from rich.console import Console
from rich.table import Table

from compress.artifact_files import PACKED, verify_artifact
from compress.errors import ArtifactError, CompressError
from compress.files import read_json
from compress.runtimes.onnxruntime import OnnxRuntime, measure_latency, run_onnx
from compress.task import Task
from experiments.config import build, config_of
from experiments.data import make_batches
from experiments.exporting import timing_inputs
from experiments.manifest import hash_file
from experiments.packed_evaluation import SCORING_BATCH, evaluate_file, score_packed
from experiments.run_dir import read_manifest
from experiments.settings import Config

DENSE = "dense/model.onnx"
# Another processor sums in another order, and a few examples on the edge fall to the other side.
_METRIC_TOLERANCE = 0.1


@dataclass(frozen=True)
class FileResult:
    """One exported file, as it runs here.

    Attributes:
        path: relative to the run folder.
        metric: of the task on the whole test set.
        reported_metric: what the run said, or None where it said nothing.
        file_bytes: its size.
        bytes_ratio: bytes of the dense file over its own.
        latency_ms: `"batch 1"` -> median in milliseconds on the threads of `runtime`, the files taking turns.
        latency_ratio: the dense file's median over its own.
    """

    path: str
    metric: float
    reported_metric: float | None
    file_bytes: int
    bytes_ratio: float
    latency_ms: Mapping[str, float]
    latency_ratio: Mapping[str, float]

    @property
    def agrees(self) -> bool:
        """Whether the metric is what the run reported."""
        return self.reported_metric is None or abs(self.metric - self.reported_metric) <= _METRIC_TOLERANCE


def evaluate_run(folder: str | Path, repeats: int = 100, limit: int | None = None) -> dict[str, Any]:
    """Everything that can be checked again, as plain JSON: `metric_name`, `files`, `altered`, `ok` and the machine.

    Args:
        folder: of a finished run. One that exported nothing (`export.formats=[]`) is judged by its packed weights.
        repeats: timed runs of each file.
        limit: score the first so many test examples only; the metrics are then not compared with the run's.

    Raises:
        ArtifactError: if the folder is no run, or its artifact is missing, truncated or altered.
        CompressError: if its configuration or data cannot be read.
    """
    folder = Path(folder)
    manifest = read_manifest(folder)
    verify_artifact(folder / "artifact")
    # The artifact has a manifest of its own, which was just checked; its export wrote into it after its stage ended.
    outputs = {name: digest for name, digest in manifest["outputs"].items() if name.split("/")[0] != "artifact"}
    altered = [name for name, digest in sorted(outputs.items()) if not _unaltered(folder / name, digest)]
    config = config_of(folder)
    data = build(config.data, "data", within="experiments.data")
    task: Task = build(config.task, "task")
    batches = make_batches(data.test, SCORING_BATCH, limit)
    paths = [path for path in (folder / DENSE, *sorted((folder / "artifact").glob("*.onnx"))) if path.is_file()]
    if config.export.formats and (len(paths) < 2 or paths[0] != folder / DENSE):
        lacks = folder / DENSE if folder / DENSE not in paths else folder / "artifact"
        raise ArtifactError(f"{lacks} has no ONNX file. Finish the run first.")
    packed = _score_packed(folder, config, task, batches, compared=limit is None)
    if not paths and packed is None:
        raise ArtifactError(f"{folder} has neither exported files nor {PACKED}: there is nothing to score.")
    reported = _reported_metrics(folder) if limit is None else {}
    runtime = build(config.runtime, "runtime", within="compress.runtimes")
    metrics = [score_file(path, task, batches) for path in paths]
    sizes = config.export.latency_batches if paths else ()
    inputs = timing_inputs(data.test if limit is None else data.test.take(limit), task, sizes)
    rows, machine = _latencies(paths, inputs, sizes, repeats, runtime)
    files = []
    for path, metric, times in zip(paths, metrics, rows, strict=True):
        name, size = path.relative_to(folder).as_posix(), path.stat().st_size
        ratios = {key: rows[0][key] / value for key, value in times.items()}
        files.append(FileResult(name, metric, reported.get(name), size, paths[0].stat().st_size / size, times, ratios))
    disagreeing = [file.path for file in files if not file.agrees]
    if packed is not None and not packed.pop("agrees"):
        disagreeing.append(packed["path"])
    return {
        "run": folder.name,
        "packed": packed,
        "metric_name": task.metric_name,
        "examples": sum(len(task.inputs(batch)[0]) for batch in batches),
        "files": [asdict(file) for file in files],
        "altered": altered,
        "disagreeing": disagreeing,
        "ok": not altered and not disagreeing,
        **machine,
    }


def _score_packed(
    folder: Path, config: Config, task: Task, batches: Sequence[Any], compared: bool
) -> dict[str, Any] | None:
    """Bytes and metric of the coded weights, decoded here and run by torch; None where the run left none.

    `agrees` says whether the metric is what the run came to, where the two are `compared` and the run told it.
    """
    path = folder / "artifact" / PACKED
    if not path.exists():
        return None
    model = build(config.final_model, "model", within="experiments.models")
    metric, tensors = score_packed(path, model, task, batches)
    told = read_json(folder / "result.json") if compared and (folder / "result.json").exists() else {}
    stages = told.get("stages") or {}
    reported = (stages.get("quantized") or stages.get("fine_tuned") or {}).get("metric")
    agrees = reported is None or abs(metric - reported) <= _METRIC_TOLERANCE
    return {"path": f"artifact/{PACKED}", "file_bytes": path.stat().st_size, "metric": metric, "agrees": agrees,
            "tensors": tensors}  # fmt: skip


def score_file(path: Path, task: Task, batches: Sequence[Any]) -> float:
    """The task's metric over `batches`, the file run by ONNX Runtime in a process of its own."""
    inputs = [tuple(np.asarray(value) for value in task.inputs(batch)) for batch in batches]
    shapes = {tuple(value.shape[1:] for value in values) for values in inputs}
    if len(shapes) == 1:  # one process for all
        stacked = tuple(np.concatenate(values) for values in zip(*inputs, strict=True))
        outputs = run_onnx(path, stacked, batch=SCORING_BATCH)[0]
    else:
        outputs = np.concatenate([run_onnx(path, values)[0] for values in inputs])
    return float(task.score(torch.from_numpy(outputs), list(batches)))


def main() -> None:
    """Evaluate the run folder or packed file on the command line and exit."""
    parser = argparse.ArgumentParser(description="Check a run folder or a packed file again: hashes, metrics, sizes.")
    parser.add_argument("run", type=Path, help="folder of a finished run, or a packed file")
    parser.add_argument("--repeats", type=int, default=100, help="timed runs of each file of a folder")
    parser.add_argument("--limit", type=int, default=None, help="score only so many test examples")
    arguments = parser.parse_args()
    try:
        if arguments.run.is_file():
            sys.stdout.write(json.dumps(evaluate_file(arguments.run, arguments.limit), allow_nan=False) + "\n")
            raise SystemExit(0)
        result = evaluate_run(arguments.run, arguments.repeats, arguments.limit)
    except CompressError as error:
        Console(stderr=True).print(f"Error: {error}", style="red", markup=False, soft_wrap=True)
        raise SystemExit(1) from None
    Console().print(_table(result))
    for name in result["altered"]:
        Console(stderr=True).print(f"{name} is missing or not what the run left.", style="red", markup=False)
    sys.stdout.write(json.dumps(result, allow_nan=False) + "\n")
    raise SystemExit(0 if result["ok"] else 1)


def _unaltered(path: Path, digest: str | None) -> bool:
    try:
        return hash_file(path) == digest
    except ArtifactError:
        return False


def _reported_metrics(folder: Path) -> dict[str, float]:
    """File -> metric, from `export.json`; nothing where the run did not report any."""
    if not (folder / "export.json").exists():
        return {}
    export = read_json(folder / "export.json")
    rows = [export.get("dense_file") or {}, *(export.get("files") or [])] if isinstance(export, dict) else []
    return {row["path"]: float(row["metric"]) for row in rows if row.get("metric") is not None and "path" in row}


def _latencies(
    paths: Sequence[Path], inputs: tuple[Any, ...], batches: Sequence[int], repeats: int, runtime: OnnxRuntime
) -> tuple[list[dict[str, float]], dict[str, Any]]:
    """`(medians per file, machine)`; batches larger than the data are left out."""
    medians: list[dict[str, float]] = [{} for _ in paths]
    machine: dict[str, Any] = {}
    for batch in batches:
        if batch > len(inputs[0]):
            continue
        runs = max(1, math.ceil(repeats / batch**0.5))
        rows = measure_latency(paths, inputs, runtime.threads, batch, runs, runtime)
        machine = {"runtime": rows[0].runtime, "threads": runtime.threads, "cpu": rows[0].cpu, "vnni": rows[0].vnni}
        for own, row in zip(medians, rows, strict=True):
            own[f"batch {batch}"] = row.median_ms
    return medians, machine


def _table(result: Mapping[str, Any]) -> Table:
    threads = "1 thread" if result.get("threads", 1) == 1 else f"{result['threads']} threads"
    # Without a latency nothing is told of the machine.
    machine = f"; {result['runtime']}, {threads}, {result['cpu']}" if "runtime" in result else ""
    caption = f"{result['examples']} test examples{machine if result['files'] else ', decoded and run by torch'}"
    table = Table(title=f"Run {result['run']}", caption=caption)
    table.add_column("file", overflow="fold")
    for column in (result["metric_name"], "bytes", *(result["files"][0]["latency_ms"] if result["files"] else ())):
        table.add_column(column, justify="right")
    for file in result["files"]:
        reported = "" if file["reported_metric"] is None else f"\n(run: {file['reported_metric']:.2f})"
        cells = [f"{file['metric']:.2f}{reported}", f"{file['file_bytes']:,}\n({file['bytes_ratio']:.1f}x smaller)"]
        cells += [f"{ms:.3f} ms\n({file['latency_ratio'][key]:.2f}x)" for key, ms in file["latency_ms"].items()]
        table.add_row(file["path"], *cells)
    if result["packed"]:
        packed, size = result["packed"], f"{result['packed']['file_bytes']:,}"
        if result["files"]:
            size += f"\n({result['files'][0]['file_bytes'] / packed['file_bytes']:.1f}x smaller)"
        table.add_row(packed["path"], f"{packed['metric']:.2f}", size)
    return table


if __name__ == "__main__":
    main()
