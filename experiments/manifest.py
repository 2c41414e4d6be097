"""What a run must record to be repeated: code, versions, machine, hashes of files."""

import hashlib
import os
import platform
import shlex
import subprocess
import sys
from collections.abc import Iterable
from importlib import metadata
from pathlib import Path
from typing import Any

from compress.errors import ArtifactError

DISTRIBUTION = "autolabel-compress"
LIBRARIES = (
    "torch", "numpy", "scipy", "scikit-learn", "lightgbm", "safetensors", "onnx", "onnxruntime", "onnxscript",
    "hydra-core", "omegaconf", "wandb", "matplotlib", "constriction", "zstandard",
)  # fmt: skip
# The console script of the command line; pyproject.toml.
SCRIPT = "autolabel"
CHUNK_BYTES = 1 << 20


def hash_file(path: str | Path) -> str:
    """Hex sha256 of a file; of a folder, of its files' relative names and hashes in sorted order.

    Raises:
        ArtifactError: if it cannot be read.
    """
    path = Path(path)
    digest = hashlib.sha256()
    try:
        if path.is_dir():
            for file in sorted(p for p in path.rglob("*") if p.is_file()):
                digest.update(f"{file.relative_to(path).as_posix()}\0{hash_file(file)}\n".encode())
            return digest.hexdigest()
        with path.open("rb") as file:
            while chunk := file.read(CHUNK_BYTES):
                digest.update(chunk)
    except OSError as error:
        raise ArtifactError(f"Cannot read {path}: {error.strerror or error}.") from error
    return digest.hexdigest()


def describe_code() -> dict[str, Any]:
    """`version` of the distribution, and `commit` and `modified` where the code lies in a git checkout."""
    root = Path(__file__).resolve().parents[1]
    described: dict[str, Any] = {"version": library_versions([DISTRIBUTION]).get(DISTRIBUTION)}
    if not (root / ".git").exists():
        return described
    commit = _git(root, "rev-parse", "HEAD")
    if commit is not None:
        changes = _git(root, "status", "--porcelain", "--untracked-files=no")
        described |= {"commit": commit, "modified": bool(changes)}
    return described


def typed_command() -> str:
    """The command line of this run as it was typed; what is quoted for Hydra is not (see `experiments.run`)."""
    words = [word.replace("'null'", "null") if word.startswith("tracker=") else word for word in sys.argv[1:]]
    script = Path(sys.argv[0]).stem
    return shlex.join([*([script] if script == SCRIPT else ["python", "-m", "experiments.run"]), *words])


def library_versions(names: Iterable[str] = LIBRARIES) -> dict[str, str]:
    """Version of each installed distribution among `names`."""
    versions = {}
    for name in names:
        try:
            versions[name] = metadata.version(name)
        except metadata.PackageNotFoundError:
            continue
    return versions


def describe_machine() -> dict[str, Any]:
    """Python, operating system, processor and number of cores."""
    return {
        "python": platform.python_version(),
        "system": f"{platform.system()} {platform.release()}",
        "processor": _processor_name(),
        "cores": os.cpu_count(),
    }


def _processor_name() -> str:
    try:
        lines = Path("/proc/cpuinfo").read_text().splitlines()
    except OSError:
        return platform.processor() or platform.machine()
    names = [line.partition(":")[2].strip() for line in lines if line.startswith("model name")]
    return names[0] if names else platform.machine()


def _git(root: Path, *arguments: str) -> str | None:
    command = ["git", "-C", str(root), *arguments]
    try:
        return subprocess.run(command, capture_output=True, text=True, check=True, timeout=30).stdout.strip()
    except (OSError, subprocess.SubprocessError):
        return None
