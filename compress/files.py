"""Atomic, pickle-free files: a reader sees the old file or the new one, never half of one."""

import json
import os
import tempfile
import zipfile
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import IO, Any

import numpy as np

from compress.errors import ArtifactError


def write_atomic(path: str | Path, write: Callable[[IO[bytes]], None]) -> None:
    """Call `write(file)` on a temporary neighbour, flush it to disk and rename it to `path`.

    Raises:
        ArtifactError: if the folder cannot be written or the disk is full; an older `path` is then untouched.
    """
    path = Path(path)
    temporary = None
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        handle, temporary = tempfile.mkstemp(dir=path.parent, prefix=f".{path.name}.", suffix=".part")
        with os.fdopen(handle, "wb") as file:
            write(file)
            file.flush()
            os.fsync(file.fileno())
        os.chmod(temporary, 0o644)
        os.replace(temporary, path)
    except OSError as error:
        raise ArtifactError(
            f"Cannot write {path}: {error.strerror or error}. Free space or choose another folder."
        ) from error
    finally:
        if temporary is not None and os.path.exists(temporary):
            os.unlink(temporary)


def write_json(path: str | Path, value: Any) -> None:
    """Write `value` as sorted, indented JSON, atomically. NaN and infinity are refused (they are not JSON)."""
    text = json.dumps(value, indent=2, sort_keys=True, allow_nan=False) + "\n"
    write_atomic(path, lambda file: file.write(text.encode()))


def read_json(path: str | Path) -> Any:
    """The value of a JSON file. Raises ArtifactError naming the file if it is missing or damaged."""
    try:
        return json.loads(Path(path).read_bytes())
    except OSError as error:
        raise ArtifactError(f"Cannot read {path}: {error.strerror or error}.") from error
    except ValueError as error:
        raise ArtifactError(
            f"{path} is not valid JSON ({error}). Delete it and run the stage that writes it again."
        ) from error


def save_arrays(path: str | Path, **arrays: np.ndarray) -> None:
    """Write arrays as a compressed `.npz` without pickle, atomically."""
    write_atomic(path, lambda file: np.savez_compressed(file, allow_pickle=False, **arrays))


def load_arrays(path: str | Path, names: Sequence[str]) -> dict[str, np.ndarray]:
    """Read the named arrays of an `.npz` (never unpickling). Raises ArtifactError naming the file and what is wrong."""
    try:
        with open(path, "rb") as file, np.load(file, allow_pickle=False) as archive:
            missing = [name for name in names if name not in archive]
            if missing:
                raise ArtifactError(f"{path} lacks {missing}. It was written by something else; run its stage again.")
            return {name: archive[name] for name in names}
    except FileNotFoundError as error:
        raise ArtifactError(f"{path} does not exist. Run the stage that writes it first.") from error
    except (
        OSError,
        EOFError,
        ValueError,
        KeyError,
        RuntimeError,  # zipfile's word for encryption, and for a compression that it does not know
        zipfile.BadZipFile,
        zipfile.zlib.error,
    ) as error:
        if isinstance(error, ArtifactError):
            raise
        raise ArtifactError(
            f"{path} is damaged ({error}). Delete it and run the stage that writes it again."
        ) from error
