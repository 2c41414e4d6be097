"""Integers at their bits: one stream without gaps."""

import numpy as np

from compress.errors import ArtifactError


def pack_bits(integers: np.ndarray, bits: int) -> np.ndarray:
    """`(ceil(n * bits / 8),)` uint8: each integer plus 2^(bits-1) in `bits` bits, lowest bit first, in C order.

    Args:
        integers: any shape, in [-2^(bits-1), 2^(bits-1) - 1].
        bits: 1 to 8.
    """
    codes = (integers.reshape(-1).astype(np.int16) + 2 ** (bits - 1)).astype(np.uint8)
    return np.packbits(np.unpackbits(codes[:, None], axis=1, count=bits, bitorder="little"), bitorder="little")


def unpack_bits(packed: np.ndarray, bits: int, shape: tuple[int, ...]) -> np.ndarray:
    """int8 integers of this shape from `pack_bits`.

    Raises:
        ArtifactError: if the stream is not as long as the shape says.
    """
    size = int(np.prod(shape, dtype=np.int64))
    if packed.size != -(-size * bits // 8):
        raise ArtifactError(f"{packed.size} bytes cannot hold {size} integers of {bits} bits.")
    planes = np.unpackbits(packed, count=size * bits, bitorder="little").reshape(size, bits)
    codes = np.packbits(planes, axis=1, bitorder="little")[:, 0]
    return (codes.astype(np.int16) - 2 ** (bits - 1)).astype(np.int8).reshape(shape)
