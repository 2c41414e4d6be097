"""One file that holds a whole compressed model, entropy coded.

Layout of version 1: the four bytes `ALPK`; one byte, the version; four bytes, the CRC-32 of all that follows, little
endian; the length of the header (a number of `compress.entropy_coding`); the header, JSON compressed by zlib; then the
streams of all tensors, one after another in the order of the header. The header holds `about` (free JSON: what the
artifact's manifest and plan say) and `tensors`: for each its name, shape, dtype, the length of its stream, and `bits`
if it is one of integers.
"""

import json
import zlib
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from compress.entropy_coding import (
    decode_bytes,
    decode_integers,
    encode_bytes,
    encode_integers,
    entropy_bits,
    read_number,
    write_number,
)
from compress.errors import ArtifactError
from compress.files import write_atomic

MAGIC, VERSION = b"ALPK", 1
_PREFIX = len(MAGIC) + 5
_MOST_HEADER = 2**26


@dataclass(frozen=True)
class CodedTensor:
    """How many bytes a tensor takes.

    Attributes:
        name: of the tensor.
        values: how many.
        bits: of each as stored without coding: 32 for float32, less for integers.
        coded_bytes: of its stream.
        entropy: of its integers, bits for each value (see `entropy_bits`); None for floats.
    """

    name: str
    values: int
    bits: int
    coded_bytes: int
    entropy: float | None

    @property
    def packed_bytes(self) -> int:
        """Without coding and without gaps."""
        return -(-self.values * self.bits // 8)

    @property
    def bits_per_value(self) -> float:
        """As coded."""
        return 8 * self.coded_bytes / max(self.values, 1)


def write_packed(
    path: str | Path, tensors: Mapping[str, Tensor], bits: Mapping[str, int], about: Any, coder: str = "range"
) -> list[CodedTensor]:
    """Write the file, atomically, and tell what each tensor takes.

    Args:
        tensors: by name; those in `bits` are int8.
        bits: name -> bits of each integer, 1 to 8.
        about: plain JSON.
        coder: see `encode_integers`.

    Raises:
        ArtifactError: if the file cannot be written. CompressError: for an unknown coder.
    """
    entries, streams, told = [], [], []
    for name, value in tensors.items():
        value = value.detach().cpu().contiguous()
        entry: dict[str, Any] = {"name": name, "shape": list(value.shape), "dtype": str(value.dtype)[6:]}
        if name in bits:
            integers = value.numpy()
            stream = encode_integers(integers, bits[name], coder)
            entry["bits"] = bits[name]
            told.append(CodedTensor(name, value.numel(), bits[name], len(stream), entropy_bits(integers)))
        else:
            stream = encode_bytes(_bytes_of(value), value.element_size(), coder)
            told.append(CodedTensor(name, value.numel(), 8 * value.element_size(), len(stream), None))
        entries.append({**entry, "bytes": len(stream)})
        streams.append(stream)
    text = json.dumps({"about": about, "tensors": entries}, separators=(",", ":"), sort_keys=True, allow_nan=False)
    header = zlib.compress(text.encode(), 9)
    body = write_number(len(header)) + header + b"".join(streams)
    write_atomic(
        path, lambda file: file.write(MAGIC + bytes([VERSION]) + zlib.crc32(body).to_bytes(4, "little") + body)
    )
    return told


def read_packed(path: str | Path) -> tuple[dict[str, Tensor], Any]:
    """The tensors (integers as int8) and the JSON that `write_packed` wrote.

    Raises:
        ArtifactError: naming the file, if it is missing, of another kind or version, truncated or altered.
    """
    path = Path(path)
    try:
        data = path.read_bytes()
    except OSError as error:
        raise ArtifactError(f"Cannot read {path}: {error.strerror or error}.") from error
    if data[: len(MAGIC)] != MAGIC:
        raise ArtifactError(f"{path} is no packed model: it does not begin with {MAGIC.decode()}.")
    if len(data) < _PREFIX or data[len(MAGIC)] != VERSION:
        raise ArtifactError(f"{path} is a packed model of another version than {VERSION}, or truncated.")
    body = data[_PREFIX:]
    if zlib.crc32(body) != int.from_bytes(data[len(MAGIC) + 1 : _PREFIX], "little"):
        raise ArtifactError(f"{path} is truncated or altered (its checksum is not that of its content). Copy it again.")
    try:
        return _read_body(body)
    # A header that lies about shapes may ask for more memory than there is.
    except (ArtifactError, KeyError, TypeError, ValueError, AttributeError, RuntimeError, OverflowError, MemoryError,
            zlib.error) as error:  # fmt: skip
        raise ArtifactError(f"{path} is damaged ({error}). Save the artifact again.") from None


def _read_body(body: bytes) -> tuple[dict[str, Tensor], Any]:
    length, place = read_number(body, 0)
    unpacker = zlib.decompressobj()
    header = json.loads(unpacker.decompress(body[place : place + length], _MOST_HEADER))
    place += length
    found: dict[str, Tensor] = {}
    for entry in header["tensors"]:
        stream, shape = body[place : place + entry["bytes"]], tuple(map(int, entry["shape"]))
        place += entry["bytes"]
        if "bits" in entry:
            found[entry["name"]] = torch.from_numpy(np.array(decode_integers(stream, int(entry["bits"]), shape)))
            continue
        dtype = getattr(torch, entry["dtype"])
        if not isinstance(dtype, torch.dtype):
            raise ValueError(f"{entry['dtype']!r} is no dtype")
        size = int(np.prod(shape, dtype=np.int64)) * dtype.itemsize
        raw = bytearray(decode_bytes(stream, dtype.itemsize, size))
        value = torch.frombuffer(raw, dtype=dtype) if size else torch.empty(0, dtype=dtype)
        found[entry["name"]] = value.reshape(shape)
    if place != len(body):
        raise ValueError(f"{len(body) - place} bytes are left over")
    return found, header["about"]


def _bytes_of(value: Tensor) -> bytes:
    return value.reshape(-1).view(torch.uint8).numpy().tobytes() if value.numel() else b""
