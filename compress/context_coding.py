"""Small integers, floats, sets and text through a learning bit model: few bytes, also for few values.

Each function codes in both directions: with a model that writes it writes what it is given, with one that reads the
values given say nothing; it gives back what was coded. A tensor of integers is told symbol by symbol: whether it is the
center (zero, unless another is far more common), else on which side of that it lies and how far: how many bits the
distance has, then these. What is known when decoding serves as context: how dense the row (output), the column (input
and kernel position) and the input channel have been so far, neighbours in the row, one line above (a kernel or an image
of inputs is two-dimensional), and in the row before.
"""

import math
from collections.abc import Hashable, Sequence
from functools import cache

import numpy as np

from compress.arithmetic_coding import BitEncoder
from compress.bit_model import BitModel
from compress.errors import ArtifactError

MOST_SET = 2**20
_MOST_TEXT = 2**17
_ORDER = 5
_SMALLEST_IMAGE = 8


def code_integers(model: BitModel, values: np.ndarray, tensor: Hashable) -> np.ndarray:
    """int8 of the shape of `values`.

    Args:
        values: int8; the first dimension counts rows, the last two of four or more are positions of a kernel. If there
            are two dimensions and a square number of columns, from 8 x 8 on, they are taken for an image.
        tensor: tells tensors apart.

    Raises:
        ArtifactError: if what is read are no int8.
    """
    flat = values.reshape(-1).astype(np.int16)
    center = model.plain(_center(flat) + 128, 8) - 128
    coder = _RowCoder(model, tensor, values.shape)
    rows = np.array([coder.code_row(row) for row in (flat - center).reshape(-1, max(coder.columns, 1)).tolist()])
    found = rows.reshape(-1) + center
    if found.size and not -128 <= found.min() <= found.max() <= 127:
        raise ArtifactError("The stream holds integers of more than 8 bits: it is damaged. Save the artifact again.")
    return found.astype(np.int8).reshape(values.shape)


def _center(values: np.ndarray) -> int:
    """Zero, or a symbol that is much more frequent: where none stands out, values lie about zero."""
    counts = np.bincount(values + 128, minlength=256)
    commonest = int(counts.argmax()) - 128
    return commonest if counts[commonest + 128] > 2 * counts[128] else 0


class _RowCoder:
    """Codes the rows of one tensor, and keeps what the rows before said of each column."""

    def __init__(self, model: BitModel, tensor: Hashable, shape: tuple[int, ...]) -> None:
        self.model, self.tensor = model, tensor
        self.columns = math.prod(shape[1:]) if len(shape) > 1 else math.prod(shape)
        self.width, self.area = _plane(shape, self.columns)
        self.row = 0
        self.before = [0] * self.columns  # the row before
        self.last = [0] * self.columns  # the last value in the column that is not zero
        self.filled, self.sums = [0] * self.columns, [0] * self.columns  # how many of those, and their distances

    def code_row(self, values: list[int]) -> list[int]:
        """The row, less the center."""
        current = [0] * self.columns
        for column, value in enumerate(values):
            near = self._neighbours(current, column)
            if self.model.mix(int(value != 0), self._zero_contexts(column, near), ("zero", self.area < self.columns)):
                current[column] = value = self._code_value(value, column, near)
                self.filled[column] += 1
                self.sums[column] += abs(value)
                self.last[column] = value
        self.before = current
        self.row += 1
        return current

    def _neighbours(self, current: list[int], column: int) -> tuple[int, ...]:
        """Left, left of that, above, above to the left and to the right, and the same column of the row before."""
        width, place = self.width, column % self.width
        above = column >= width
        return (
            current[column - 1] if place else 0,
            current[column - 2] if place > 1 else 0,
            current[column - width] if above else 0,
            current[column - width - 1] if above and place else 0,
            current[column - width + 1] if above and place < width - 1 else 0,
            self.before[column],
        )

    def _zero_contexts(self, column: int, near: tuple[int, ...]) -> list[Hashable]:
        left, second, up, up_left, up_right, before = (2 if x > 1 or x < -1 else x and 1 for x in near)
        width, row, filled, tensor = self.width, self.row, self.filled, self.tensor
        around = filled[column - 1] if column % width else 0
        if column % width < width - 1:
            around += filled[column + 1]
        if column >= width:
            around += filled[column - width]
        if column + width < self.columns:
            around += filled[column + width]
        shares = (around * 8 // (row + 1)).bit_length(), (filled[column] * 16 // (row + 2)).bit_length()
        contexts = [
            (tensor, 0), (tensor, 1, row), (tensor, 2, column), (tensor, 4, shares), (tensor, 5, left, before, up),
            (tensor, 3, 2 * left + 2 * up + second + up_left + up_right),
        ]  # fmt: skip
        if self.area < self.columns:
            channel = column // self.area
            contexts += [(tensor, 6, row, channel), (tensor, 7, channel)]
        return contexts

    def _code_value(self, value: int, column: int, near: tuple[int, ...]) -> int:
        """A value that is not zero: its sign, the number of its bits, the bits behind the first."""
        tensor, row, mix = self.tensor, self.row, self.model.mix
        left, up, before, last = ((x > 0) - (x < 0) for x in (near[0], near[2], self.before[column], self.last[column]))
        negative = mix(int(value < 0), [
            (tensor, 10), (tensor, 11, row), (tensor, 12, column), (tensor, 13, left, up), (tensor, 14, before, left),
            (tensor, 15, last),
        ], "sign")  # fmt: skip
        distance = abs(value)
        close = min((abs(near[0]) + abs(near[2]) + abs(near[5])).bit_length(), 4)
        mean = (self.sums[column] * 4 // (self.filled[column] + 1)).bit_length()
        filled = bool(left) + bool(up) + bool(before)
        bits = 1
        while bits < 9 and mix(int(distance >> bits > 0), [
            (tensor, 20, bits), (tensor, 21, bits, row), (tensor, 22, bits, column), (tensor, 23, bits, close, filled),
            (tensor, 24, bits, mean),
        ], ("bits", bits)):  # fmt: skip
            bits += 1
        contexts = [(tensor, 30, bits), (tensor, 31, bits, close)] if bits < 3 else [(tensor, 30, bits)]
        rest = self.model.tree(distance & (1 << bits - 1) - 1, bits - 1, contexts)
        distance = (1 << bits - 1) + rest
        return -distance if negative else distance


def _plane(shape: tuple[int, ...], columns: int) -> tuple[int, int]:
    """Width and area of the planes that a row consists of."""
    if len(shape) > 3:
        return max(shape[-1], 1), max(shape[-1] * shape[-2], 1)
    if len(shape) == 3:
        return max(shape[-1], 1), max(shape[-1], 1)
    side = math.isqrt(columns)
    return max(side if side * side == columns and side >= _SMALLEST_IMAGE else columns, 1), max(columns, 1)


def mantissa_bits(values: np.ndarray) -> int:
    """How many bits of the 23 behind the point float32 values need: 10 if all are float16, 7 if bfloat16."""
    together = int(np.bitwise_or.reduce(values.reshape(-1).view(np.uint32))) & 0x7FFFFF if values.size else 0
    return 23 - ((together & -together).bit_length() - 1) if together else 0


def code_floats(model: BitModel, values: np.ndarray, tensor: Hashable) -> np.ndarray:
    """float32 of the shape of `values`, bit for bit: sign and exponent in context, the mantissa nearly plain.

    Raises:
        ArtifactError: if what is read are no float32.
    """
    kept = model.plain(mantissa_bits(values), 5)
    if kept > 23:
        raise ArtifactError("The stream holds no float32: it is damaged. Save the artifact again.")
    found = np.zeros(values.size, np.uint32)
    for i, word in enumerate(values.reshape(-1).view(np.uint32).tolist()):
        head = model.tree(word >> 23, 9, ["float", (tensor, "float")])
        rest = (word & 0x7FFFFF) >> 23 - kept
        known = min(kept, 2)
        high = model.tree(rest >> kept - known, known, [(tensor, "mantissa")])
        found[i] = head << 23 | (high << kept - known | model.plain(rest, kept - known)) << 23 - kept
    return found.view(np.float32).reshape(values.shape)


def code_bytes(model: BitModel, values: np.ndarray, context: Hashable) -> np.ndarray:
    """uint8 of the shape of `values`, each in the context of the one eight before: alike numbers take few bits."""
    found = [0] * 8
    for byte in values.reshape(-1).tolist():
        found.append(model.tree(byte, 8, [(context, "byte"), (context, "byte", found[-8])]))
    return np.array(found[8:], np.uint8).reshape(values.shape)


def code_set(model: BitModel, members: Sequence[int], most: int = MOST_SET) -> list[int]:
    """Sorted non-negative integers, told as a bitmap of which the neighbours are context: ranges take few bits.

    Raises:
        ArtifactError: for an integer of `most` or more.
    """
    wanted = set(members)
    length = model.number(max(wanted, default=-1) + 1, "set length")
    if length > most:
        raise ArtifactError(f"A set of integers up to {length - 1:,} is too large.")
    found, past = [], 0
    for i in range(length - 1):
        bit = model.chain(int(i in wanted), [("set", past & 1), ("set", past)])
        past = past << 1 & 7 | bit
        if bit:
            found.append(i)
    return [*found, length - 1] if length else found


def code_text(model: BitModel, text: bytes, usual: bytes = b"") -> bytes:
    """Text, each bit in the contexts of the five bytes before it, after the model has learned from `usual` text."""
    model.learn(_counts_of(usual))
    length = model.number(len(text), "text length")
    if length > _MOST_TEXT:
        raise ArtifactError("The header is too long: the file is damaged. Save the artifact again.")
    return _code_bytes(model, text.ljust(length, b"\0"), usual)


def _code_bytes(model: BitModel, text: bytes, before: bytes) -> bytes:
    found = bytearray(before[-_ORDER:])
    for byte in text:
        contexts = ["text", *(bytes(found[-order:]) for order in range(1, _ORDER + 1) if len(found) >= order)]
        found.append(model.tree(byte, 8, contexts))
    return bytes(found[len(found) - len(text) :])


@cache
def _counts_of(usual: bytes) -> dict[Hashable, list[int]]:
    """What a model has counted after it coded this text, never to be changed."""
    model = BitModel(BitEncoder())
    _code_bytes(model, usual, b"")
    return model.counts
