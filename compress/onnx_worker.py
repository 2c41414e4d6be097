"""Runs or times ONNX files in a process of its own, with numpy and ONNX Runtime alone: neither torch nor this package.

`python -P onnx_worker.py FOLDER` reads FOLDER/job.json and inputs.npz and leaves answer.json (and outputs.npz).
"""

import json
import sys
import time
from pathlib import Path
from typing import Any

import numpy as np
import onnxruntime
from onnxruntime.capi import onnxruntime_pybind11_state as engine

_REFUSALS = tuple(
    getattr(engine, name)
    for name in ("EPFail", "Fail", "InvalidArgument", "InvalidGraph", "InvalidProtobuf", "NoModel", "NoSuchFile",
                 "NotImplemented", "RuntimeException")
    if hasattr(engine, name)
)  # fmt: skip


def main(folder: Path) -> None:
    """Do the job that lies in the folder; a refusal of the engine becomes the answer."""
    job = json.loads((folder / "job.json").read_text())
    with np.load(folder / "inputs.npz", allow_pickle=False) as archive:
        arrays = [archive[f"input_{i}"] for i in range(len(archive.files))]
    try:
        answer = _run(job, arrays, folder) if job["verb"] == "run" else _measure(job, arrays)
    except (*_REFUSALS, RuntimeError, ValueError, IndexError) as error:
        answer = {"error": (str(error).strip().splitlines() or [type(error).__name__])[0][:500]}
    (folder / "answer.json").write_text(json.dumps(answer))


def _session(path: str, threads: int, exact: bool = False) -> onnxruntime.InferenceSession:
    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = threads
    options.inter_op_num_threads = 1
    options.log_severity_level = 3
    if exact:
        options.add_session_config_entry("session.x64quantprecision", "1")
    return onnxruntime.InferenceSession(path, options, providers=["CPUExecutionProvider"])


def _feed(session: Any, names: list[str] | None, arrays: list[np.ndarray]) -> dict[str, np.ndarray]:
    """Arrays by name: the given names, or the file's own in their order."""
    own = [value.name for value in session.get_inputs()]
    names = own if names is None else names
    if len(names) != len(arrays):
        raise ValueError(f"the file has {len(own)} inputs {own}, but {len(arrays)} arrays were given")
    return dict(zip(names, arrays, strict=True))


def _run(job: dict[str, Any], arrays: list[np.ndarray], folder: Path) -> dict[str, Any]:
    outputs: list[np.ndarray] = []
    for exact in job["exact"]:
        session = _session(job["paths"][0], job["threads"], exact)
        feed = _feed(session, job["inputs"], arrays)
        size = _batch_of(arrays)
        batch = job["batch"] or size
        parts = []
        for start in range(0, size, batch):
            part = {name: array[start : start + batch] if array.ndim else array for name, array in feed.items()}
            parts.append(session.run(None, part))
        outputs += [np.concatenate(part) if part[0].ndim else part[0] for part in zip(*parts, strict=True)]
        # Two of a large file need not fit.
        del session
    np.savez(folder / "outputs.npz", allow_pickle=False, **{f"output_{i}": value for i, value in enumerate(outputs)})
    return {"outputs": len(outputs)}


def _measure(job: dict[str, Any], arrays: list[np.ndarray]) -> dict[str, Any]:
    sessions = [_session(path, job["threads"]) for path in job["paths"]]
    feeds = [_feed(session, job["inputs"], arrays) for session in sessions]
    times: list[list[float]] = [[] for _ in sessions]
    warm_up = max(3, job["repeats"] // 10)
    for turn in range(warm_up + job["repeats"]):
        for session, feed, own in zip(sessions, feeds, times, strict=True):
            start = time.perf_counter()
            session.run(None, feed)
            if turn >= warm_up:
                own.append(1000.0 * (time.perf_counter() - start))
    quantiles = [np.percentile(own, (50, 10, 90)).tolist() for own in times]
    return {"quantiles": quantiles, "batch": _batch_of(arrays), "runtime": f"onnxruntime {onnxruntime.__version__}"}


def _batch_of(arrays: list[np.ndarray]) -> int:
    return max((len(array) for array in arrays if array.ndim), default=1)


if __name__ == "__main__":
    main(Path(sys.argv[1]))
