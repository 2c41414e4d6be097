"""The folder that leaves: weights at their bits, the plan, and a manifest; nothing in it can run code.

An artifact folder holds

- `model.safetensors`: every parameter and buffer under its name. A quantised weight is a stream of uint8 instead: its
  integers plus 2^(bits-1), `bits` bits each, lowest bit first, in C order; its scales lie beside it as float32
  (`NAME_scale`). A weight in another format (`compress.weight_formats`) is stored as its symbols in the same way (those
  that count from 0 less 2^(bits-1)), its parameters beside it (`NAME_format.scale` and so on); formats of floating
  point are stored in their dtype. Of tied names only the first is stored.
- `plan.json`: the compression plan, from which the shapes are rebuilt.
- `manifest.json`: `input` (how to feed the files), `class_names`, `example_inputs` (shape and dtype of the forward's
  inputs), `tensors` (shape, dtype, bits and format of each), `explicit` (names of those that are not what the plan
  makes of a float32 model), `norms` (running means of the batch norms that were not folded), `tied`, `quantized`,
  `formatted` (whether weights are in stored formats), `weight_bytes`, and under `files` sha256 and size of every file.
- `weights.packed`, if `compress.packed_artifact` wrote it: the model in one entropy-coded file.
- exported files such as `model.onnx`, entered by `register_file`.
"""

import warnings
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import safetensors.torch
import torch
from safetensors import SafetensorError
from torch import Tensor, fx, nn

from compress.application import slice_model
from compress.artifact_files import (
    MANIFEST,
    PLAN,
    SCHEMA_VERSION,
    WEIGHTS,
    drop_derived,
    fingerprint,
    verify_artifact,
)
from compress.attributes import copy_traced, value_of
from compress.bit_packing import pack_bits, unpack_bits
from compress.errors import ArtifactError
from compress.factor_formats import factorize_plan, part_formats
from compress.fake_quantization import (
    QuantizedWeight,
    insert_fake_quantizers,
    quantized_weights,
    quantizes_activations,
    tied_layers,
)
from compress.files import write_atomic, write_json
from compress.folding import fold_batch_norm
from compress.formatted_weight import FormattedEntry, formatted_weights, insert_stored_formats
from compress.graph import require_traced
from compress.input_shapes import describe_inputs, rebuild_inputs
from compress.packed_header import read_header, read_plan
from compress.packing import PackedFile
from compress.plan import CompressionPlan
from compress.quantizer import dequantize_weight, round_weight
from compress.quantizers.minmax import MinMaxQuantizer
from compress.stored_tensors import given_tensors, integer_entry, named_values, norm_names
from compress.stored_weight import parameter_names, restore_weight, store_weight
from compress.structure import Structure, analyze
from compress.tensor_coding import CodedTensor, TensorForm

# What other content than was written may come to, where it is read. CompressError is a ValueError.
_DAMAGE = (SafetensorError, KeyError, TypeError, AttributeError, ValueError, OverflowError, IndexError, RuntimeError,
           MemoryError)  # fmt: skip


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
        folder: made if it does not exist; the three files in it are replaced, and files that were made of another
            artifact there (exports, `weights.packed`) go.
        module: from `apply_plan`, `fold_batch_norm` or `prepare_quantized`. Quantised weights are stored as integers.
        plan: the plan that `apply_plan` was called with.
        example_inputs: a tensor, or a tuple or dict of the forward's inputs; only shapes and dtypes are stored.
        input_spec: how to feed the model: `shape`, `mean`, `std`, `layout` on data in [0, 1], or what tokens it wants.
        class_names: of the outputs, where there are any.

    Raises:
        ArtifactError: if the folder cannot be written.
    """
    require_traced(module, "save_artifact")
    folder, entries = Path(folder), quantized_weights(module)
    formatted = formatted_weights(module)
    rounds = any(layer_format.scheme != "float32" for layer_format in plan.layer_formats.values())
    if rounds and not entries and not formatted:
        warnings.warn(
            "The plan has layer formats but the module is not quantised: its weights are saved as floats. Call "
            "prepare_quantized first.",
            stacklevel=2,
        )
    stored, tensors, tied = _collect(module, entries, formatted)
    given = given_tensors(module, tied)
    drop_derived(folder, (WEIGHTS, PLAN))
    write_atomic(folder / WEIGHTS, lambda file: file.write(safetensors.torch.save(stored)))
    plan.save(folder / PLAN)
    example = describe_inputs(example_inputs)
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
        "explicit": sorted(name for name, entry in tensors.items() if given.get(name) != entry),
        "norms": norm_names(module),
        "tied": tied,
        "quantized": quantized,
        "formatted": bool(formatted),
        "weight_bytes": sum(value.nbytes for value in stored.values()),
        "files": {name: fingerprint(folder / name) for name in (WEIGHTS, PLAN)},
    }
    write_json(folder / MANIFEST, manifest)
    return manifest


def load_artifact(folder: str | Path, base_model: nn.Module | Structure) -> fx.GraphModule:
    """The saved model in evaluation mode, with byte for byte the outputs it had.

    Of a packed file its `meta["coded"]` tells what each tensor takes, as `compress.tensor_coding.CodedTensor`.

    Every file of the artifact is checked first. The base model gives structure only: its weights do not matter.

    Args:
        folder: from `save_artifact`; or the file that `pack_artifact` wrote, wherever it lies.
        base_model: the dense model (any weights), or its structure; it stays as it is.

    Raises:
        ArtifactError: if a file is missing, truncated, altered, or does not fit the plan; a single file, the model.
        PlanError: if the base model is of another architecture than the folder's.
    """
    folder = Path(folder)
    if folder.is_file():
        found = read_packed(folder, base_model)
        about, module, entries, values = found.about, found.module, found.entries, found.values
        module.meta["coded"] = found.coded
    else:
        about, plan = verify_artifact(folder), CompressionPlan.load(folder / PLAN)
        module, _ = _rebuild_module(_analyzed(base_model, about, folder), plan, about, folder)
        entries, values = about["tensors"], stored_values(folder, about)
    with _damage_named(folder):
        decoded_with = parameter_names(entries)
        values = {name: _dequantized(name, entries[name], values) for name in values if name not in decoded_with}
        _fill(module, values, about["tied"], folder)
    return module.eval()


@dataclass(frozen=True, eq=False)
class PackedArtifact:
    """What a packed file holds.

    Attributes:
        about: as a manifest, see `compress.packed_header.read_header`.
        plan: of the base model.
        structure: of the base model.
        module: what the plan makes of the base model, its values still to be filled in.
        entries: name -> what a manifest says of the tensor.
        values: name -> the tensor as stored; of quantised weights their integers.
        coded: what each takes in the file.
    """

    about: Mapping[str, Any]
    plan: CompressionPlan
    structure: Structure
    module: fx.GraphModule
    entries: Mapping[str, Any]
    values: Mapping[str, Tensor]
    coded: Sequence[CodedTensor]


def read_packed(path: Path, base_model: nn.Module | Structure) -> PackedArtifact:
    """All that a file from `pack_artifact` holds; parameters and errors as of `load_artifact`."""
    # It has no fingerprint of the model: one that lies looks like one of another architecture.
    remedy = "Load it with the model class that it was saved with, or save it again."
    with _damage_named(path, "is damaged, or does not fit the base model", remedy):
        packed = PackedFile(path)
        about = read_header(packed)
        structure = _analyzed(base_model, about, path)
        plan = read_plan(packed, structure.units)
        module, prepared = _rebuild_module(structure, plan, about, path)
        entries = given_tensors(prepared, about["tied"]) | about["tensors"]
        known = sum(value.numel() for value in named_values(prepared).values())
        values = packed.tensors(_forms(entries, known, path))
        return PackedArtifact(about, plan, structure, module, entries, values, packed.coded)


def _analyzed(base_model: nn.Module | Structure, about: Mapping[str, Any], folder: Path) -> Structure:
    """The base model, traced. The plan was checked when the artifact was saved, on real inputs; these are ramps."""
    with _damage_named(folder):
        example = rebuild_inputs(about["example_inputs"])
    return analyze(base_model, example)


def _rebuild_module(
    structure: Structure, plan: CompressionPlan, about: Mapping[str, Any], folder: Path
) -> tuple[fx.GraphModule, fx.GraphModule]:
    """`(module, prepared)`: what the plan makes of the base model, whose values are still to be filled in.

    The second has stored formats too: what was saved. The first has plain weights in their place.
    """
    with _damage_named(folder):
        example, quantized = rebuild_inputs(about["example_inputs"]), about["quantized"]
        ranges = plan.activation_ranges if quantized and quantized["activations"] else None
        options = (ranges, quantized["reduce_range"]) if quantized else None
    small = slice_model(structure, plan.removed_mask(structure.units))
    small.meta["plan"] = plan
    module, formats = factorize_plan(small, plan), part_formats(plan)
    if options or not set(norm_names(module)) <= set(about["norms"]):
        module = fold_batch_norm(module, example, keep=frozenset(about["norms"]))
    layers = tied_layers(module)
    module = insert_fake_quantizers(module, formats, *options) if options else module
    if not about["formatted"]:
        return module, module
    prepared = copy_traced(module)
    with torch.no_grad():
        for value in prepared.parameters():
            value.fill_(1.0)
    insert_stored_formats(prepared, layers, formats, MinMaxQuantizer(), on_integers=bool(options))
    return module, prepared


@contextmanager
def _damage_named(path: Path, verdict: str = "is damaged", remedy: str = "Save it again.") -> Iterator[None]:
    try:
        yield
    except _DAMAGE as error:
        if isinstance(error, ArtifactError):
            raise
        raise ArtifactError(f"{path} {verdict} ({type(error).__name__}: {error}). {remedy}") from error


def _forms(entries: Mapping[str, Any], known: int, folder: Path) -> dict[str, TensorForm]:
    """The forms of all tensors, of which the file itself told some; the module that they are for has `known` values."""
    with _damage_named(folder):
        forms = {}
        for name, entry in entries.items():
            bits, shape = entry.get("bits"), tuple(map(int, entry["shape"]))
            forms[name] = TensorForm(shape, str(entry["dtype"]) if bits is None else "int8", bits)
        if any(min(form.shape, default=0) < 0 or form.size > 2 * max(known, 2**16) for form in forms.values()):
            raise ArtifactError(f"{folder} is damaged: a tensor has an impossible size. Save it again.")
        return forms


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
    for name, value in named_values(module).items():
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
        described[name] |= integer_entry(entry)
        stored[name] = torch.from_numpy(pack_bits(integers.cpu().numpy(), described[name]["bits"]))
    return stored, described, tied


def stored_values(folder: Path, manifest: Mapping[str, Any]) -> dict[str, Tensor]:
    """The tensors as stored; of quantised weights their integers."""
    with _damage_named(folder):
        stored = safetensors.torch.load((folder / WEIGHTS).read_bytes())
        return {name: _restore(name, entry, stored) for name, entry in manifest["tensors"].items()}


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
    own = named_values(module)
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
