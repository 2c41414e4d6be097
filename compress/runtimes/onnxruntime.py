"""ONNX Runtime on the CPU, each call in a fresh process: what a file does there is what it does for its user."""

import os
import platform
import subprocess
import sys
import tempfile
from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import fx
from torch.utils import _pytree as pytree

from compress.errors import ArtifactError, CompressError
from compress.fake_quantization import quantized_weights
from compress.files import load_arrays, read_json, write_json
from compress.graph import as_inputs
from compress.runtime import Discrepancy, Latency, compare

FLOAT_TOLERANCE = 1e-4
INTEGER_TOLERANCE = 0.02
OVERFLOW_TOLERANCE = 1e-3


class OnnxRuntime:
    """Runs ONNX files with ONNX Runtime's CPU provider.

    Args:
        threads: of each session in `run`; 1 or more.
        timeout_s: after this many seconds a process counts as hung and is ended.
        exact: sum 8-bit products without overflow whatever the processor, at some speed.

    Raises:
        CompressError: for fewer threads.
    """

    name = "onnxruntime"

    def __init__(self, threads: int = 1, timeout_s: float = 1800.0, exact: bool = False) -> None:
        if isinstance(threads, bool) or not isinstance(threads, int) or threads < 1:
            raise CompressError(
                f"The 'threads' parameter of OnnxRuntime must be an int of at least 1. Got {threads!r}."
            )
        self.threads = threads
        self.timeout_s = timeout_s
        self.exact = exact

    def run(self, path: str | Path, inputs: Any, batch: int | None = None) -> list[np.ndarray]:
        (outputs,) = self._run(path, inputs, batch, [self.exact])
        return outputs

    def run_both(self, path: str | Path, inputs: Any) -> tuple[list[np.ndarray], list[np.ndarray]]:
        """The outputs as they are here, and with 8-bit sums that cannot overflow; one process for both."""
        outputs, exact = self._run(path, inputs, None, [self.exact, True])
        return outputs, exact

    def _run(self, path: str | Path, inputs: Any, batch: int | None, exact: list[bool]) -> list[list[np.ndarray]]:
        job = {"verb": "run", "paths": [str(path)], "threads": self.threads, "batch": batch, "exact": exact}
        answer, arrays = _in_fresh_process(job, inputs, len(exact) * self.timeout_s)
        values = [arrays[f"output_{i}"] for i in range(answer["outputs"])]
        each = len(values) // len(exact)
        return [values[each * i : each * (i + 1)] for i in range(len(exact))]

    def measure(self, paths: Sequence[str | Path], inputs: Any, threads: int = 1, repeats: int = 200) -> list[Latency]:
        job = {"verb": "measure", "paths": [str(path) for path in paths], "threads": threads, "repeats": repeats}
        answer, _ = _in_fresh_process(job, inputs, self.timeout_s)
        shared = {"batch": answer["batch"], "threads": threads, "repeats": repeats, "runtime": answer["runtime"],
                  "cpu": cpu_name(), "vnni": has_vnni()}  # fmt: skip
        return [Latency(median, low, high, **shared) for median, low, high in answer["quantiles"]]


def run_onnx(path: str | Path, inputs: Any, batch: int | None = None, threads: int = 1) -> list[np.ndarray]:
    """The outputs of an ONNX file in a fresh process.

    Args:
        path: the file.
        inputs: arrays or tensors: one, a tuple in the order of the file's inputs, or a dict by name.
        batch: examples per run; None runs all at once.
        threads: of the engine.

    Raises:
        ArtifactError: if the file or the inputs are refused.
    """
    return OnnxRuntime(threads).run(path, inputs, batch)


def measure_latency(
    paths: Sequence[str | Path],
    inputs: Any,
    threads: int = 1,
    batch: int = 1,
    repeats: int = 200,
    runtime: OnnxRuntime | None = None,
) -> list[Latency]:
    """The latency of each file on the first `batch` examples of `inputs`, the files taking turns run by run.

    Put the dense file first and both see the same load of the machine. `runtime` sets how long it may take.

    Raises:
        ArtifactError: if a file or the inputs are refused. CompressError: for counts below 1, or too few examples.
    """
    for name, value in (("threads", threads), ("batch", batch), ("repeats", repeats)):
        if isinstance(value, bool) or not isinstance(value, int) or value < 1:
            raise CompressError(
                f"The '{name}' parameter of measure_latency must be an int of at least 1. Got {value!r}."
            )
    names, arrays = _flat(inputs)
    if any(array.ndim and len(array) < batch for array in arrays):
        raise CompressError(
            f"The 'inputs' parameter of measure_latency must hold at least the batch of {batch} examples. Got shapes "
            f"{[array.shape for array in arrays]}."
        )
    arrays = [array[:batch] if array.ndim else array for array in arrays]
    named = tuple(arrays) if names is None else dict(zip(names, arrays, strict=True))
    return (runtime or OnnxRuntime()).measure(paths, named, threads, repeats)


def check_export(
    path: str | Path, module: Any, inputs: Any, tolerance: float | None = None, runtime: OnnxRuntime | None = None
) -> Discrepancy:
    """How far the file is from its module (for a low-bit file: its simulation) on these inputs, in a fresh process.

    Args:
        path: the ONNX file.
        module: the module it was exported from, e.g. from `prepare_quantized`.
        inputs: real inputs: a tensor, or a tuple or dict of the forward's inputs.
        tolerance: largest root-mean-square difference relative to the outputs that is accepted. None: 1e-4 for a
            float file; 0.02 for a file of integers, where a value on the edge of two levels may fall to either side.
        runtime: how the file is run.

    Raises:
        ArtifactError: if the difference is above the tolerance, or if 8-bit sums overflow on this processor: such a
            file must not be used.
    """
    on_integers = isinstance(module, fx.GraphModule) and bool(quantized_weights(module))
    if tolerance is None:
        tolerance = INTEGER_TOLERANCE if on_integers else FLOAT_TOLERANCE
    args, kwargs = as_inputs(inputs)
    was_training = module.training
    module.eval()
    try:
        with torch.no_grad():
            expected = [leaf.cpu().numpy() for leaf in pytree.tree_leaves(module(*args, **kwargs))]
    finally:
        module.train(was_training)
    by_name = not args and all(isinstance(value, torch.Tensor) for value in kwargs.values())
    leaves = pytree.tree_leaves((args, kwargs))
    feed = kwargs if by_name else tuple(leaf for leaf in leaves if isinstance(leaf, torch.Tensor))
    runtime = runtime or OnnxRuntime()
    # The same file with sums that cannot overflow: on a sound file and processor nothing changes.
    outputs, exact = runtime.run_both(path, feed) if on_integers else (runtime.run(path, feed), [])
    discrepancy = compare(outputs, expected, tolerance, str(path))
    if not on_integers:
        return discrepancy
    overflow = compare(outputs, exact, 1.0, str(path)).rms_relative
    if overflow > OVERFLOW_TOLERANCE:
        raise ArtifactError(
            f"8-bit sums of {path} overflow on this processor ({cpu_name()}): outputs change by {overflow:.2%} when "
            f"they are summed exactly. Export with int8_encoding='safe'."
        )
    return replace(discrepancy, overflow=overflow)


def cpu_name() -> str:
    """The processor's name."""
    cpuinfo = Path("/proc/cpuinfo")
    if cpuinfo.exists():
        for line in cpuinfo.read_text(errors="replace").splitlines():
            if line.lower().startswith("model name"):
                return line.partition(":")[2].strip()
    return platform.processor() or platform.machine()


def has_vnni() -> bool:
    """Whether the processor has VNNI, or is one (ARM) whose 8-bit products do not overflow either."""
    cpuinfo = Path("/proc/cpuinfo")
    if platform.machine().lower() in ("arm64", "aarch64"):
        return True
    return cpuinfo.exists() and "vnni" in cpuinfo.read_text(errors="replace")


def _flat(inputs: Any) -> tuple[list[str] | None, list[np.ndarray]]:
    """`(names, arrays)`; names are None where the file's own order counts."""
    if isinstance(inputs, Mapping):
        return list(inputs), [np.asarray(value) for value in inputs.values()]
    values = inputs if isinstance(inputs, (tuple, list)) else (inputs,)
    return None, [np.asarray(value) for value in values]


def _in_fresh_process(
    job: dict[str, Any], inputs: Any, timeout_s: float
) -> tuple[dict[str, Any], dict[str, np.ndarray]]:
    """What `onnx_worker.py` answers: JSON, and the outputs by name."""
    for path in job["paths"]:
        if not Path(path).is_file():
            raise ArtifactError(f"{path} does not exist. Export it first.")
    names, arrays = _flat(inputs)
    with tempfile.TemporaryDirectory() as folder:
        root = Path(folder)
        job = job | {"inputs": names, "paths": [str(Path(path).resolve()) for path in job["paths"]]}
        write_json(root / "job.json", job)
        np.savez(root / "inputs.npz", allow_pickle=False, **{f"input_{i}": value for i, value in enumerate(arrays)})
        worker = Path(__file__).resolve().parents[1] / "onnx_worker.py"
        environment = os.environ | {"OMP_NUM_THREADS": str(job["threads"])}
        command = [sys.executable, "-P", str(worker), str(root)]
        try:
            done = subprocess.run(
                command, env=environment, capture_output=True, text=True, timeout=timeout_s, check=False
            )
        except subprocess.TimeoutExpired as error:
            raise ArtifactError(f"ONNX Runtime did not answer for {job['paths'][0]} in {timeout_s:g} s.") from error
        if not (root / "answer.json").exists():
            last = done.stderr.strip().splitlines()[-1:] or ["no message"]
            raise ArtifactError(f"ONNX Runtime ended with code {done.returncode} on {job['paths'][0]}: {last[0]}")
        answer = read_json(root / "answer.json")
        if "error" in answer:
            raise ArtifactError(f"ONNX Runtime refused {', '.join(job['paths'])}: {answer['error']}")
        keys = [f"output_{i}" for i in range(answer.get("outputs", 0))]
        return answer, load_arrays(root / "outputs.npz", keys) if keys else {}
