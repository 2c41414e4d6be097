"""Measured rows on disk, each as soon as it is known."""

import json
import os
from collections.abc import Callable, Collection
from dataclasses import asdict
from pathlib import Path
from typing import Any

from autolabel.oracle import Measurement
from compress.errors import ArtifactError


class Notes(dict[str, list[float]]):
    """Numbers by name, each written as soon as it is set.

    Args:
        append: writes one line.
    """

    def __init__(self, append: Callable[[dict[str, Any]], None]) -> None:
        super().__init__()
        self._append = append

    def __setitem__(self, name: str, values: list[float]) -> None:
        super().__setitem__(name, values)
        self._append({"note": name, "values": values})


class RowLog:
    """Appended rows and notes; a torn last line, left by a kill, is dropped.

    Args:
        path: a JSON-lines file, or None to keep the rows in memory only.
        key: hash of everything that a row depends on.
        known: the ids that rows may speak of.
        choices: the choices that they may.

    Attributes:
        rows: `(unit id, choice)` -> what was measured, also by an earlier process.
        notes: what an oracle found on the way to its rows, also in an earlier process.

    Raises:
        ArtifactError: if the file is damaged, was written under another key, or cannot be used.
    """

    def __init__(self, path: str | Path | None, key: str, known: Collection[str], choices: Collection[str]) -> None:
        self.path = None if path is None else Path(path)
        self.rows: dict[tuple[str, str], Measurement] = {}
        self.notes = Notes(self._append)
        if self.path is None:
            return
        try:
            self.path.parent.mkdir(parents=True, exist_ok=True)
            lines = self.path.read_bytes().splitlines(keepends=True) if self.path.exists() else []
            if lines and not lines[-1].endswith(b"\n"):
                lines.pop()
                self._rewrite(lines)
        except OSError as error:
            raise ArtifactError(f"Cannot use {self.path} for measured rows: {error.strerror}.") from error
        if lines:
            self._read(lines, key, set(known), choices)
        else:
            self._append({"key": key})

    def _read(self, lines: list[bytes], key: str, known: Collection[str], choices: Collection[str]) -> None:
        try:
            found = json.loads(lines[0])["key"]
            entries = [json.loads(line) for line in lines[1:]]
            notes = {entry["note"]: [float(v) for v in entry["values"]] for entry in entries if "note" in entry}
            measurements = [Measurement(**entry) for entry in entries if "note" not in entry]
            for m in measurements:
                if found == key and m.unit_id not in known:
                    raise ValueError(f"there is no unit {m.unit_id!r}")
                numbers = (m.damage, m.std_err, m.n_examples, m.forward_macs, m.naive_macs)
                if not all(isinstance(n, (int, float)) for n in numbers) or (found == key and m.choice not in choices):
                    raise ValueError(f"the row of {m.unit_id!r} is no measurement")
        except (ValueError, TypeError, KeyError) as error:
            raise ArtifactError(f"{self.path} is damaged ({error}). Delete it to measure again.") from error
        if found != key:
            raise ArtifactError(
                f"{self.path} holds labels of another model, data set or oracle. Delete it or take another folder."
            )
        self.rows = {(m.unit_id, m.choice): m for m in measurements}
        self.notes.update(notes)

    def _rewrite(self, lines: list[bytes]) -> None:
        with open(self.path, "r+b") as file:
            file.truncate(sum(map(len, lines)))

    def _append(self, value: dict[str, Any]) -> None:
        if self.path is None:
            return
        try:
            with open(self.path, "ab") as file:
                file.write((json.dumps(value) + "\n").encode())
                file.flush()
                os.fsync(file.fileno())
        except OSError as error:
            raise ArtifactError(f"Cannot write {self.path}: {error.strerror}. Free space and run again.") from error

    def add(self, measurement: Measurement) -> None:
        """Keep a row, on disk too."""
        self.rows[measurement.unit_id, measurement.choice] = measurement
        self._append(asdict(measurement))
