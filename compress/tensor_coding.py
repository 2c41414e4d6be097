"""A tensor as part of an arithmetic code, or as a stream of its own: whichever takes fewer bytes in reasonable time."""

import math
from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from compress.arithmetic_coding import BitEncoder
from compress.bit_model import BitModel
from compress.context_coding import code_bytes, code_floats, code_integers, mantissa_bits
from compress.entropy_coding import (
    STREAM_CODERS,
    decode_bytes,
    decode_integers,
    encode_bytes,
    encode_integers,
    entropy_bits,
    write_number,
)
from compress.errors import ArtifactError, CompressError

CODERS = ("auto", "context", *STREAM_CODERS)
# What `auto` codes in context: so many bits of integers (about 30 seconds of them), and values of one other tensor.
_AFFORDABLE_BITS, _AFFORDABLE_VALUES = 4_000_000, 2**14
_STREAM = 65536 // 64  # a stream is rare: the chance that the bit is one


@dataclass(frozen=True)
class TensorForm:
    """What a reader must know of a tensor beforehand.

    Attributes:
        shape: of the tensor.
        dtype: name of its dtype, such as `"float32"`; of integers with `bits` `"int8"` or `"uint8"`.
        bits: of small integers, 1 to 8; None for all other tensors.
    """

    shape: tuple[int, ...]
    dtype: str = "float32"
    bits: int | None = None

    @property
    def size(self) -> int:
        """How many values."""
        return math.prod(self.shape)

    @property
    def torch_dtype(self) -> torch.dtype:
        """The dtype itself. Raises ArtifactError for a name that is none."""
        found = getattr(torch, self.dtype, None) if self.dtype.isidentifier() else None
        if not isinstance(found, torch.dtype) or (self.bits is not None and self.dtype not in ("int8", "uint8")):
            raise ArtifactError(f"{self.dtype!r} is no dtype of a tensor that can be stored.")
        return found


@dataclass(frozen=True)
class CodedTensor:
    """How many bytes a tensor takes.

    Attributes:
        name: of the tensor.
        values: how many.
        bits: of each as stored without coding. Of integers their own; of float32 32, or fewer where the last bits of
            all are zero (19 where all are float16: a sign, 8 bits of exponent, 10 behind the point).
        coded_bytes: by which it makes the file longer.
        entropy: of its integers, bits for each value (see `entropy_bits`); a coder that sees context can go below it.
            None for other tensors.
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


class TensorWriter:
    """Writes tensors one after another.

    Args:
        model: with the encoder of the arithmetic code.
        coder: see `compress.packing.write_packed`.

    Attributes:
        streams: of the tensors that are not in the code, in order.

    Raises:
        CompressError: for an unknown coder.
    """

    def __init__(self, model: BitModel, coder: str) -> None:
        if coder not in CODERS:
            raise CompressError(f"The 'coder' parameter must be one of {CODERS}. Got {coder!r}.")
        assert isinstance(model.coder, BitEncoder)
        self.model, self.coder = model, coder
        self.streams: list[bytes] = []
        self._left = _AFFORDABLE_BITS

    def write(self, name: str, value: Tensor, form: TensorForm) -> CodedTensor:
        """What the tensor takes."""
        words = _words(value.detach().cpu().contiguous(), form)
        before = self._place()
        self._write(name, words, form)
        return _told(name, words, form, self._place() - before)

    def _place(self) -> int:
        return self.model.coder.place() + sum(map(len, self.streams))

    def _write(self, name: str, words: np.ndarray, form: TensorForm) -> None:
        if self.coder in STREAM_CODERS:
            self._add(_stream(words, form, self.coder))
            return
        if self.coder == "auto" and not self._affords(words, form):
            self._add(_stream(words, form, "range"))
            return
        encoder, weights = self.model.coder, {key: list(value) for key, value in self.model.weights.items()}
        start = encoder.state()
        encoder.code(0, _STREAM)
        _code(self.model, words, form, name)
        if self.coder == "auto" and form.bits is not None:
            stream = _stream(words, form, "range")
            # The counts of this tensor stay in the model, but nothing else asks for them.
            if len(stream) + len(write_number(len(stream))) < encoder.place() - start[2]:
                encoder.rewind(start)
                self.model.weights = weights
                self._add(stream)

    def _add(self, stream: bytes) -> None:
        self.model.coder.code(1, _STREAM)
        self.model.number(len(stream), "stream")
        self.streams.append(stream)

    def _affords(self, words: np.ndarray, form: TensorForm) -> bool:
        if form.bits is None:
            return words.size <= _AFFORDABLE_VALUES
        lengths = np.frexp(np.abs(words.astype(np.float32)))[1]
        needed = words.size + int((2 * lengths + 1)[words != 0].sum())
        if needed > self._left:
            return False
        self._left -= needed
        return True


class TensorReader:
    """Reads back what a `TensorWriter` wrote.

    Args:
        model: with the decoder of the arithmetic code.
        take: gives the next so many bytes of the streams, or raises ArtifactError.

    Attributes:
        coded: what each tensor took that was read, in order.
    """

    def __init__(self, model: BitModel, take: Callable[[int], bytes]) -> None:
        self.model, self.take = model, take
        self.coded: list[CodedTensor] = []

    def read(self, name: str, form: TensorForm) -> Tensor:
        """The tensor. Raises ArtifactError if the file does not hold it."""
        before, streamed = self.model.coder.place(), 0
        dtype = form.torch_dtype
        if self.model.coder.code(0, _STREAM):
            stream = self.take(self.model.number(0, "stream"))
            streamed = len(stream)
            if form.bits is not None:
                words = decode_integers(stream, form.bits, form.shape)
            else:
                raw = decode_bytes(stream, dtype.itemsize, form.size * dtype.itemsize)
                words = np.frombuffer(raw, np.uint8)
        else:
            words = _code(self.model, _blank(form), form, name)
        after = self.model.coder.place() + streamed
        if form.bits is not None:
            self.coded.append(_told(name, words, form, after - before))
            value = torch.from_numpy(np.array(words))
            # uint8 is told as int8 of the same bits, less what makes them so.
            return value if form.dtype == "int8" else (value.to(torch.int16) + 2 ** (form.bits - 1)).to(torch.uint8)
        raw = bytearray(words.tobytes())
        value = (torch.frombuffer(raw, dtype=dtype) if raw else torch.empty(0, dtype=dtype)).reshape(form.shape)
        self.coded.append(_told(name, _words(value, form), form, after - before))
        return value


def _told(name: str, words: np.ndarray, form: TensorForm, coded_bytes: int) -> CodedTensor:
    if form.bits is not None:
        return CodedTensor(name, form.size, form.bits, coded_bytes, entropy_bits(words))
    bits = 9 + mantissa_bits(words) if words.dtype == np.float32 else 8 * form.torch_dtype.itemsize
    return CodedTensor(name, form.size, bits, coded_bytes, None)


def _words(value: Tensor, form: TensorForm) -> np.ndarray:
    """int8 integers, float32, or bytes."""
    if form.bits is not None:
        return (value.to(torch.int16) - (2 ** (form.bits - 1) if form.dtype == "uint8" else 0)).to(torch.int8).numpy()
    if value.dtype == torch.float32:
        return value.numpy()
    return value.reshape(-1).view(torch.uint8).numpy() if value.numel() else np.zeros(0, np.uint8)


def _blank(form: TensorForm) -> np.ndarray:
    if form.bits is not None:
        return np.zeros(form.shape, np.int8)
    if form.dtype == "float32":
        return np.zeros(form.shape, np.float32)
    return np.zeros(form.size * form.torch_dtype.itemsize, np.uint8)


def _code(model: BitModel, words: np.ndarray, form: TensorForm, name: str) -> np.ndarray:
    if form.bits is not None:
        return code_integers(model, words, name)
    return code_floats(model, words, name) if words.dtype == np.float32 else code_bytes(model, words, form.dtype)


def _stream(words: np.ndarray, form: TensorForm, coder: str) -> bytes:
    if form.bits is not None:
        return encode_integers(words, form.bits, coder)
    return encode_bytes(words.tobytes(), form.torch_dtype.itemsize, coder)
