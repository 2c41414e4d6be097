"""The folder of a run: one owner at a time, stages that are skipped when their work is already there, a manifest."""

import hashlib
import json
import logging
import os
import shutil
import tempfile
import time
from collections.abc import Callable, Iterable, Mapping
from datetime import UTC, datetime
from pathlib import Path
from types import TracebackType
from typing import Any, Self

from filelock import FileLock, Timeout

from compress.errors import ArtifactError
from compress.files import read_json, write_json
from experiments.manifest import describe_code, describe_machine, hash_file, library_versions

MANIFEST = "manifest.json"
STAGES = "stages"
LOCK = ".lock"
SCHEMA_VERSION = 1
MIN_FREE_BYTES = 64 * 2**20

log = logging.getLogger(__name__)


class RunDir:
    """The folder of one run; use it as a context manager.

    Entering checks that the folder can be written, has room and is not in use; leaving writes the status into
    `manifest.json`: `finished`, `failed` or `interrupted`.

    Args:
        path: the folder; it is made if it does not exist, and resumed if it does.
        record: what the manifest holds from the start (command, configuration, seeds, threads, device).
        min_free_bytes: free space without which the run does not start.
    """

    def __init__(
        self, path: str | Path, record: Mapping[str, Any] | None = None, min_free_bytes: int = MIN_FREE_BYTES
    ) -> None:
        self.path = Path(path)
        self._record = dict(record or {})
        self._min_free_bytes = min_free_bytes
        self._lock = FileLock(self.path / LOCK)
        self._manifest: dict[str, Any] = {}

    def __enter__(self) -> Self:
        _probe(self.path, self._min_free_bytes)
        try:
            self._lock.acquire(timeout=0)
        except Timeout:
            raise ArtifactError(
                f"The run folder {self.path} is in use by another process. Wait for it or choose another hydra.run.dir."
            ) from None
        earlier = _read_json_or_nothing(self.path / MANIFEST)
        code = describe_code()
        if earlier and earlier.get("code") != code:
            log.warning("%s was begun by other code (%s); finished stages are kept.", self.path, earlier.get("code"))
        self._manifest = {
            "schema_version": SCHEMA_VERSION,
            "status": "running",
            "started": earlier.get("started", _now()),
            "sessions": earlier.get("sessions", 0) + 1,
            "code": code,
            "libraries": library_versions(),
            "machine": describe_machine(),
            "inputs": {},
            "outputs": {},
            "metrics": {},
            **self._record,
        }
        try:
            self._write()
        except ArtifactError:
            self._lock.release()
            raise
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        try:
            if kind is None:
                self._manifest["status"] = "finished"
            else:
                interrupted = issubclass(kind, KeyboardInterrupt)
                self._manifest["status"] = "interrupted" if interrupted else "failed"
                self._manifest["error"] = f"{kind.__name__}: {error}"
            self._manifest["finished"] = _now()
            self._write()
        except ArtifactError:
            # A full disk must not hide the error that ended the run.
            if kind is None:
                raise
            log.warning("The manifest of %s could not be written.", self.path)
        finally:
            self._lock.release()

    def file(self, name: str) -> Path:
        """The path of a file of the run, its folder made."""
        path = self.path / name
        path.parent.mkdir(parents=True, exist_ok=True)
        return path

    def add_input(self, path: str | Path) -> str:
        """The sha256 of an input file or folder, which is also recorded in the manifest."""
        digest = hash_file(path)
        self._manifest["inputs"][self._name(Path(path))] = digest
        self._write()
        return digest

    def add_output(self, path: str | Path) -> str:
        """The sha256 of a file or folder that the run leaves, which is also recorded in the manifest."""
        digest = hash_file(path)
        self._manifest["outputs"][self._name(Path(path))] = digest
        self._write()
        return digest

    def set_metrics(self, metrics: Mapping[str, Any]) -> None:
        """Record the final metrics, which a sweep's table and `scripts/reproduce.py` read."""
        self._manifest["metrics"] = dict(metrics)
        self._write()

    def delete(self, names: Iterable[str | Path]) -> None:
        """Delete files and folders of the run folder that another configuration left, where they are."""
        for name in names:
            _delete(self.path / name)

    def run_stage(
        self,
        name: str,
        work: Callable[[], object],
        *,
        inputs: Iterable[str | Path] = (),
        outputs: Iterable[str | Path],
        settings: Mapping[str, Any] | None = None,
        scratch: Iterable[str | Path] = (),
        told: Iterable[str | Path] = (),
    ) -> bool:
        """Whether `work()` was called: it is skipped when its outputs are there, whole, and from the same inputs.

        A stage reads files and writes files. Its marker `stages/NAME.json` holds the hashes of the inputs and the
        settings when it starts, and those of the outputs when it ends. When it was cut short, the same inputs and
        settings find the `scratch` files and outputs as they were left and may go on from there; others find them
        deleted.

        Args:
            name: of the stage and its marker.
            work: does it; its return value is not looked at.
            inputs: files or folders it reads, relative to the run folder or absolute.
            outputs: files or folders in the run folder that it writes; one with a `*` stands for all that match it.
            settings: the part of the configuration it depends on, plain JSON.
            scratch: files in the run folder that only its own resuming reads.
            told: files in the run folder that others make and that tell of its outputs: they go when those do.

        Raises:
            ArtifactError: if an input is missing, or if `work` left an output unwritten.
        """
        inputs = [self.path / path for path in inputs]
        patterns = [str(path) for path in outputs]
        outputs = self._matching(patterns)
        scratch = [self.path / path for path in scratch]
        missing = [path for path in inputs if not path.exists()]
        if missing:
            raise ArtifactError(f"Stage '{name}' needs {missing[0]}. Run the stage that writes it first.")
        key = {
            "inputs": {self._name(path): hash_file(path) for path in inputs},
            "settings_sha256": _hash_json(settings or {}),
        }
        marker = self.path / STAGES / f"{name}.json"
        old = _read_json_or_nothing(marker)
        same = {field: old.get(field) for field in key} == key
        if same and old.get("status") == "finished" and old.get("outputs") == self._hashes(outputs):
            log.info("stage %s: already done, skipped", name)
            self._record_stage(key["inputs"], old["outputs"])
            return False
        # Neither what other inputs gave nor an output that was altered since may be taken for this stage's work.
        if not same or old.get("status") == "finished":
            self.delete([*outputs, *told, *(() if same else scratch)])
        write_json(marker, {**key, "status": "running"})
        log.info("stage %s: %s", name, "resumed" if same and old.get("status") == "running" else "started")
        start = time.monotonic()
        work()
        outputs = self._matching(patterns)
        unwritten = [path for path in outputs if not path.exists()]
        if unwritten:
            raise ArtifactError(f"Stage '{name}' ended without writing {unwritten[0]}. Run it again.")
        hashes = self._hashes(outputs)
        seconds = round(time.monotonic() - start, 3)
        write_json(marker, {**key, "status": "finished", "outputs": hashes, "seconds": seconds})
        self._record_stage(key["inputs"], hashes)
        log.info("stage %s: done in %.1f s", name, seconds)
        return True

    def stage_key(self, name: str) -> str:
        """Short hash of the inputs and settings that the stage was started with last."""
        return stage_key(self.path, name)

    def is_at(self, name: str, settings: Mapping[str, Any]) -> bool:
        """Whether the stage was started with these settings, and its inputs are still those it was started with."""
        marker = _read_json_or_nothing(self.path / STAGES / f"{name}.json")
        inputs = marker.get("inputs", {})
        return marker.get("settings_sha256") == _hash_json(settings) and all(
            (self.path / path).exists() and hash_file(self.path / path) == digest for path, digest in inputs.items()
        )

    def _record_stage(self, inputs: Mapping[str, str], outputs: Mapping[str, str | None]) -> None:
        # What one stage hands to the next is among the outputs; only files from outside are inputs of the run.
        self._manifest["inputs"] |= {name: digest for name, digest in inputs.items() if Path(name).is_absolute()}
        self._manifest["outputs"] |= outputs
        self._write()

    def _matching(self, patterns: Iterable[str]) -> list[Path]:
        """The paths of outputs, there or not; of a pattern those that are there."""
        return [
            path
            for pattern in patterns
            for path in (sorted(self.path.glob(pattern)) if "*" in pattern else [self.path / pattern])
        ]

    def _hashes(self, paths: Iterable[Path]) -> dict[str, str | None]:
        return {self._name(path): hash_file(path) if path.exists() else None for path in paths}

    def _name(self, path: Path) -> str:
        """Relative to the run folder where it lies inside, so that a run folder may be moved."""
        try:
            return path.resolve().relative_to(self.path.resolve()).as_posix()
        except ValueError:
            return str(path)

    def _write(self) -> None:
        write_json(self.path / MANIFEST, self._manifest)


def read_manifest(path: str | Path) -> dict[str, Any]:
    """The manifest of a run folder. Raises ArtifactError if it is missing, damaged or of another schema version."""
    manifest = read_json(Path(path) / MANIFEST)
    if not isinstance(manifest, dict) or manifest.get("schema_version") != SCHEMA_VERSION:
        raise ArtifactError(f"{Path(path) / MANIFEST} is not a run manifest of schema version {SCHEMA_VERSION}.")
    return manifest


def stage_key(path: str | Path, name: str) -> str:
    """Short hash of the inputs and settings that a stage of the run folder was started with last.

    Raises:
        ArtifactError: if it was not started yet.
    """
    marker = read_json(Path(path) / STAGES / f"{name}.json")
    return _hash_json([marker.get("inputs"), marker.get("settings_sha256")])[:12]


def _probe(path: Path, min_free_bytes: int) -> None:
    """Write and delete a small file, so that a folder that cannot be used is refused before hours of work."""
    advice = "Choose another folder with hydra.run.dir=PATH."
    try:
        path.mkdir(parents=True, exist_ok=True)
        with tempfile.NamedTemporaryFile(dir=path, prefix=".probe") as file:
            file.write(b"\0" * 4096)
            file.flush()
            os.fsync(file.fileno())
        free = shutil.disk_usage(path).free
    except OSError as error:
        raise ArtifactError(f"Cannot write into the run folder {path}: {error.strerror or error}. {advice}") from None
    if free < min_free_bytes:
        raise ArtifactError(
            f"The run folder {path} has {free // 2**20} MiB free, {-(-min_free_bytes // 2**20)} are needed. {advice}"
        )


def _read_json_or_nothing(path: Path) -> dict[str, Any]:
    """The object in a JSON file, or an empty one where it is missing or damaged: its work is then done again."""
    try:
        value = read_json(path)
    except ArtifactError:
        return {}
    return value if isinstance(value, dict) else {}


def _delete(path: Path) -> None:
    if path.is_dir():
        shutil.rmtree(path)
    else:
        path.unlink(missing_ok=True)


def _hash_json(value: Any) -> str:
    return hashlib.sha256(json.dumps(value, sort_keys=True, allow_nan=False).encode()).hexdigest()


def _now() -> str:
    return datetime.now(UTC).isoformat(timespec="seconds")
