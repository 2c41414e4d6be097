"""A formatted weight as what lies in a file, and back."""

from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor

from compress.errors import ArtifactError
from compress.formatted_weight import FormattedEntry, make_format
from compress.plan import LayerFormat
from compress.weight_rows import RowLayout

_FLOATS = ("float16", "bfloat16", "float32")


def store_weight(entry: FormattedEntry, weight: Tensor) -> tuple[Tensor, dict[str, Any]]:
    """`(values, description)`: int8 integers of `description["bits"]` bits each, from -2^(bits-1) on.

    Formats of floating point give their numbers as they are, with a description that holds only their dtype.
    """
    described = describe_weight(entry)
    symbols = entry.module.symbols(weight).cpu().contiguous()
    if "format" not in described:
        return symbols, described
    return (symbols - _offset(entry.module.format.signed, described["bits"])).to(torch.int8), described


def describe_weight(entry: FormattedEntry) -> dict[str, Any]:
    """What the manifest says of a formatted weight beside its shape, whatever its values."""
    module = entry.module
    layer_format = module.layer_format
    if layer_format.scheme in _FLOATS:
        return {"dtype": layer_format.scheme}
    described = {
        "scheme": layer_format.scheme, "bits": layer_format.bits, "masked": module.kept is not None,
        "granularity": layer_format.granularity, "group_size": layer_format.group_size, "axis": module.layout.axis,
        "parameters": {name: f"{entry.holder}.{name}" for name in module.fitted()},
    }  # fmt: skip
    return {"bits": module.format.stored_bits, "format": described}


def restore_weight(name: str, described: Mapping[str, Any], values: Mapping[str, Tensor]) -> Tensor:
    """float32 weight, decoded from `values[name]` (int8) and the parameters among the values.

    Raises:
        ArtifactError: if a parameter is missing or does not fit, or the format is unknown.
    """
    spec, stored = described["format"], values[name]
    missing = [parameter for parameter in spec["parameters"].values() if parameter not in values]
    if missing:
        raise ArtifactError(f"The parameter {missing[0]!r} of {name!r} is missing. Save the artifact again.")
    try:
        LayerFormat(spec["bits"], spec["scheme"], spec["granularity"], spec["group_size"])
        layout = RowLayout(tuple(stored.shape), spec["granularity"], int(spec["axis"]), spec["group_size"])
        decoder = make_format(spec["scheme"], spec["bits"], bool(spec["masked"]))
        symbols = layout.rows(stored.to(torch.int16) + _offset(decoder.signed, decoder.stored_bits))
        parameters = {key: values[parameter] for key, parameter in spec["parameters"].items()}
        if any(len(value) != len(symbols) for value in parameters.values()):
            raise ValueError(f"its parameters are not of {len(symbols)} rows")
        return layout.tensor(decoder.decode(symbols, parameters)).contiguous()
    except (RuntimeError, IndexError, ValueError, KeyError, TypeError) as error:
        raise ArtifactError(f"Weight {name!r} is damaged ({error}). Save the artifact again.") from None


def parameter_names(described: Mapping[str, Mapping[str, Any]]) -> set[str]:
    """Names of the tensors that only decoding needs, of the descriptions by weight."""
    return {
        name for entry in described.values() if "format" in entry for name in entry["format"]["parameters"].values()
    }


def _offset(signed: bool, bits: int) -> int:
    """What is taken from symbols that count from 0, so that all stored integers are signed."""
    return 0 if signed else 2 ** (bits - 1)
