"""Integers at their bits: a stream by hand, and every width there and back."""

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from compress.bit_packing import pack_bits, unpack_bits
from compress.errors import ArtifactError


def test_a_stream_by_hand():
    # Codes 1, 3, 2, 1 of two bits, the lowest first: 01 10 11 01 from the top.
    assert pack_bits(np.array([-1, 1, 0, -1], np.int8), 2).tolist() == [0b01101101]


@settings(max_examples=60, derandomize=True)
@given(bits=st.integers(1, 8), size=st.integers(0, 50), seed=st.integers(0, 99))
def test_every_width_there_and_back(bits, size, seed):
    values = np.random.default_rng(seed).integers(-(2 ** (bits - 1)), 2 ** (bits - 1), size).astype(np.int8)
    packed = pack_bits(values, bits)
    assert packed.size == -(-size * bits // 8)
    assert np.array_equal(unpack_bits(packed, bits, (size,)), values)


def test_shapes_come_back_and_a_wrong_length_is_refused():
    values = np.arange(-6, 6).reshape(2, 3, 2).astype(np.int8)
    assert np.array_equal(unpack_bits(pack_bits(values, 4), 4, (2, 3, 2)), values)
    with pytest.raises(ArtifactError, match="cannot hold"):
        unpack_bits(np.zeros(3, np.uint8), 4, (2, 3, 2))
