"""What a packed file tells beside the tensors: only what does not follow from the base model and the plan."""

import math
from collections.abc import Mapping
from dataclasses import asdict, fields
from typing import Any

from compress.errors import ArtifactError, CompressError
from compress.packing import PackedFile
from compress.plan import CompressionPlan, LayerFormat
from compress.units import UnitTable

_MOST_INPUT = 2**24
_DEFAULTS = {field.name: field.default for field in fields(LayerFormat)}


def write_header(
    manifest: Mapping[str, Any], plan: CompressionPlan, about: Mapping[str, str], units: UnitTable | None = None
) -> tuple[dict[str, Any], dict[Any, tuple[int, ...]]]:
    """The header, and the file's sets: what is removed of each group.

    Left out is what is empty or the default; who asked for the plan, and its fingerprint (the file has a checksum of
    the tensors that the plan must lead to); and how to feed the model where `about` names the data.

    Args:
        about: what the file is to say of itself, such as the name of its model.
        units: of the base model. With them layers and groups are told by their places among its sorted names, else by
            their names.

    Raises:
        CompressError: if the plan is of other units, or the example inputs are too large for a file whose reader makes
            such inputs.
    """
    example = manifest["example_inputs"]
    formats = {name: _short_format(asdict(entry)) for name, entry in plan.layer_formats.items()}
    told = {
        "inputs": _short_inputs(example),
        "bits": formats if units is None else {},
        "layers": [] if units is None or not formats else _in_turn(formats, _layers(units)),
        "activation_bits": plan.activation_bits,
        "activation_ranges": plan.activation_ranges if plan.activation_ranges != "static" else None,
        "quantized": manifest["quantized"],
        "formatted": manifest["formatted"] or None,
        "norms": manifest["norms"],
        "tied": manifest["tied"],
        "tensors": {name: manifest["tensors"][name] for name in manifest["explicit"]},
        "about": dict(about),
    }
    if "data" not in about:
        told["class_names"] = manifest["class_names"]
        told["input"] = manifest["input"] if manifest["input"] != example else None
    if _count(example) > _MOST_INPUT:
        raise CompressError(f"Example inputs of {_count(example):,} values are too large. Save it with fewer examples.")
    header = {name: value for name, value in told.items() if value not in (None, [], {})}
    if units is None:
        return header, dict(plan.remove_channels)
    plan.removed_mask(units)
    groups = sorted(units.groups)
    return header, {groups.index(name): plan.remove_channels[name] for name in sorted(plan.remove_channels)}


def read_header(packed: PackedFile) -> dict[str, Any]:
    """What a file tells as a manifest does: `example_inputs`, `quantized`, `formatted`, `norms`, `tied`, `tensors`,
    `class_names` and `input`.

    Raises:
        ArtifactError: naming the file, if it is no packed artifact or damaged.
    """
    header = packed.about
    if not isinstance(header, dict) or "inputs" not in header:
        raise ArtifactError(f"{packed.path} is no packed artifact: its header has no inputs. Save it again.")
    try:
        told = {
            "example_inputs": _long_inputs(header["inputs"]),
            "quantized": header.get("quantized"),
            "formatted": bool(header.get("formatted")),
            "norms": list(header.get("norms", ())),
            "tied": dict(header.get("tied", {})),
            "tensors": dict(header.get("tensors", {})),
            "class_names": list(header.get("class_names", ())),
        }
        told["input"] = header.get("input", told["example_inputs"])
        if not 0 <= _count(told["example_inputs"]) <= _MOST_INPUT:
            raise ValueError("its example inputs are too large")
    except (CompressError, KeyError, TypeError, ValueError, AttributeError) as error:
        raise ArtifactError(f"{packed.path} is damaged ({type(error).__name__}: {error}). Save it again.") from error
    return told


def read_plan(packed: PackedFile, units: UnitTable) -> CompressionPlan:
    """The plan of a file whose header `read_header` found good.

    Args:
        units: of the base model, in which the file may tell layers and groups by their places.

    Raises:
        ArtifactError: naming the file, if it does not fit these units or is damaged.
    """
    header, groups = packed.about, sorted(units.groups)
    try:
        if any(isinstance(name, int) and not 0 <= name < len(groups) for name in packed.sets):
            raise ValueError(f"it removes from other groups than the {len(groups)} of this model")
        formats = dict(header.get("bits", {})) | _by_name(header.get("layers", []), _layers(units))
        removed = {name if isinstance(name, str) else groups[name]: found for name, found in packed.sets.items()}
        bits = header.get("activation_bits")
        if bits is not None and (isinstance(bits, bool) or not isinstance(bits, int) or not 1 <= bits <= 32):
            raise ValueError(f"activations of {bits!r} bits")
        return CompressionPlan(
            removed, {name: _long_format(entry) for name, entry in formats.items()}, bits,
            header.get("activation_ranges", "static"),
        )  # fmt: skip
    except (CompressError, KeyError, TypeError, ValueError, AttributeError, IndexError) as error:
        raise ArtifactError(f"{packed.path} is damaged ({type(error).__name__}: {error}). Save it again.") from error


def read_about(packed: PackedFile) -> dict[str, str]:
    """What the file says of itself: names by key, `{}` if nothing. Raises ArtifactError if it is damaged."""
    about = packed.about.get("about", {}) if isinstance(packed.about, dict) else None
    if not isinstance(about, dict) or not all(isinstance(value, str) for value in about.values()):
        raise ArtifactError(f"{packed.path} does not say what it is: its header is damaged. Save it again.")
    return about


def _layers(units: UnitTable) -> list[str]:
    """Sorted names of the layers."""
    return sorted(name for name, kind in zip(units.ids, units.kind, strict=True) if kind == "layer")


def _in_turn(formats: Mapping[str, Any], layers: list[str]) -> list[list[Any]]:
    """`[format, how many layers in a row have it]`; null for those that have none."""
    strange = sorted(formats.keys() - set(layers))
    if strange:
        raise CompressError(f"The plan has a format for {strange[0]!r}, which is no layer of this model.")
    found: list[list[Any]] = []
    for entry in (formats.get(name) for name in layers):
        if found and found[-1][0] == entry:
            found[-1][1] += 1
        else:
            found.append([entry, 1])
    return found


def _by_name(turns: list[list[Any]], layers: list[str]) -> dict[str, Any]:
    """What `_in_turn` was given."""
    if turns and (sum(times for _, times in turns) != len(layers) or min(times for _, times in turns) < 1):
        raise ValueError(f"it has formats for other layers than the {len(layers)} of this model")
    entries = [entry for entry, times in turns for _ in range(times)]
    return {name: entry for name, entry in zip(layers, entries, strict=bool(turns)) if entry is not None}


def _short_inputs(example: Mapping[str, Any]) -> Any:
    """Shapes alone, where all inputs are float32 tensors by position."""
    floats = all(leaf.get("dtype") == "float32" for leaf in example["args"])
    return [leaf["shape"] for leaf in example["args"]] if floats and not example["kwargs"] else dict(example)


def _long_inputs(inputs: Any) -> dict[str, Any]:
    if isinstance(inputs, dict):
        return inputs
    return {"args": [{"shape": list(shape), "dtype": "float32"} for shape in inputs], "kwargs": []}


def _short_format(entry: dict[str, Any]) -> Any:
    # Which weights are zero is in the weights; here it only matters that some are.
    entry = entry | {"density": 0.5 if entry["density"] < 1 else 1.0}
    changed = {name: value for name, value in entry.items() if name == "bits" or value != _DEFAULTS[name]}
    return entry["bits"] if len(changed) == 1 else changed


def _long_format(entry: Any) -> LayerFormat:
    return LayerFormat(**(entry if isinstance(entry, dict) else {"bits": entry}))


def _count(example: Mapping[str, Any]) -> int:
    """How many values the inputs have in all."""
    return sum(map(_leaf_count, [*example["args"], *(leaf for _, leaf in example["kwargs"])]))


def _leaf_count(leaf: Mapping[str, Any]) -> int:
    parts = [*leaf.get("items", ()), *leaf.get("list", ()), *leaf.get("entries", {}).values()]
    if parts:
        return sum(map(_leaf_count, parts))
    if any(not isinstance(side, int) or side < 0 for side in leaf.get("shape", ())):
        raise ValueError("an input has no shape")
    return math.prod(leaf.get("shape", ()))
