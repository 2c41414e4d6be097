"""An artifact in one entropy-coded file, see `compress.packing` and `compress.packed_header`."""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from torch import nn

from compress.artifact import read_packed, stored_values
from compress.artifact_files import PACKED, PLAN, drop_files, register_file, verify_artifact
from compress.input_shapes import rebuild_inputs
from compress.packed_header import read_about, write_header
from compress.packing import PackedFile, write_packed
from compress.plan import CompressionPlan
from compress.structure import Structure, analyze
from compress.tensor_coding import CodedTensor


def pack_artifact(
    folder: str | Path, coder: str = "auto", about: Mapping[str, str] | None = None,
    base_model: nn.Module | Structure | None = None,
) -> list[CodedTensor]:  # fmt: skip
    """What each tensor takes in `weights.packed`, the whole artifact in one file, which is written into the folder.

    Args:
        folder: from `save_artifact`.
        coder: see `compress.packing.write_packed`.
        about: what the file says of itself: names of its `model`, `data` and `task`, by which `experiments.evaluate`
            finds them.
        base_model: the dense model (any weights), or its structure. With it the file tells layers by their places
            among its sorted names, in fewer bytes than by the names themselves.

    Raises:
        ArtifactError: if the artifact is damaged or the folder cannot be written. CompressError: for an unknown coder,
            a base model of another architecture, or example inputs that are too large.
    """
    folder = Path(folder)
    # What an earlier call wrote is replaced, whatever became of it since: it need not be whole.
    manifest = verify_artifact(folder, besides=PACKED)
    values, plan = stored_values(folder, manifest), CompressionPlan.load(folder / PLAN)
    units = None if base_model is None else analyze(base_model, rebuild_inputs(manifest["example_inputs"])).units
    header, sets = write_header(manifest, plan, about or {}, units)
    fresh = folder / f"{PACKED}.new"
    told = write_packed(fresh, values, _bits(manifest["tensors"]), header, coder, sets)
    drop_files(folder, PACKED)
    fresh.replace(folder / PACKED)
    register_file(folder, PACKED)
    return told


def repack_artifact(
    path: str | Path, target: str | Path, base_model: nn.Module | Structure, coder: str = "auto"
) -> list[CodedTensor]:
    """The same model in a file of the newest version; what each tensor takes in it.

    Args:
        path: from `pack_artifact`, of any version that is read.
        target: the file to write, atomically; may be the same.
        base_model: the dense model (any weights), or its structure.
        coder: see `compress.packing.write_packed`.

    Raises:
        ArtifactError: if the file is missing or damaged, or cannot be written.
    """
    found = read_packed(Path(path), base_model)
    about = read_about(PackedFile(path))
    manifest = {**found.about, "explicit": list(found.about["tensors"])}
    header, sets = write_header(manifest, found.plan, about, found.structure.units)
    return write_packed(target, found.values, _bits(found.entries), header, coder, sets)


def _bits(entries: Mapping[str, Any]) -> dict[str, int]:
    return {name: int(entry["bits"]) for name, entry in entries.items() if "bits" in entry}
