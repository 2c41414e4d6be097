"""Reads the raw tables of results back into the rows that they were written from."""

import csv
import types
from dataclasses import fields
from pathlib import Path
from typing import Any, TypeVar, get_args, get_type_hints

from compress.errors import ArtifactError

Row = TypeVar("Row")


def read_raw(path: str | Path, kind: type[Row]) -> list[Row]:
    """The rows of a CSV file as dataclasses of one kind, each column read as its field is typed.

    Raises:
        ArtifactError: if the file is missing, or its columns or numbers are not those of such rows.
    """
    path, hints = Path(path), get_type_hints(kind)
    names = [field.name for field in fields(kind)]  # type: ignore[arg-type]
    try:
        with path.open(encoding="utf-8", newline="") as file:
            reader = csv.DictReader(file)
            if sorted(reader.fieldnames or ()) != sorted(names):
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
