"""Integers and floats as few bytes: a range coder that knows how often each symbol occurs, or zstd.

A stream of integers begins with its kind (one byte): 0 bits without gaps (`compress.bit_packing`), 1 range coded, 2
zstd over one byte for each integer. A range-coded stream goes on with variable-length integers (seven bits a byte,
lowest first): the smallest symbol (zigzag), the number of symbols from it to the largest, how often each of them
occurs; then the words of constriction's range coder (Bamler 2022, "Understanding entropy coding with asymmetric numeral
systems", arXiv:2201.01741), 32 bits each, little endian. A stream of floats begins with its kind too: 0 as they are, 2
zstd over the bytes in planes (all first bytes, then all second ones, ...).
"""

import constriction
import numpy as np
import zstandard

from compress.bit_packing import pack_bits, unpack_bits
from compress.errors import ArtifactError, CompressError

STREAM_CODERS = ("range", "zstd", "none")
_PLAIN, _RANGE, _ZSTD = 0, 1, 2
_LEVEL = 19
_MOST_BYTES = 2**34


def encode_integers(values: np.ndarray, bits: int, coder: str = "range") -> bytes:
    """A stream that `decode_integers` reads: of the coder, or plain bits where these are not more.

    Args:
        values: any shape, integers in [-2^(bits-1), 2^(bits-1) - 1].
        bits: 1 to 8.
        coder: `"range"` (smallest), `"zstd"`, or `"none"`.

    Raises:
        CompressError: for an unknown coder.
    """
    if coder not in STREAM_CODERS:
        raise CompressError(f"The 'coder' parameter of encode_integers must be one of {STREAM_CODERS}. Got {coder!r}.")
    flat = np.ascontiguousarray(values).reshape(-1).astype(np.int8)
    plain = bytes([_PLAIN]) + pack_bits(flat, bits).tobytes()
    if coder == "none" or not flat.size:
        return plain
    coded = bytes([_RANGE]) + _range_encode(flat) if coder == "range" else bytes([_ZSTD]) + _zstd(flat.tobytes())
    return min(coded, plain, key=len)


def decode_integers(stream: bytes, bits: int, shape: tuple[int, ...]) -> np.ndarray:
    """int8 integers of this shape. Raises ArtifactError if the stream does not hold them."""
    size = int(np.prod(shape, dtype=np.int64))
    kind, body = _split(stream)
    if kind == _PLAIN:
        return unpack_bits(np.frombuffer(body, np.uint8), bits, shape)
    if kind == _RANGE:
        return _range_decode(body, size).reshape(shape)
    values = np.frombuffer(_unzstd(body, size), np.int8)
    return _checked(values, size).reshape(shape)


def encode_bytes(data: bytes, width: int, coder: str = "range") -> bytes:
    """A stream of numbers of `width` bytes each that `decode_bytes` reads: zstd, or as they are if that is no more."""
    plain = bytes([_PLAIN]) + data
    if coder == "none" or not data:
        return plain
    planes = np.frombuffer(data, np.uint8).reshape(-1, width).T.tobytes()
    return min(bytes([_ZSTD]) + _zstd(planes), plain, key=len)


def decode_bytes(stream: bytes, width: int, size: int) -> bytes:
    """`size` bytes. Raises ArtifactError if the stream does not hold them."""
    kind, body = _split(stream)
    if kind == _PLAIN:
        return _checked(body, size)
    planes = np.frombuffer(_checked(_unzstd(body, size), size), np.uint8)
    return planes.reshape(width, -1).T.tobytes()


def entropy_bits(values: np.ndarray) -> float:
    """Bits for each value that no coder without context can go below: the entropy of how often each occurs."""
    _, counts = np.unique(values, return_counts=True)
    share = counts / max(int(counts.sum()), 1)
    return float(-(share * np.log2(share)).sum()) if len(counts) > 1 else 0.0


def write_number(value: int) -> bytes:
    """A non-negative integer in as few bytes as it needs, seven bits each, lowest first."""
    found = bytearray()
    while value > 0x7F:
        found.append(value & 0x7F | 0x80)
        value >>= 7
    return bytes([*found, value])


def read_number(data: bytes, place: int) -> tuple[int, int]:
    """What `write_number` wrote at `place`, and the place after it. Raises ArtifactError if the data ends too soon."""
    value = shift = 0
    while True:
        if place >= len(data) or shift > 63:
            raise ArtifactError("The stream ends within a number: it is damaged. Save the artifact again.")
        value |= (data[place] & 0x7F) << shift
        place, shift = place + 1, shift + 7
        if not data[place - 1] & 0x80:
            return value, place


def _range_encode(values: np.ndarray) -> bytes:
    low = int(values.min())
    symbols = values.astype(np.int32) - low
    counts = np.bincount(symbols)
    head = write_number(2 * low if low >= 0 else -2 * low - 1) + write_number(len(counts))
    head += b"".join(write_number(int(count)) for count in counts)
    if len(counts) == 1:
        return head
    encoder = constriction.stream.queue.RangeEncoder()
    encoder.encode(symbols, _model(counts))
    return head + encoder.get_compressed().astype("<u4").tobytes()


def _range_decode(body: bytes, size: int) -> np.ndarray:
    zigzag, place = read_number(body, 0)
    low = zigzag // 2 if zigzag % 2 == 0 else -(zigzag + 1) // 2
    n_symbols, place = read_number(body, place)
    if not 1 <= n_symbols <= 256:
        raise ArtifactError(f"A stream of {n_symbols} symbols is no stream of small integers. Save the artifact again.")
    counts = np.zeros(n_symbols, dtype=np.int64)
    for i in range(n_symbols):
        counts[i], place = read_number(body, place)
    if counts.sum() != size or (len(body) - place) % 4:
        raise ArtifactError(
            f"The stream holds {int(counts.sum())} integers, {size} are expected. Save the artifact again."
        )
    if n_symbols == 1:
        return np.full(size, low, dtype=np.int8)
    decoder = constriction.stream.queue.RangeDecoder(np.frombuffer(body[place:], "<u4").astype(np.uint32))
    symbols = decoder.decode(_model(counts), size)
    if not np.array_equal(np.bincount(symbols, minlength=n_symbols), counts):
        raise ArtifactError(
            "The stream decodes to other integers than it counts: it is damaged. Save the artifact again."
        )
    return (symbols + low).astype(np.int8)


def _model(counts: np.ndarray) -> constriction.stream.model.Categorical:
    # The same quotients on every machine: both ends compute them from whole numbers.
    return constriction.stream.model.Categorical(counts / counts.sum(), perfect=False)


def _zstd(data: bytes) -> bytes:
    return zstandard.ZstdCompressor(level=_LEVEL, write_content_size=False).compress(data)


def _unzstd(body: bytes, size: int) -> bytes:
    try:
        return zstandard.ZstdDecompressor().decompress(body, max_output_size=min(max(size, 1), _MOST_BYTES))
    except zstandard.ZstdError as error:
        raise ArtifactError(f"The stream is damaged ({error}). Save the artifact again.") from None


def _split(stream: bytes) -> tuple[int, bytes]:
    if not stream or stream[0] not in (_PLAIN, _RANGE, _ZSTD):
        raise ArtifactError("The stream is of no known kind: it is damaged. Save the artifact again.")
    return stream[0], stream[1:]


def _checked(values: np.ndarray | bytes, size: int) -> np.ndarray | bytes:
    if len(values) != size:
        raise ArtifactError(f"The stream holds {len(values)} values, {size} are expected. Save the artifact again.")
    return values
