"""The folder that leaves: weights at their bits, the plan, and a manifest; nothing in it can run code.

An artifact folder holds

- `model.safetensors`: every parameter and buffer under its name. A quantised weight is a stream of uint8 instead: its
  integers plus 2^(bits-1), `bits` bits each, lowest bit first, in C order; its scales lie beside it as float32
  (`NAME_scale`). A weight in another format (`compress.weight_formats`) is stored as its symbols in the same way (those
  that count from 0 less 2^(bits-1)), its parameters beside it (`NAME_format.scale` and so on); formats of floating
  point are stored in their dtype. Of tied names only the first is stored.
- `plan.json`: the compression plan, from which the shapes are rebuilt.
- `manifest.json`: `input` (how to feed the files), `class_names`, `example_inputs` (shape and dtype of the forward's
  inputs), `tensors` (shape, dtype, bits and format of each), `tied`, `quantized`, `weight_bytes`, and under `files`
  sha256 and size of every file.
- `weights.packed`, if `pack_artifact` wrote it: all of the above in one entropy-coded file, see `compress.packing`.
- exported files such as `model.onnx`, entered by `register_file`.
"""

import hashlib
import warnings
from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import safetensors.torch
import torch
from safetensors import SafetensorError
from torch import Tensor, fx, nn
from torch.utils import _pytree as pytree

from compress.application import apply_plan
from compress.attributes import value_of
from compress.bit_packing import pack_bits, unpack_bits
from compress.errors import ArtifactError
from compress.fake_quantization import (
    QuantizedWeight,
    insert_fake_quantizers,
    quantized_weights,
    quantizes_activations,
)
from compress.files import read_json, write_atomic, write_json
from compress.folding import fold_batch_norm
from compress.formatted_weight import FormattedEntry, formatted_weights
from compress.graph import as_inputs
from compress.packing import CodedTensor, read_packed, write_packed
from compress.plan import CompressionPlan
from compress.quantizer import dequantize_weight, round_weight
from compress.stored_weight import parameter_names, restore_weight, store_weight

SCHEMA_VERSION = 1
WEIGHTS, PLAN, MANIFEST = "model.safetensors", "plan.json", "manifest.json"
PACKED = "weights.packed"
# What a packed file needs of the manifest.
_TOLD = ("input", "class_names", "example_inputs", "tied", "quantized")


def save_artifact(
    folder: str | Path,
    module: nn.Module,
    plan: CompressionPlan,
    example_inputs: Any,
    input_spec: Mapping[str, Any] | None = None,
    class_names: Sequence[str] = (),
) -> dict[str, Any]:
    """The manifest of the artifact written to `folder`, file by file, each atomically, the manifest last.

    Args:
        folder: made if it does not exist; the three files in it are replaced.
        module: from `apply_plan`, `fold_batch_norm` or `prepare_quantized`. Quantised weights are stored as integers.
        plan: the plan that `apply_plan` was called with.
        example_inputs: a tensor, or a tuple or dict of the forward's inputs; only shapes and dtypes are stored.
        input_spec: how to feed the model: `shape`, `mean`, `std`, `layout` on data in [0, 1], or what tokens it wants.
        class_names: of the outputs, where there are any.

    Raises:
        ArtifactError: if the folder cannot be written.
    """
    folder = Path(folder)
    args, kwargs = as_inputs(example_inputs)
    entries = quantized_weights(module) if isinstance(module, fx.GraphModule) else []
    formatted = formatted_weights(module)
    if plan.layer_formats and not entries and not formatted:
        warnings.warn(
            "The plan has layer formats but the module is not quantised: its weights are saved as floats. Call "
            "prepare_quantized first.",
            stacklevel=2,
        )
    stored, tensors, tied = _collect(module, entries, formatted)
    write_atomic(folder / WEIGHTS, lambda file: file.write(safetensors.torch.save(stored)))
    plan.save(folder / PLAN)
    example = {
        "args": [_describe(leaf) for leaf in args],
        "kwargs": [[name, _describe(value)] for name, value in kwargs.items()],
    }
    quantized = None
    if entries:
        reduced = any(entry.bits == 8 and entry.largest < 127 for entry in entries)
        quantized = {"activations": quantizes_activations(module), "reduce_range": reduced}
    manifest = {
        "schema_version": SCHEMA_VERSION,
        "input": dict(input_spec) if input_spec is not None else example,
        "class_names": list(class_names),
        "example_inputs": example,
        "tensors": tensors,
        "tied": tied,
        "quantized": quantized,
        "weight_bytes": sum(value.nbytes for value in stored.values()),
        "files": {name: _fingerprint(folder / name) for name in (WEIGHTS, PLAN)},
    }
    write_json(folder / MANIFEST, manifest)
    return manifest


def pack_artifact(folder: str | Path, coder: str = "range") -> list[CodedTensor]:
    """What each tensor takes in `weights.packed`, the whole artifact in one file, which is written into the folder.

    Args:
        folder: from `save_artifact`.
        coder: see `compress.entropy_coding.encode_integers`.

    Raises:
        ArtifactError: if the artifact is damaged or the folder cannot be written. CompressError: for an unknown coder.
    """
    folder = Path(folder)
    manifest = verify_artifact(folder)
    values, plan = _stored_values(folder, manifest), CompressionPlan.load(folder / PLAN)
    described = {name: {key: entry[key] for key in ("dtype", "axis", "scale", "format") if key in entry}
                 for name, entry in manifest["tensors"].items() if "bits" in entry}  # fmt: skip
    # Whoever decodes wants to know what was done, not who asked for it.
    plain = replace(plan, provenance={}, predicted_cost={}, predicted_damage=None).to_json()
    about = {**{name: manifest[name] for name in _TOLD}, "integers": described, "plan": plain}
    bits = {name: int(manifest["tensors"][name]["bits"]) for name in described}
    told = write_packed(folder / PACKED, values, bits, about, coder)
    register_file(folder, PACKED)
    return told


def register_file(folder: str | Path, name: str) -> dict[str, Any]:
    """The manifest after the file `name` of the folder (such as `model.onnx`) was entered with its sha256 and size.

    Raises:
        ArtifactError: if the file or the manifest is missing.
    """
    folder = Path(folder)
    manifest = read_manifest(folder)
    manifest["files"][name] = _fingerprint(folder / _plain_name(name))
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
    lacking = {"files", "tensors", "tied", "quantized", "example_inputs"} - manifest.keys()
    if lacking or not isinstance(manifest["files"], dict) or not {WEIGHTS, PLAN} <= manifest["files"].keys():
        raise ArtifactError(f"{path} lacks {sorted(lacking) or 'the files of the model'}. Save the artifact again.")
    return manifest


def verify_artifact(folder: str | Path) -> dict[str, Any]:
    """The manifest of an artifact whose files are all there and unaltered.

    Raises:
        ArtifactError: naming the first file that is missing, truncated or altered.
    """
    folder = Path(folder)
    manifest = read_manifest(folder)
    for name, expected in manifest["files"].items():
        path = folder / _plain_name(name)
        actual = _fingerprint(path)
        if actual["bytes"] != expected.get("bytes"):
            raise ArtifactError(
                f"{path} has {actual['bytes']} bytes, the manifest says {expected.get('bytes')}: it is truncated or "
                f"was replaced. Copy the artifact again."
            )
        if actual["sha256"] != expected.get("sha256"):
            raise ArtifactError(f"{path} was altered (its sha256 is not the manifest's). Copy the artifact again.")
    return manifest


def load_artifact(folder: str | Path, base_model: nn.Module) -> fx.GraphModule:
    """The saved model in evaluation mode, with byte for byte the outputs it had.

    Every file of the artifact is checked first. The base model gives structure only: its weights do not matter.

    Args:
        folder: from `save_artifact`; or the file that `pack_artifact` wrote, wherever it lies.
        base_model: the dense model (any weights); it stays as it is.

    Raises:
        ArtifactError: if a file is missing, truncated, altered, or does not fit the plan.
        PlanError: if the base model is of another architecture.
    """
    folder = Path(folder)
    if folder.is_file():
        values, about = read_packed(folder)
        lacking = {*_TOLD, "integers", "plan"} - (about.keys() if isinstance(about, dict) else set())
        if lacking:
            raise ArtifactError(f"{folder} is no packed artifact: it lacks {sorted(lacking)}. Save it again.")
        plan, entries = CompressionPlan.from_json(about["plan"], folder), about["integers"]
    else:
        about = verify_artifact(folder)
        values, plan, entries = _stored_values(folder, about), CompressionPlan.load(folder / PLAN), about["tensors"]
    try:
        example = _rebuild_inputs(about["example_inputs"])
        decoded_with = parameter_names(entries)
        values = {
            name: _dequantized(name, entries.get(name, {}), values) for name in values if name not in decoded_with
        }
    except (KeyError, TypeError, AttributeError, ValueError) as error:
        if isinstance(error, ArtifactError):
            raise
        raise ArtifactError(f"{folder} is damaged ({type(error).__name__}: {error}). Save it again.") from error
    module = apply_plan(base_model, plan, example)
    quantized = about["quantized"]
    own = _named_values(module)
    if quantized or any(name not in values for name in own):
        module = fold_batch_norm(module, example, keep=frozenset(values))
    if quantized:
        module = insert_fake_quantizers(
            module, plan.layer_formats, quantized["activations"], reduce_range=quantized["reduce_range"]
        )
    _fill(module, values, about["tied"], folder)
    return module.eval()


def _collect(
    module: nn.Module, entries: Sequence[QuantizedWeight], formatted: Sequence[FormattedEntry]
) -> tuple[dict[str, Tensor], dict[str, dict[str, Any]], dict[str, str]]:
    """`(stored, tensors, tied)`: what goes into the file, its description, and the names that share a tensor."""
    packed = {entry.parameter: entry for entry in entries}
    masks = {f"{entry.holder}.kept" for entry in formatted}
    on_integers = {id(value_of(module, name)) for name in packed}
    stores = {id(value_of(module, entry.parameter)): entry for entry in formatted}
    stored: dict[str, Tensor] = {}
    described: dict[str, dict[str, Any]] = {}
    tied: dict[str, str] = {}
    first: dict[int, str] = {}
    for name, value in _named_values(module).items():
        if name in masks:  # the zeros of the stored weight say as much
            continue
        if id(value) in first:
            tied[name] = first[id(value)]
            continue
        first[id(value)] = name
        described[name] = {"shape": list(value.shape), "dtype": str(value.dtype).removeprefix("torch.")}
        if id(value) in stores and id(value) not in on_integers:
            symbols, description = store_weight(stores[id(value)], value)
            bits = description.get("bits")
            stored[name] = symbols if bits is None else torch.from_numpy(pack_bits(symbols.numpy(), bits))
            described[name] |= description
            continue
        alias = next((n for n in packed if value_of(module, n) is value), None)
        if alias is None:
            stored[name] = value.detach().cpu().contiguous().clone()
            continue
        entry = packed[alias]
        integers = round_weight(value, value_of(module, entry.scale), entry.largest, entry.axis)
        bits = entry.largest.bit_length() + 1  # 7 for 8 bits of reduced range
        stored[name] = torch.from_numpy(pack_bits(integers.cpu().numpy(), bits))
        described[name] |= {"bits": bits, "axis": entry.axis, "scale": entry.scale}
    return stored, described, tied


def _named_values(module: nn.Module) -> dict[str, Tensor]:
    """Parameters and persistent buffers by name, tied names included."""
    persistent = module.state_dict().keys()
    values = {
        **dict(module.named_parameters(remove_duplicate=False)),
        **dict(module.named_buffers(remove_duplicate=False)),
    }
    return {name: value for name, value in values.items() if name in persistent}


def _describe(leaf: Any) -> Any:
    if isinstance(leaf, Tensor):
        return {"shape": list(leaf.shape), "dtype": str(leaf.dtype).removeprefix("torch.")}
    if leaf is None or isinstance(leaf, (bool, int, float, str)):
        return {"value": leaf}
    return {"items": [_describe(item) for item in pytree.tree_leaves(leaf)]}


def _rebuild_inputs(example: Mapping[str, Any]) -> Any:
    args = tuple(_rebuild(leaf) for leaf in example["args"])
    kwargs = {name: _rebuild(leaf) for name, leaf in example["kwargs"]}
    return kwargs or args


def _rebuild(leaf: Mapping[str, Any]) -> Any:
    """An input of the stored shape: a ramp of floats, ones of integers (a token that exists, a mask that shows all)."""
    if "value" in leaf:
        return leaf["value"]
    if "items" in leaf:
        return tuple(_rebuild(item) for item in leaf["items"])
    dtype = getattr(torch, leaf["dtype"])
    if dtype.is_floating_point:
        return torch.linspace(-1.0, 1.0, int(np.prod(leaf["shape"], dtype=np.int64)), dtype=dtype).reshape(
            leaf["shape"]
        )
    return torch.ones(leaf["shape"], dtype=dtype)


def _stored_values(folder: Path, manifest: Mapping[str, Any]) -> dict[str, Tensor]:
    """The tensors as stored; of quantised weights their integers."""
    try:
        stored = safetensors.torch.load((folder / WEIGHTS).read_bytes())
        return {name: _restore(name, entry, stored) for name, entry in manifest["tensors"].items()}
    except (SafetensorError, KeyError, TypeError, AttributeError, ValueError) as error:
        if isinstance(error, ArtifactError):
            raise
        raise ArtifactError(f"{folder} is damaged ({type(error).__name__}: {error}). Save it again.") from error


def _restore(name: str, entry: Mapping[str, Any], stored: Mapping[str, Tensor]) -> Tensor:
    """The tensor as stored; of a quantised weight its integers."""
    value = stored[name]
    if "bits" not in entry:
        if list(value.shape) != entry["shape"]:
            raise ArtifactError(f"Tensor {name!r} has shape {list(value.shape)}, the manifest says {entry['shape']}.")
        return value
    return torch.from_numpy(unpack_bits(value.numpy(), int(entry["bits"]), tuple(entry["shape"])))


def _dequantized(name: str, entry: Mapping[str, Any], values: Mapping[str, Tensor]) -> Tensor:
    value = values[name]
    if "format" in entry:
        return restore_weight(name, entry, values).to(getattr(torch, entry["dtype"]))
    if "scale" not in entry:
        return value
    if entry["scale"] not in values:
        raise ArtifactError(f"The scales {entry['scale']!r} of {name!r} are missing. Save the artifact again.")
    return dequantize_weight(value, values[entry["scale"]], entry["axis"]).to(getattr(torch, entry["dtype"]))


def _fill(module: nn.Module, values: Mapping[str, Tensor], tied: Mapping[str, str], path: Path) -> None:
    own = _named_values(module)
    given = values.keys() | tied.keys()
    missing, extra = sorted(own.keys() - given), sorted(given - own.keys())
    if missing or extra:
        raise ArtifactError(
            f"{path} does not fit the model that the plan gives: missing {missing[:3]}, unknown {extra[:3]}. Load it "
            f"with the model class and the version that it was saved with."
        )
    with torch.no_grad():
        for name, target in own.items():
            source = values[tied.get(name, name)]
            if target.shape != source.shape:
                raise ArtifactError(
                    f"{path}: tensor {name!r} has shape {tuple(source.shape)}, the plan gives {tuple(target.shape)}."
                )
            target.copy_(source)


def _fingerprint(path: Path) -> dict[str, Any]:
    try:
        data = path.read_bytes()
    except OSError as error:
        raise ArtifactError(f"Cannot read {path}: {error.strerror or error}. Copy the artifact again.") from error
    return {"sha256": hashlib.sha256(data).hexdigest(), "bytes": len(data)}


def _plain_name(name: str) -> str:
    if not name or Path(name).name != name or name in (".", ".."):
        raise ArtifactError(f"The manifest names {name!r}, which is no plain file name of the folder.")
    return name
