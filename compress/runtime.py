"""The seam of runtimes: run an exported file in a fresh process, compare it with its simulation, time it."""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol, runtime_checkable

import numpy as np

from compress.errors import ArtifactError, DataError


@dataclass(frozen=True)
class Latency:
    """Wall time of one run of a file.

    Attributes:
        median_ms, p10_ms, p90_ms: over `repeats` runs after a warm-up.
        batch: examples per run.
        threads: of the engine, inside one operation.
        repeats: timed runs of each file; several files take turns, run by run.
        runtime: engine and version.
        cpu: name of the processor.
        vnni: whether it multiplies 8-bit integers without overflow.
    """

    median_ms: float
    p10_ms: float
    p90_ms: float
    batch: int
    threads: int
    repeats: int
    runtime: str
    cpu: str
    vnni: bool


@dataclass(frozen=True)
class Discrepancy:
    """How far the outputs of a file are from those of the module that it was made from.

    Attributes:
        max_abs: largest absolute difference.
        max_relative: that, relative to the largest magnitude of the module's outputs.
        rms_relative: root of the squared difference, relative to the root of the module's squared outputs.
        argmax_agreement: fraction of rows (last dimension) whose largest entry is at the same place.
        examples: size of the batch that was compared.
        tolerance: the largest `rms_relative` that was accepted.
        overflow: `rms_relative` between the file as it runs here and the same file with sums that cannot overflow; 0
            where every 8-bit product is summed exactly. None for a float file.
    """

    max_abs: float
    max_relative: float
    rms_relative: float
    argmax_agreement: float
    examples: int
    tolerance: float
    overflow: float | None = None


@runtime_checkable
class Runtime(Protocol):
    """Runs files that an exporter wrote, each call in a process of its own."""

    name: str

    def run(self, path: str | Path, inputs: Any, batch: int | None = None) -> list[np.ndarray]:
        """The outputs over all examples of `inputs`, run in batches of `batch` (None: all at once).

        `inputs` is one array, a tuple in the order of the file's inputs, or a dict by name.

        Raises:
            ArtifactError: if the engine refuses the file or the inputs.
        """

    def measure(self, paths: Sequence[str | Path], inputs: Any, threads: int, repeats: int) -> list[Latency]:
        """Latency of each file on the same inputs, the files taking turns."""


def compare(
    outputs: Sequence[np.ndarray], expected: Sequence[np.ndarray], tolerance: float, name: str = "the file"
) -> Discrepancy:
    """The discrepancy of `outputs`, if it is within `tolerance`.

    Raises:
        ArtifactError: if it is not, if shapes differ, or if a value is not finite; the message has the numbers.
        DataError: if there is nothing to compare.
    """
    if not expected or any(value.size == 0 for value in expected):
        raise DataError("The 'inputs' parameter of check_export gave no outputs to compare. Pass a non-empty batch.")
    shapes = [value.shape for value in outputs], [value.shape for value in expected]
    if shapes[0] != shapes[1]:
        raise ArtifactError(f"{name} gives outputs of shapes {shapes[0]}, its module {shapes[1]}. Export it again.")
    difference = squared = reference = largest = 0.0
    agree: list[np.ndarray] = []
    for got, want in zip(outputs, expected, strict=True):
        got, want = got.astype(np.float64), want.astype(np.float64)
        if not np.isfinite(got).all() and np.isfinite(want).all():
            raise ArtifactError(f"{name} gives NaN or infinite outputs where its module does not. Do not use it.")
        difference = max(difference, float(np.abs(got - want).max()))
        largest = max(largest, float(np.abs(want).max()))
        squared += float(np.square(got - want).sum())
        reference += float(np.square(want).sum())
        if want.ndim > 1:
            agree.append((got.argmax(-1) == want.argmax(-1)).reshape(-1))
    tiny = np.finfo(np.float32).tiny
    result = Discrepancy(
        max_abs=difference,
        max_relative=difference / max(largest, tiny),
        rms_relative=float(np.sqrt(squared / max(reference, tiny))),
        argmax_agreement=float(np.concatenate(agree).mean()) if agree else 1.0,
        examples=len(expected[0]),
        tolerance=tolerance,
    )
    if not result.rms_relative <= tolerance:
        raise ArtifactError(
            f"{name} is off from its simulation by {result.rms_relative:.2%} of the outputs' scale (largest difference "
            f"{result.max_abs:.4g}, same answer on {result.argmax_agreement:.2%}), above the tolerance "
            f"{tolerance:.2%}. Do not use it. (Files of int8_encoding='int8' go wrong on CPUs without VNNI.)"
        )
    return result
