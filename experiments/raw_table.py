"""Writes the raw tables of results, and reads them back into the rows that they were written from."""

import csv
import io
import types
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import MISSING, fields
from pathlib import Path
from typing import Any, TypeVar, get_args, get_type_hints

from compress.errors import ArtifactError
from compress.files import write_atomic
from experiments.run_dir import RunDir

Row = TypeVar("Row")


def write_raw(run_dir: RunDir, name: str, columns: Sequence[str], rows: Iterable[Mapping[str, Any]]) -> None:
    """Write a CSV file of a run, numbers with six digits."""
    path, text = run_dir.file(name), to_csv(columns, rows)
    write_atomic(path, lambda file: file.write(text.encode()))
    run_dir.add_output(path)


def to_csv(columns: Sequence[str], rows: Iterable[Mapping[str, Any]]) -> str:
    """The text of a CSV file, numbers with six digits."""
    text = io.StringIO()
    writer = csv.DictWriter(text, columns, lineterminator="\n")
    writer.writeheader()
    writer.writerows({key: f"{value:.6g}" if isinstance(value, float) else value for key, value in row.items()}
                     for row in rows)  # fmt: skip
    return text.getvalue()


def read_raw(path: str | Path, kind: type[Row]) -> list[Row]:
    """The rows of a CSV file as dataclasses of one kind, each column read as its field is typed.

    A field with a default may be no column: tables from before it came are read too.

    Raises:
        ArtifactError: if the file is missing, or its columns or numbers are not those of such rows.
    """
    path, hints = Path(path), get_type_hints(kind)
    needed = {field.name: field.default is MISSING for field in fields(kind)}  # type: ignore[arg-type]
    try:
        with path.open(encoding="utf-8", newline="") as file:
            reader = csv.DictReader(file)
            names = list(reader.fieldnames or ())
            missing = [name for name in needed if needed[name] and name not in names]
            if missing or not needed.keys() >= {*names} or len(names) > len({*names}):
                raise ValueError(f"its columns are {reader.fieldnames}")
            return [kind(**{name: _read(line[name], hints[name]) for name in names}) for line in reader]
    except OSError as error:
        raise ArtifactError(f"Cannot read {path}: {error.strerror or error}.") from error
    except (ValueError, TypeError) as error:
        raise ArtifactError(f"{path} is not a table of {kind.__name__} ({error}).") from error


def _read(text: str, hint: Any) -> Any:
    """An empty cell is None where the field allows it."""
    if isinstance(hint, types.UnionType):
        if not text:
            return None
        hint = next(option for option in get_args(hint) if option is not type(None))
    return hint(text)
