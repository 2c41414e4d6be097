"""The run's own record: one JSON object a line, flushed as it comes."""

import json
import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from compress.errors import ArtifactError
from experiments.tracker import RunInfo, to_json

FILE_NAME = "metrics.jsonl"


class JSONLTracker:
    """Appends to `metrics.jsonl` in the run folder. A line torn by a crash is cut off when the run is resumed.

    Each line has a `kind`: `session` (a start or resumption), `stage` (`name`, `key`), `metrics` (`step`, `values`),
    `table`, `figure`, `artifact` or `summary`. A resumed run may repeat a step; the later line counts. Metrics belong
    to the stage told before them; what that stage told under another key counts no more.

    Raises:
        ArtifactError: if the file cannot be written.
    """

    def __init__(self, run: RunInfo) -> None:
        self.run = run
        self.path = Path(run.folder) / FILE_NAME
        try:
            self.path.parent.mkdir(parents=True, exist_ok=True)
            _repair(self.path)
            self._file = self.path.open("a", encoding="utf-8")
        except OSError as error:
            raise ArtifactError(f"Cannot write {self.path}: {error.strerror or error}.") from error
        self._append("session", name=run.name, group=run.group, job_type=run.job_type)

    def begin_stage(self, name: str, key: str) -> None:
        """One line of kind `stage`."""
        self._append("stage", name=name, key=key)

    def log_metrics(self, metrics: Mapping[str, float], step: int) -> None:
        """One line of kind `metrics`."""
        self._append("metrics", step=int(step), values=dict(metrics))

    def log_table(self, name: str, columns: Sequence[str], rows: Sequence[Sequence[Any]]) -> None:
        """One line of kind `table` with all rows."""
        self._append("table", name=name, columns=list(columns), rows=[list(row) for row in rows])

    def log_figure(self, name: str, path: str | Path) -> None:
        """One line of kind `figure` with the path."""
        self._append("figure", name=name, path=self._relative(path))

    def log_artifact(self, path: str | Path) -> None:
        """One line of kind `artifact` with the path."""
        self._append("artifact", path=self._relative(path))

    def summary(self, metrics: Mapping[str, Any]) -> None:
        """One line of kind `summary`."""
        self._append("summary", values=dict(metrics))

    def finish(self) -> None:
        """Close the file."""
        self._file.close()

    def _append(self, kind: str, **fields: Any) -> None:
        line = json.dumps(to_json({"kind": kind, "time": round(time.time(), 3), **fields}), allow_nan=False)
        try:
            self._file.write(line + "\n")
            self._file.flush()
        except OSError as error:
            reason = error.strerror or error
            raise ArtifactError(f"Cannot write {self.path}: {reason}. Free space and resume.") from error

    def _relative(self, path: str | Path) -> str:
        path = Path(path).resolve()
        folder = Path(self.run.folder).resolve()
        return path.relative_to(folder).as_posix() if path.is_relative_to(folder) else str(path)


def read_records(path: str | Path) -> list[dict[str, Any]]:
    """The lines of a `metrics.jsonl`; a torn last line is left out.

    Raises:
        ArtifactError: if the file is missing, or a line other than the last is damaged.
    """
    try:
        lines = Path(path).read_bytes().split(b"\n")
    except OSError as error:
        raise ArtifactError(f"Cannot read {path}: {error.strerror or error}.") from error
    complete, tail = lines[:-1], lines[-1]
    if _is_record(tail):
        complete.append(tail)
    for number, line in enumerate(complete, start=1):
        if not _is_record(line):
            raise ArtifactError(f"Line {number} of {path} is damaged. Delete that line.")
    return [json.loads(line) for line in complete]


def _repair(path: Path) -> None:
    """End the file with a whole line: a whole last line gets its newline, a torn one is cut off."""
    if not path.exists():
        return
    with path.open("rb+") as file:
        content = file.read()
        head, newline, tail = content.rpartition(b"\n")
        if not tail:
            return
        if _is_record(tail):
            file.write(b"\n")
        else:
            file.truncate(len(head) + len(newline))


def _is_record(line: bytes) -> bool:
    try:
        return isinstance(json.loads(line), dict)
    except ValueError:
        return False
