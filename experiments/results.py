"""Raw tables that stay in the repository: one row per method, seed and stage of a comparison, and those of jobs."""

import csv
import io
import json
import shlex
from collections.abc import Mapping, Sequence
from dataclasses import fields
from pathlib import Path
from typing import Any

from compress.errors import ArtifactError
from compress.files import read_json, write_atomic, write_json
from experiments.comparison import read_rows
from experiments.quantities import STAGES
from experiments.raw_table import read_raw, to_csv
from experiments.run_dir import read_manifest, stage_key

COLUMNS = ("method", "seed", "stage", "metric", "loss", "macs", "weight_bytes", "validation_metric", "validation_loss",
           "command", "commit", "versions")  # fmt: skip


def collect_results(folder: str | Path, path: str | Path, add: bool = False) -> int:
    """Write the rows that a run has measured so far to the CSV file `path`; returns how many it holds then.

    Rows of an unfinished comparison count: each was written when its stage ended. The plan that was fine-tuned in the
    end adds its own `fine_tuned` and `quantized` rows.

    Args:
        add: keep rows of other runs that the file holds: of other methods, seeds or stages. They must not be of another
            kind of table.

    Raises:
        ArtifactError: if the folder is no run, or has no row yet.
    """
    folder = Path(folder)
    manifest = read_manifest(folder)
    rows: list[dict[str, Any]] = []
    for file in sorted((folder / "comparison" / stage_key(folder, "compare")).glob("*.rows.json")):
        rows += read_rows(file)
    if not rows:
        raise ArtifactError(f"{folder} has no rows of a comparison yet. Run its experiment first.")
    if (folder / "result.json").exists():
        result, choice = read_json(folder / "result.json"), read_json(folder / "choice.json")
        known = {(row["method"], row["seed"], row["stage"]) for row in rows}
        for stage in ("fine_tuned", "quantized"):
            key = (choice["chosen"], manifest["seeds"]["seed"], stage)
            if stage in result["stages"] and key not in known:
                made = {"commit": manifest["code"].get("commit", ""), "versions": json.dumps(manifest["libraries"])}
                rows.append({**made, "method": key[0], "seed": key[1], "stage": stage, "macs": result["macs"],
                             "weight_bytes": result["weight_bytes"], **result["stages"][stage]})  # fmt: skip
    constant = {"command": command_of(manifest)}
    rows = [{**row, **constant} for row in rows]
    if add:
        known = {_key(row) for row in rows}
        rows += [row for row in _rows_of(path) if _key(row) not in known]
    rows.sort(key=lambda row: (row["method"], int(row["seed"]), STAGES.index(row["stage"])))
    text = io.StringIO()
    writer = csv.DictWriter(text, COLUMNS, lineterminator="\n", restval="")
    writer.writeheader()
    writer.writerows(rows)
    write_atomic(path, lambda file: file.write(text.getvalue().encode()))
    return len(rows)


def _key(row: Mapping[str, Any]) -> tuple[str, str, str]:
    return row["method"], str(row["seed"]), row["stage"]


def _rows_of(path: str | Path) -> list[dict[str, str]]:
    """The rows of such a table. Raises ArtifactError if it is missing or another table."""
    try:
        with Path(path).open(encoding="utf-8", newline="") as file:
            reader = csv.DictReader(file)
            if tuple(reader.fieldnames or ()) != COLUMNS:
                raise ArtifactError(f"{path} is no table of a comparison: its columns are {reader.fieldnames}.")
            return list(reader)
    except OSError as error:
        raise ArtifactError(f"Cannot read {path}: {error.strerror or error}.") from error


def collect_table(folder: str | Path, name: str, path: str | Path) -> int:
    """Copy the table `name` that a finished run wrote to the CSV file `path`; returns how many rows it has.

    What made it (command, commit, versions, configuration, hashes of its inputs) goes into `made.json` beside it, or
    into `made_NAME.json` where the file is not called `raw.csv`.

    Raises:
        ArtifactError: if the folder is no finished run, or has no such table.
    """
    folder, path = Path(folder), Path(path)
    manifest = finished_manifest(folder)
    try:
        content = (folder / name).read_bytes()
    except OSError as error:
        raise ArtifactError(f"Cannot read {folder / name}: {error.strerror or error}.") from error
    write_atomic(path, lambda file: file.write(content))
    job = {key: _nameless(value) for key, value in manifest["config"]["job"].items()}
    made = {"command": command_of(manifest), "code": manifest["code"], "libraries": manifest["libraries"], "job": job,
            "seed": manifest["seeds"]["seed"], "inputs_sha256": sorted(manifest["inputs"].values())}  # fmt: skip
    write_json(path.with_name("made.json" if path.stem == "raw" else f"made_{path.stem}.json"), made)
    return content.count(b"\n") - 1


def collect_rows(folders: Sequence[str | Path], name: str, kind: type, path: str | Path) -> int:
    """Write the tables `name` of several finished runs into one CSV file; returns how many rows it has.

    Args:
        kind: the dataclass of the rows, which say themselves what made them.

    Raises:
        ArtifactError: if a folder is no finished run, or has no such table.
    """
    rows: list[Any] = []
    for folder in map(Path, folders):
        finished_manifest(folder)
        rows += read_raw(folder / name, kind)
    write_atomic(
        path, lambda file: file.write(to_csv([field.name for field in fields(kind)], map(vars, rows)).encode())
    )
    return len(rows)


def command_of(manifest: Mapping[str, Any]) -> str:
    """The command of a run; where it and its inputs lay says nothing to others."""
    words = shlex.split(manifest["command"])
    return shlex.join(word for word in words if not word.startswith("hydra.run.dir=") and "=/" not in word)


def finished_manifest(folder: Path) -> dict[str, Any]:
    """The manifest of a finished run."""
    manifest = read_manifest(folder)
    if manifest["status"] != "finished":
        raise ArtifactError(f"The run in {folder} is {manifest['status']}, not finished. Finish it first.")
    return manifest


def _nameless(value: Any) -> Any:
    """A setting, an absolute path without its folders."""
    return Path(value).name if isinstance(value, str) and Path(value).is_absolute() else value
