"""What whole runs came to, from the trained network to the file that runs: the raw table, and its page."""

import json
from collections.abc import Callable, Sequence
from dataclasses import dataclass, fields
from pathlib import Path
from statistics import fmean, stdev
from typing import Any

from compress.errors import ArtifactError
from compress.files import write_atomic
from experiments.raw_table import to_csv
from experiments.report import smallest_file
from experiments.results import command_of, finished_manifest
from experiments.run_files import read_run


@dataclass(frozen=True)
class WholeRun:
    """One run.

    Attributes:
        experiment: its name; seed: of everything random, the training of the dense network too.
        dense, metric: of the dense network's file and of the smallest file that an engine runs, on the test part.
        dense_bytes, file_bytes, packed_bytes: of these two ONNX files, and of the entropy-coded one.
        macs: part of the dense network's that is left.
        chosen: whose plan validation took.
        batch, large_batch: examples at once; faster, faster_large: how many times as fast as the dense file it is.
        cpu, runtime: where that was timed.
    """

    experiment: str
    seed: int
    metric_name: str
    dense: float
    metric: float
    dense_bytes: int
    file_bytes: int
    packed_bytes: int
    macs: float
    chosen: str
    batch: int
    faster: float
    large_batch: int
    faster_large: float
    cpu: str
    runtime: str
    command: str
    commit: str
    versions: str


def collect_runs(folders: Sequence[str | Path], path: str | Path) -> int:
    """Write a row for each of these finished runs to a CSV file; returns how many.

    Raises:
        ArtifactError: if a folder is no finished run, or one that left no file that runs.
    """
    rows = [_row(Path(folder)) for folder in folders]
    text = to_csv([field.name for field in fields(WholeRun)], map(vars, rows))
    write_atomic(path, lambda file: file.write(text.encode()))
    return len(rows)


def _row(folder: Path) -> WholeRun:
    manifest, run = finished_manifest(folder), read_run(folder)
    final = smallest_file(run)
    if final is None or not (run.dense and run.packed and run.result and run.choice and run.export):
        raise ArtifactError(f"{folder} left no file that runs. Run its experiment with export.formats=[fp32,int8].")
    times = [entry for entry in run.export["latency"] if entry["path"] == final["path"]]
    if not times:
        raise ArtifactError(f"{folder} timed no file. Run its experiment with export.latency_batches=[1].")
    small, large = (pick(times, key=lambda entry: entry["batch"]) for pick in (min, max))
    return WholeRun(
        manifest["config"]["name"], manifest["seeds"]["seed"], run.dense["metric_name"],
        run.export["dense_file"]["metric"], final["metric"], run.export["dense_file"]["file_bytes"],
        final["file_bytes"], run.packed["file_bytes"], run.result["macs"] / run.dense["macs"], run.choice["chosen"],
        small["batch"], small["ratio"], large["batch"], large["ratio"],
        f"{small['cpu']}{', VNNI' if small['vnni'] else ''}", f"{small['runtime']}, {small['threads']} thread(s)",
        command_of(manifest), manifest["code"].get("commit", ""), json.dumps(manifest["libraries"]),
    )  # fmt: skip


_ABOUT = """A network is trained (or loaded), plans compete, the one of the lowest validation loss is repaired and
trained, and the smallest file that ONNX Runtime runs is scored and timed there beside the dense one. *Packed* is the
same model entropy coded, for storing and sending. Mean and standard deviation over seeds; every seed trains a dense
network of its own where it is trained at all. Drawn from `results/whole_runs/raw.csv` (`python -m experiments.run
experiment=NAME seed=SEED`)."""


def write_page(rows: Sequence[WholeRun]) -> str:
    """Markdown: every experiment in a line, and whose plans were taken."""
    page = ["# Whole runs", "", _ABOUT, "",
            "| experiment | seeds | metric | dense -> file | bytes, dense -> file | packed | times as fast |",
            "|---|---|---|---|---|---|---|"]  # fmt: skip
    taken = []
    for name in dict.fromkeys(row.experiment for row in rows):
        own = [row for row in rows if row.experiment == name]
        dense_bytes, size = _mean(own, lambda row: row.dense_bytes), _mean(own, lambda row: row.file_bytes)
        cells = [
            f"`{name}`", str(len(own)), own[0].metric_name.replace("_", " "),
            f"{_spread(own, lambda row: row.dense)} -> {_spread(own, lambda row: row.metric)}",
            f"{dense_bytes:,.0f} -> {size:,.0f} ({dense_bytes / size:.1f}x)",
            f"{_mean(own, lambda row: row.packed_bytes):,.0f}",
            f"{_spread(own, lambda row: row.faster, 1)} at batch {own[0].batch}, "
            f"{_spread(own, lambda row: row.faster_large, 1)} at {own[0].large_batch}",
        ]  # fmt: skip
        page.append(f"| {' | '.join(cells)} |")
        plans = ", ".join(f"`{row.chosen}` (seed {row.seed})" for row in own)
        places = "; ".join(dict.fromkeys(f"{row.cpu}, {row.runtime}" for row in own))
        taken.append(f"- `{name}`: {plans}; {places}.")
    return "\n".join([*page, "", "Whose plans validation took, and where files were timed:", "", *taken]) + "\n"


def _mean(rows: Sequence[WholeRun], value: Callable[[WholeRun], float]) -> float:
    return fmean(map(value, rows))


def _spread(rows: Sequence[WholeRun], value: Callable[[WholeRun], Any], digits: int = 2) -> str:
    """`98.50 ± .12`."""
    deviation = f" ± {stdev(map(value, rows)):.{digits}f}" if len(rows) > 1 else ""
    return f"{_mean(rows, value):.{digits}f}{deviation}"
