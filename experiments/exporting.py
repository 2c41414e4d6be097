"""The files that leave: written, compared with their simulation, scored and timed by the runtime itself."""

from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from torch import fx

from compress.artifact import register_file
from compress.errors import ArtifactError
from compress.fake_quantization import quantized_weights
from compress.runtimes.onnxruntime import check_export, measure_latency, run_onnx

if TYPE_CHECKING:
    from experiments.workbench import Workbench

_SCORING_BATCH = 250


def export_run(experiment: "Workbench", final: fx.GraphModule) -> dict[str, Any]:
    """Write the ONNX files of the dense and of the compressed model; return what `export.json` holds.

    A file further from its module than the tolerance is reported with `ok` false and deleted, never kept as good.
    """
    settings = experiment.config.export
    folder = experiment.run_dir.path
    example = experiment.example
    low = bool(quantized_weights(final))
    path = folder / "artifact" / ("model.int8.onnx" if low else "model.onnx")
    dense_path = folder / "dense" / "model.onnx"
    warnings: list[str] = []
    dense_file = experiment.parts.exporter.export(experiment.structure.traced.module, example, dense_path)
    test = experiment.batches("test", _SCORING_BATCH)
    real = tuple(experiment.task.inputs(test[0]))
    files = [_check(experiment, dense_path, experiment.structure.traced.module, real, "dense", None, test, warnings)]
    exported = experiment.parts.exporter.export(final, example, path)
    tolerance = settings.tolerance if low else None
    files.append(_check(experiment, path, final, real, "int8" if low else "fp32", tolerance, test, warnings))
    if files[-1]["ok"]:
        register_file(folder / "artifact", path.name)
    files[0]["file_bytes"], files[1]["file_bytes"] = dense_file.file_bytes, exported.file_bytes
    latency = []
    for batch in settings.latency_batches:
        for threads in (1,):
            latency += _time(
                folder, dense_path, path if files[-1]["ok"] else None, real, batch, threads, settings.latency_repeats
            )
    return {"files": files[1:], "dense_file": files[0], "latency": latency, "warnings": warnings}


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
        found = check_export(path, module, real, tolerance)
    except ArtifactError as error:
        if kind == "dense":
            raise
        warnings.append(f"{row['path']} is not good: {error}")
        path.unlink(missing_ok=True)
        return {**row, "ok": False, "reason": str(error)}
    outputs = [
        run_onnx(path, tuple(x.numpy() if isinstance(x, torch.Tensor) else x for x in experiment.task.inputs(batch)))[0]
        for batch in _merged(experiment, test)
    ]
    scores = torch.from_numpy(np.concatenate(outputs))
    merged = _merged(experiment, test)
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
    folder: Path, dense: Path, path: Path | None, real: tuple, batch: int, threads: int, repeats: int
) -> list[dict[str, Any]]:
    if real[0].shape[0] < batch:
        return []
    paths = [dense, *([path] if path else [])]
    rows = measure_latency(paths, real, threads=threads, batch=batch, repeats=repeats)
    first = asdict(rows[0])
    out = []
    for file, row in zip(paths, rows, strict=True):
        found = asdict(row)
        out.append(
            {
                **{k: str(v) if isinstance(v, Path) else v for k, v in found.items()},
                "path": str(file.relative_to(folder)),
                "batch": batch,
                "threads": threads,
                "dense_median_ms": first.get("median_ms"),
                "ratio": first["median_ms"] / found["median_ms"],
            }
        )
    return out
