"""The files of an artifact folder, and the manifest that lists them with size and sha256."""

import hashlib
from collections.abc import Collection
from pathlib import Path
from typing import Any

from compress.errors import ArtifactError
from compress.files import read_json, write_json

SCHEMA_VERSION = 1
WEIGHTS, PLAN, MANIFEST = "model.safetensors", "plan.json", "manifest.json"
PACKED = "weights.packed"
_KEYS = {"files", "tensors", "tied", "quantized", "example_inputs", "explicit", "norms", "formatted"}


def register_file(folder: str | Path, name: str) -> dict[str, Any]:
    """The manifest after the file `name` of the folder (such as `model.onnx`) was entered with its sha256 and size.

    Raises:
        ArtifactError: if the file or the manifest is missing.
    """
    folder = Path(folder)
    manifest = read_manifest(folder)
    manifest["files"][name] = fingerprint(folder / _plain_name(name))
    write_json(folder / MANIFEST, manifest)
    return manifest


def drop_files(folder: str | Path, suffix: str) -> None:
    """Delete the files that end in `suffix`, and take them out of the manifest first: a crash leaves it whole.

    Raises:
        ArtifactError: if the manifest is missing or damaged.
    """
    folder = Path(folder)
    manifest = read_manifest(folder)
    kept = {name: entry for name, entry in manifest["files"].items() if not name.endswith(suffix)}
    write_json(folder / MANIFEST, {**manifest, "files": kept})
    for path in folder.glob(f"*{suffix}"):
        path.unlink()


def read_manifest(folder: str | Path) -> dict[str, Any]:
    """The manifest of an artifact folder. Raises ArtifactError if it is missing, damaged or of another version."""
    path = Path(folder) / MANIFEST
    manifest = read_json(path)
    if not isinstance(manifest, dict) or manifest.get("schema_version") != SCHEMA_VERSION:
        raise ArtifactError(f"{path} is not an artifact manifest of schema version {SCHEMA_VERSION}.")
    lacking = _KEYS - manifest.keys()
    if lacking or not isinstance(manifest["files"], dict) or not {WEIGHTS, PLAN} <= manifest["files"].keys():
        raise ArtifactError(f"{path} lacks {sorted(lacking) or 'the files of the model'}. Save the artifact again.")
    return manifest


def drop_derived(folder: str | Path, kept: Collection[str]) -> None:
    """Delete what was made of the artifact that is replaced: its files but these. No artifact, nothing to do."""
    folder = Path(folder)
    try:
        known = read_manifest(folder)["files"]
    except ArtifactError:
        return
    for name in known:
        if name not in kept:
            (folder / _plain_name(name)).unlink(missing_ok=True)


def verify_artifact(folder: str | Path, besides: str | None = None) -> dict[str, Any]:
    """The manifest of an artifact whose files are all there and unaltered; one of them may be left out.

    Raises:
        ArtifactError: naming the first file that is missing, truncated or altered.
    """
    folder = Path(folder)
    manifest = read_manifest(folder)
    for name, expected in manifest["files"].items():
        if name == besides:
            continue
        path = folder / _plain_name(name)
        actual = fingerprint(path)
        if actual["bytes"] != expected.get("bytes"):
            raise ArtifactError(
                f"{path} has {actual['bytes']} bytes, the manifest says {expected.get('bytes')}: it is truncated or "
                f"was replaced. Copy the artifact again."
            )
        if actual["sha256"] != expected.get("sha256"):
            raise ArtifactError(f"{path} was altered (its sha256 is not the manifest's). Copy the artifact again.")
    return manifest


def fingerprint(path: Path) -> dict[str, Any]:
    """Its `sha256` and `bytes`. Raises ArtifactError if it cannot be read."""
    try:
        data = path.read_bytes()
    except OSError as error:
        raise ArtifactError(f"Cannot read {path}: {error.strerror or error}. Copy the artifact again.") from error
    return {"sha256": hashlib.sha256(data).hexdigest(), "bytes": len(data)}


def _plain_name(name: str) -> str:
    if not name or Path(name).name != name or name in (".", ".."):
        raise ArtifactError(f"The manifest names {name!r}, which is no plain file name of the folder.")
    return name
