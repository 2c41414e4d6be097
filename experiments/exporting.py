"""The files that leave: written, compared with their simulation, scored and timed by the runtime itself."""

from collections.abc import Sequence
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from torch import fx

from compress.artifact_files import register_file
from compress.errors import ArtifactError
from compress.fake_quantization import quantized_weights
from compress.runtimes.onnxruntime import OnnxRuntime, check_export, measure_latency
from compress.task import Task
from experiments.data.splits import Part

if TYPE_CHECKING:
    from experiments.workbench import Workbench

_SCORING_BATCH = 250


def export_run(experiment: "Workbench", final: fx.GraphModule, unquantized: fx.GraphModule | None) -> dict[str, Any]:
    """Write the ONNX files of the dense and of the compressed model; return what `export.json` holds.

    A file further from its module than the tolerance is reported with `ok` false and deleted, never kept as good.

    Args:
        final: the compressed module.
        unquantized: the same module before quantization, if there was any: it leaves as `model.onnx`, for runtimes
            without integer kernels.
    """
    settings = experiment.config.export
    folder = experiment.run_dir.path
    warnings: list[str] = []
    test = experiment.batches("test", _SCORING_BATCH)
    real = tuple(experiment.task.inputs(test[0]))
    low = bool(quantized_weights(final))
    wanted = [(folder / "dense" / "model.onnx", experiment.structure.traced.module, "dense", None)]
    if low:
        if unquantized is not None:
            wanted.append((folder / "artifact" / "model.onnx", unquantized, "fp32", None))
        wanted.append((folder / "artifact" / "model.int8.onnx", final, "int8", settings.tolerance))
    else:
        wanted.append((folder / "artifact" / "model.onnx", final, "fp32", None))
    files = []
    for path, module, kind, tolerance in wanted:
        exported = experiment.parts.exporter.export(module, experiment.example, path)
        row = _check(experiment, path, module, real, kind, tolerance, test, warnings)
        files.append({**row, "file_bytes": exported.file_bytes})
        if row["ok"] and kind != "dense":
            register_file(folder / "artifact", path.name)
    good = [path for (path, *_), row in zip(wanted, files, strict=True) if row["ok"]]
    latency = []
    timed = timing_inputs(experiment.data.test, experiment.task, settings.latency_batches)
    for batch in settings.latency_batches:
        if len(timed[0]) < batch:
            warnings.append(f"Latency at batch {batch} was not taken: at most {len(timed[0])} examples are at hand.")
        else:
            latency += _time(folder, good, timed, batch, settings.latency_repeats, experiment.parts.runtime)
    return {"files": files[1:], "dense_file": files[0], "latency": latency, "warnings": warnings}


def timing_inputs(part: Part, task: Task, latency_batches: Sequence[int]) -> tuple[Any, ...]:
    """Inputs to take latencies on: enough for the largest batch, where the part has so many examples."""
    # A scoring batch at least: texts are padded to the longest beside them.
    size = max([_SCORING_BATCH, *latency_batches])
    return tuple(task.inputs(part.batch(part.ordered()[:size])))


def _check(
    experiment: "Workbench",
    path: Path,
    module: fx.GraphModule,
    real: tuple,
    kind: str,
    tolerance: float | None,
    test: list[Any],
    warnings: list[str],
) -> dict[str, Any]:
    row: dict[str, Any] = {
        "path": str(path.relative_to(experiment.run_dir.path)),
        "format": kind,
        "tolerance": tolerance,
    }
    try:
        found = check_export(path, module, real, tolerance, experiment.parts.runtime)
    except ArtifactError as error:
        if kind == "dense":
            raise
        warnings.append(f"{row['path']} is not good: {error}")
        path.unlink(missing_ok=True)
        return {**row, "ok": False, "reason": str(error)}
    merged = _merged(experiment, test)
    runtime = experiment.parts.runtime
    outputs = [runtime.run(path, tuple(experiment.task.inputs(batch)), _SCORING_BATCH)[0] for batch in merged]
    scores = torch.from_numpy(np.concatenate(outputs))
    losses = torch.cat([experiment.task.loss(torch.from_numpy(o), b) for o, b in zip(outputs, merged, strict=True)])
    return {
        **row,
        "ok": True,
        "metric": experiment.task.score(scores, merged),
        "loss": losses.double().mean().item(),
        "tolerance": found.tolerance,
        "discrepancy_relative": found.rms_relative,
        "discrepancy_max_relative": found.max_relative,
        "argmax_agreement": found.argmax_agreement,
        "examples_compared": found.examples,
    }


def _merged(experiment: "Workbench", test: list[Any]) -> list[Any]:
    """Batches of images of one shape as one, so that one fresh process scores them all."""
    if experiment.data.layout == "tokens":
        return test
    return [tuple(torch.cat([batch[i] for batch in test]) for i in range(len(test[0])))]


def _time(
    folder: Path, paths: list[Path], real: tuple, batch: int, repeats: int, runtime: OnnxRuntime
) -> list[dict[str, Any]]:
    """Latency of each file, the dense one first."""
    rows = measure_latency(paths, real, runtime.threads, batch, repeats, runtime)
    dense = rows[0].median_ms
    return [
        {
            **asdict(row),
            "path": str(path.relative_to(folder)),
            "dense_median_ms": dense,
            "ratio": dense / row.median_ms,
        }
        for path, row in zip(paths, rows, strict=True)
    ]
