"""What a packed file tells beside the tensors: only what does not follow from the base model and the plan."""

import math
from collections.abc import Mapping
from dataclasses import asdict, fields
from typing import Any

from compress.errors import ArtifactError, CompressError
from compress.packing import PackedFile
from compress.plan import CompressionPlan, LayerFormat

_MOST_INPUT = 2**24
_DEFAULTS = {field.name: field.default for field in fields(LayerFormat)}


def write_header(manifest: Mapping[str, Any], plan: CompressionPlan, about: Mapping[str, str]) -> dict[str, Any]:
    """The header, without removed channels: those are the file's sets.

    Left out is what is empty or the default; who asked for the plan, and its fingerprint (the file has a checksum of
    the tensors that the plan must lead to); and how to feed the model where `about` names the data.

    Args:
        about: what the file is to say of itself, such as the name of its model.

    Raises:
        CompressError: if the example inputs are too large for a file whose reader makes such inputs.
    """
    example = manifest["example_inputs"]
    told = {
        "inputs": _short_inputs(example),
        "bits": {name: _short_format(asdict(entry)) for name, entry in plan.layer_formats.items()},
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
    return {name: value for name, value in told.items() if value not in (None, [], {})}


def read_header(packed: PackedFile) -> tuple[dict[str, Any], CompressionPlan]:
    """`(told, plan)`: `example_inputs`, `quantized`, `norms`, `tied` and `tensors` as in a manifest, and the plan.

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
        }
        formats = {name: _long_format(entry) for name, entry in header.get("bits", {}).items()}
        ranges = header.get("activation_ranges", "static")
        plan = CompressionPlan(packed.sets, formats, header.get("activation_bits"), ranges)
        if not 0 <= _count(told["example_inputs"]) <= _MOST_INPUT:
            raise ValueError("its example inputs are too large")
    except (CompressError, KeyError, TypeError, ValueError, AttributeError) as error:
        raise ArtifactError(f"{packed.path} is damaged ({type(error).__name__}: {error}). Save it again.") from error
    return told, plan


def read_about(packed: PackedFile) -> dict[str, str]:
    """What the file says of itself: names by key, `{}` if nothing. Raises ArtifactError if it is damaged."""
    about = packed.about.get("about", {}) if isinstance(packed.about, dict) else None
    if not isinstance(about, dict) or not all(isinstance(value, str) for value in about.values()):
        raise ArtifactError(f"{packed.path} does not say what it is: its header is damaged. Save it again.")
    return about


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
