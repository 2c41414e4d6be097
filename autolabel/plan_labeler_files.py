"""Files of plan labelers: an index in JSON, and one file for each member of the ensemble; nothing that can run code."""

import hashlib
from collections.abc import Sequence
from dataclasses import fields
from pathlib import Path
from typing import Any

from compress.errors import ArtifactError
from compress.files import read_json, write_atomic, write_json

SCHEMA_VERSION = 1
INDEX_FILE = "plan_labeler.json"


def save_members(path: str | Path, labeler: Any, names: Sequence[str], members: Sequence[tuple[str, bytes]]) -> None:
    """Write a labeler into the folder `path`, the index last: a crash leaves an older labeler whole.

    Args:
        labeler: a dataclass, whose fields are its settings but for those that begin with `_`.
        names: of the columns that it reads.
        members: suffix and content of each member's file.
    """
    path = Path(path)
    entries = []
    for suffix, content in members:
        digest = hashlib.sha256(content).hexdigest()
        file_name = f"member.{digest[:12]}.{suffix}"
        write_atomic(path / file_name, lambda file, content=content: file.write(content))
        entries.append({"file": file_name, "sha256": digest})
    settings = {field.name: getattr(labeler, field.name) for field in fields(labeler) if field.name[0] != "_"}
    write_json(path / INDEX_FILE, {"schema_version": SCHEMA_VERSION, "plan_labeler": labeler.name, "settings": settings,
                                   "columns": list(names), "members": entries})  # fmt: skip


def load_members(path: str | Path, kind: str) -> tuple[dict[str, Any], tuple[str, ...], list[bytes]]:
    """`(settings, names, members)` of what `save_members` wrote.

    Raises:
        ArtifactError: if a file is missing, damaged, or of another kind of labeler.
    """
    path = Path(path)
    index = read_json(path / INDEX_FILE)
    version, found = (index.get("schema_version"), index.get("plan_labeler")) if isinstance(index, dict) else (None, "")
    if version != SCHEMA_VERSION or found != kind:
        raise ArtifactError(
            f"{path / INDEX_FILE} is a {found!r} plan labeler of schema {version!r}, not {kind!r} of {SCHEMA_VERSION}."
        )
    try:
        entries = [(path / Path(entry["file"]).name, entry["sha256"]) for entry in index["members"]]
        settings, names = dict(index["settings"]), tuple(index["columns"])
    except (KeyError, TypeError, ValueError) as error:
        raise ArtifactError(f"{path / INDEX_FILE} is damaged ({error!r}). Fit and save the labeler again.") from None
    members = []
    for file, digest in entries:
        try:
            content = file.read_bytes()
        except OSError as error:
            raise ArtifactError(f"Cannot read {file}: {error.strerror or error}.") from error
        if hashlib.sha256(content).hexdigest() != digest:
            raise ArtifactError(f"{file} is damaged (its sha256 is not that of its index). Save the labeler again.")
        members.append(content)
    return settings, names, members
