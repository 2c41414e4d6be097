"""Writes the files of results/records/ anew, in the newest version of the format, and scores each in a fresh process;
raw.csv holds the scores, tensors.csv what each tensor takes:  python scripts/repack_records.py"""

import argparse
import csv
import io
import json
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parents[1]
sys.path.insert(0, str(ROOT))

from compress.files import write_atomic  # noqa: E402
from compress.packed_artifact import repack_artifact  # noqa: E402
from experiments.manifest import describe_code, library_versions  # noqa: E402
from experiments.packed_evaluation import model_of  # noqa: E402
from experiments.raw_table import read_raw  # noqa: E402
from experiments.records_page import KeptFile  # noqa: E402

RECORDS = ROOT / "results" / "records"


def main() -> None:
    argparse.ArgumentParser(description=__doc__).parse_args()
    made = {"command": "python scripts/repack_records.py", "commit": describe_code().get("commit", ""),
            "versions": json.dumps(library_versions())}  # fmt: skip
    known = {row.file: row for row in read_raw(RECORDS / "raw.csv", KeptFile)}
    rows, tensors = [], []
    for path in sorted(RECORDS.glob("*.packed")):
        if path.name not in known:
            sys.exit(f"{path.name} has no row in {RECORDS / 'raw.csv'}, which tells its seed: add one first.")
        before = path.stat().st_size
        repack_artifact(path, path, model_of(path))
        if known[path.name].file_bytes == before == path.stat().st_size:
            # Of the newest version already.
            before = known[path.name].before_bytes
        done = subprocess.run(
            [sys.executable, "-m", "experiments.evaluate", str(path)], cwd=ROOT, check=True, stdout=subprocess.PIPE,
            text=True,
        )  # fmt: skip
        row = json.loads(done.stdout.splitlines()[-1])
        tensors += [{"file": path.name, **sizes} for sizes in row.pop("tensors")]
        named = {name: row.pop(name) for name in ("file", "model", "data")}
        rows.append({**named, "seed": known[path.name].seed, **row, "before_bytes": before, **made})
        print(f"{path.name}: {before:,} -> {rows[-1]['file_bytes']:,} bytes, {rows[-1]['metric']:.2f}")
    _write("raw.csv", rows)
    _write("tensors.csv", tensors)


def _write(name: str, rows: Sequence[dict[str, Any]]) -> None:
    text = io.StringIO()
    writer = csv.DictWriter(text, list(rows[0]), lineterminator="\n")
    writer.writeheader()
    writer.writerows(rows)
    write_atomic(RECORDS / name, lambda file: file.write(text.getvalue().encode()))


if __name__ == "__main__":
    main()
