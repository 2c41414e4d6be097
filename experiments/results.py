"""The raw table of a comparison that stays in the repository: one row per method, seed and stage."""

import csv
import io
import json
import shlex
from pathlib import Path
from typing import Any

from compress.errors import ArtifactError
from compress.files import read_json, write_atomic
from experiments.comparison import read_rows
from experiments.run_dir import read_manifest, stage_key

COLUMNS = ("method", "seed", "stage", "metric", "loss", "macs", "weight_bytes", "validation_metric", "validation_loss",
           "command", "commit", "versions")  # fmt: skip


def collect_results(folder: str | Path, path: str | Path) -> int:
    """Write the rows that a run has measured so far to the CSV file `path`; returns how many.

    Rows of an unfinished comparison count: each was written when its stage ended. The plan that was fine-tuned in the
    end adds its own `fine_tuned` and `quantized` rows.

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
    # Where the run lay says nothing to others.
    words = [word for word in shlex.split(manifest["command"]) if not word.startswith("hydra.run.dir=")]
    constant = {"command": shlex.join(words)}
    rows.sort(key=lambda row: (row["method"], row["seed"]))
    text = io.StringIO()
    writer = csv.DictWriter(text, COLUMNS, lineterminator="\n", restval="")
    writer.writeheader()
    writer.writerows({**row, **constant} for row in rows)
    write_atomic(path, lambda file: file.write(text.getvalue().encode()))
    return len(rows)
