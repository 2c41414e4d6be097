"""Writes the files of results/records/ anew, in the newest version of the format, and scores each in a fresh process:
python scripts/repack_records.py"""

import csv
import io
import json
import subprocess
import sys
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]
sys.path.insert(0, str(ROOT))

from compress.files import write_atomic  # noqa: E402
from compress.packed_artifact import repack_artifact  # noqa: E402
from experiments.manifest import describe_code, library_versions  # noqa: E402
from experiments.packed_evaluation import model_of  # noqa: E402

RECORDS = ROOT / "results" / "records"


def main() -> None:
    made = {"command": "python scripts/repack_records.py", "commit": describe_code().get("commit", ""),
            "versions": json.dumps(library_versions())}  # fmt: skip
    rows = []
    for path in sorted(RECORDS.glob("*.packed")):
        before = path.stat().st_size
        repack_artifact(path, path, model_of(path))
        told = subprocess.run(
            [sys.executable, "-m", "experiments.evaluate", str(path)], cwd=ROOT, check=True, stdout=subprocess.PIPE,
            text=True,
        )  # fmt: skip
        row = json.loads(told.stdout.splitlines()[-1])
        row.pop("tensors")  # which only the run that packed it knows
        rows.append({**row, "before_bytes": before, **made})
        print(f"{path.name}: {before:,} -> {rows[-1]['file_bytes']:,} bytes, {rows[-1]['metric']:.2f}")
    text = io.StringIO()
    writer = csv.DictWriter(text, list(rows[0]), lineterminator="\n")
    writer.writeheader()
    writer.writerows(rows)
    write_atomic(RECORDS / "raw.csv", lambda file: file.write(text.getvalue().encode()))


if __name__ == "__main__":
    main()
