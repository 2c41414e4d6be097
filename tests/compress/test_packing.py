"""Packed files: every value comes back, sizes are told truly, and every damage is named."""

import json
import zlib

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as npst

from compress.entropy_coding import (
    CODERS,
    decode_bytes,
    decode_integers,
    encode_bytes,
    encode_integers,
    entropy_bits,
    read_number,
    write_number,
)
from compress.errors import ArtifactError, CompressError
from compress.packing import MAGIC, read_packed, write_packed


@settings(deadline=None, max_examples=60)
@given(st.integers(1, 8), st.data(), st.sampled_from(CODERS))
def test_integers_come_back(bits, data, coder):
    low, high = -(2 ** (bits - 1)), 2 ** (bits - 1) - 1
    shape = data.draw(npst.array_shapes(min_dims=0, max_dims=3, min_side=0, max_side=9))
    values = data.draw(npst.arrays(np.int8, shape, elements=st.integers(low, high)))
    stream = encode_integers(values, bits, coder)
    found = decode_integers(stream, bits, shape)
    assert found.dtype == np.int8
    np.testing.assert_array_equal(found, values)
    # Never more than the bits themselves and the byte that tells the kind.
    assert len(stream) <= 1 + -(-values.size * bits // 8)


@given(st.binary(max_size=64), st.sampled_from([1, 2, 4, 8]), st.sampled_from(CODERS))
def test_bytes_come_back(data, width, coder):
    data = data[: len(data) // width * width]
    assert decode_bytes(encode_bytes(data, width, coder), width, len(data)) == data


@given(st.integers(0, 2**60), st.binary(max_size=4))
def test_numbers_come_back(value, before):
    data = before + write_number(value)
    assert read_number(data, len(before)) == (value, len(data))


def test_the_range_coder_reaches_the_entropy():
    rng = np.random.default_rng(0)
    values = rng.choice(np.array([-2, -1, 0, 1], np.int8), 20_000, p=[0.02, 0.04, 0.9, 0.04])
    bits = entropy_bits(values)
    assert bits == pytest.approx(-(0.9 * np.log2(0.9) + 0.08 * np.log2(0.04) + 0.02 * np.log2(0.02)), rel=0.03)
    coded = len(encode_integers(values, 2))
    assert coded * 8 <= 20_000 * bits + 8 * 20
    assert coded < 0.9 * len(encode_integers(values, 2, "zstd")) < 0.9 * len(encode_integers(values, 2, "none"))
    assert entropy_bits(np.zeros(5)) == entropy_bits(np.zeros(0)) == 0.0
    # All alike: what it is and how often, nothing else.
    assert len(encode_integers(np.full(100_000, -3, np.int8), 3)) <= 8


def test_an_unknown_coder_is_refused():
    with pytest.raises(CompressError, match="'coder' parameter"):
        encode_integers(np.zeros(3, np.int8), 2, "huffman")


TENSORS = {
    "a.weight": torch.tensor([[-2, 1, 0], [1, 1, 0]], dtype=torch.int8),
    "a.scale": torch.tensor([0.5, 2.0]),
    "mask": torch.tensor([True, False]),
    "half": torch.linspace(-1, 1, 6).to(torch.bfloat16).reshape(2, 3),
    "count": torch.tensor(7),
    "empty": torch.zeros(0, 3),
}


@pytest.mark.parametrize("coder", CODERS)
def test_a_file_comes_back(tmp_path, coder):
    told = write_packed(tmp_path / "m.packed", TENSORS, {"a.weight": 2}, {"x": [1, "y"]}, coder)
    tensors, about = read_packed(tmp_path / "m.packed")
    assert about == {"x": [1, "y"]}
    assert list(tensors) == list(TENSORS)
    for name, value in TENSORS.items():
        assert tensors[name].dtype == value.dtype
        assert torch.equal(tensors[name], value)
    first, *others = told
    assert (first.values, first.bits, first.packed_bytes) == (6, 2, 2)
    assert first.entropy == pytest.approx(1.4591, abs=1e-4)
    assert first.bits_per_value == 8 * first.coded_bytes / 6
    assert all(other.entropy is None for other in others)
    assert sum(tensor.coded_bytes for tensor in told) < (tmp_path / "m.packed").stat().st_size


def test_every_damage_is_named(tmp_path):
    path = tmp_path / "m.packed"
    write_packed(path, TENSORS, {"a.weight": 2}, {})
    good = path.read_bytes()
    for i in range(len(good)):
        damaged = bytearray(good)
        damaged[i] ^= 0x11
        path.write_bytes(damaged)
        with pytest.raises(ArtifactError, match=r"m\.packed"):
            read_packed(path)
    for length in range(len(good)):
        path.write_bytes(good[:length])
        with pytest.raises(ArtifactError, match=r"m\.packed"):
            read_packed(path)
    with pytest.raises(ArtifactError, match=r"Cannot read .*none\.packed"):
        read_packed(tmp_path / "none.packed")


@pytest.mark.parametrize(
    "entry",
    [
        {"dtype": "load"},
        {"shape": [9, 9]},
        {"shape": [10**7, 10**7]},
        {"shape": [-4, -4]},
        {"bytes": 10**9},
        {"bytes": 0},
        {"bits": 2},
        {"name": None, "shape": "x"},
    ],
)
def test_a_header_that_lies_is_refused(tmp_path, entry):
    """Checksums keep accidents out; a file that was made to deceive must do no harm either."""
    path = tmp_path / "m.packed"
    write_packed(path, {"a": torch.ones(4, 4)}, {}, {})
    data = path.read_bytes()[9:]
    length, place = read_number(data, 0)
    header = json.loads(zlib.decompress(data[place : place + length]))
    header["tensors"][0] |= entry
    text = zlib.compress(json.dumps(header).encode())
    body = write_number(len(text)) + text + data[place + length :]
    path.write_bytes(MAGIC + bytes([1]) + zlib.crc32(body).to_bytes(4, "little") + body)
    with pytest.raises(ArtifactError, match=r"m\.packed is damaged"):
        read_packed(path)
