"""Packed files: every value comes back, sizes are told truly, and every damage is named."""

import contextlib
import json
import re
import zlib
from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as npst

from compress import json_coding
from compress.arithmetic_coding import BitDecoder, BitEncoder
from compress.bit_model import BitModel
from compress.entropy_coding import (
    STREAM_CODERS,
    decode_bytes,
    decode_integers,
    encode_bytes,
    encode_integers,
    entropy_bits,
    read_number,
    write_number,
)
from compress.errors import ArtifactError, CompressError
from compress.json_coding import _Coder, code_json
from compress.packing import _WORDS, MAGIC, VERSION, PackedFile, write_packed
from compress.tensor_coding import CODERS, TensorForm


@settings(deadline=None, max_examples=60)
@given(st.integers(1, 8), st.data(), st.sampled_from(STREAM_CODERS))
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


@given(st.binary(max_size=64), st.sampled_from([1, 2, 4, 8]), st.sampled_from(STREAM_CODERS))
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


WORDS = ("bits", "scheme", "tensor")
JSON = st.recursive(
    st.none() | st.booleans() | st.integers(-(2**39), 2**39) | st.floats(allow_nan=False, allow_infinity=False)
    | st.text(max_size=9) | st.sampled_from(WORDS),
    lambda parts: st.lists(parts, max_size=4) | st.dictionaries(st.text(max_size=4) | st.sampled_from(WORDS), parts,
                                                                max_size=4),
    max_leaves=12,
)  # fmt: skip


@settings(deadline=None, max_examples=80)
@given(JSON)
def test_json_comes_back(value):
    encoder = BitEncoder()
    assert code_json(BitModel(encoder), value, WORDS) == value
    found = code_json(BitModel(BitDecoder(encoder.finish())), None, WORDS)
    assert found == value
    assert json.dumps(found) == json.dumps(value)


@settings(deadline=None, max_examples=80)
@given(st.binary(max_size=60))
def test_other_bytes_are_json_or_named_damage(data):
    with contextlib.suppress(ArtifactError, ValueError):
        json.dumps(code_json(BitModel(BitDecoder(data)), None, WORDS))


def test_a_header_has_room_for_so_much_text_and_no_more(tmp_path, monkeypatch):
    assert json_coding._MOST_TEXT == 2**17
    assert json_coding._MOST_VALUES == 2**18
    # A hundredth of it says the same in less time.
    monkeypatch.setattr(json_coding, "_MOST_TEXT", 2**10)
    monkeypatch.setattr(json_coding, "_MOST_VALUES", 2**11)
    path = tmp_path / "m.packed"
    write_packed(path, {}, {}, ["a" * 2**8] * 3)
    assert PackedFile(path).about == ["a" * 2**8] * 3
    # A text that comes again costs nearly nothing, but time to read.
    for about in (["a" * 2**8] * 5, [0] * 2**12, 2**50, "\ud800", {1: 2}):
        with pytest.raises(CompressError, match="cannot hold this header"):
            write_packed(path, {}, {}, about)
    encoder = BitEncoder()
    unbounded = _Coder(BitModel(encoder), ())
    unbounded.left_text = unbounded.left = 2**40
    unbounded.code(["a" * 2**8] * 5, "", 0)
    with pytest.raises(ArtifactError, match="too long"):
        code_json(BitModel(BitDecoder(encoder.finish())), None, ())


@pytest.mark.parametrize("value", [float("nan"), b"bytes", {"a": {1}}])
def test_what_json_cannot_hold_is_refused(value):
    with pytest.raises((TypeError, ValueError)):
        code_json(BitModel(BitEncoder()), value, WORDS)


TENSORS = {
    "a.weight": torch.tensor([[-2, 1, 0], [1, 1, 0]], dtype=torch.int8),
    "codes": torch.tensor([[0, 15, 3], [9, 9, 9]], dtype=torch.uint8),
    "a.scale": torch.tensor([0.5, 2.0]),
    "mask": torch.tensor([True, False]),
    "half": torch.linspace(-1, 1, 6).to(torch.bfloat16).reshape(2, 3),
    "double": torch.tensor([0.1], dtype=torch.float64),
    "count": torch.tensor(7),
    "empty": torch.zeros(0, 3),
    "large": torch.linspace(-1, 1, 20_000),
}
BITS = {"a.weight": 2, "codes": 4}
ABOUT, SETS = {"x": [1, "y"]}, {"conv:out": (1, 2, 5), "nothing": (), 3: (0,)}


def _forms(tensors=TENSORS, bits=BITS):
    return {name: TensorForm(tuple(t.shape), str(t.dtype)[6:], bits.get(name)) for name, t in tensors.items()}


@pytest.mark.parametrize("coder", CODERS)
def test_a_file_comes_back(tmp_path, coder):
    told = write_packed(tmp_path / "m.packed", TENSORS, BITS, ABOUT, coder, SETS)
    packed = PackedFile(tmp_path / "m.packed")
    assert (packed.about, packed.sets) == (ABOUT, SETS)
    tensors = packed.tensors(_forms())
    assert list(tensors) == [tensor.name for tensor in told] == sorted(TENSORS)
    for name, value in TENSORS.items():
        assert tensors[name].dtype == value.dtype
        assert torch.equal(tensors[name], value)
    by_name = {tensor.name: tensor for tensor in told}
    first = by_name["a.weight"]
    assert (first.values, first.bits, first.packed_bytes) == (6, 2, 2)
    assert first.entropy == pytest.approx(1.4591, abs=1e-4)
    assert first.bits_per_value == 8 * first.coded_bytes / 6
    # 0.5 and 2 have no bits behind the point: a sign and an exponent.
    assert {name: by_name[name].bits for name in ("codes", "a.scale", "large", "half", "count")} == {
        "codes": 4, "a.scale": 9, "large": 32, "half": 16, "count": 64}  # fmt: skip
    assert {name for name, tensor in by_name.items() if tensor.entropy is not None} == set(BITS)
    size = (tmp_path / "m.packed").stat().st_size
    assert size - 60 <= sum(tensor.coded_bytes for tensor in told) < size


@settings(deadline=None, max_examples=30)
@given(st.integers(1, 8), st.booleans(), st.floats(0, 1), st.sampled_from(CODERS), st.data())
def test_integers_of_a_file_come_back(tmp_path_factory, bits, unsigned, density, coder, data):
    shape = data.draw(npst.array_shapes(min_dims=1, max_dims=4, min_side=0, max_side=7))
    rng = np.random.default_rng(data.draw(st.integers(0, 2**32)))
    low = 0 if unsigned else -(2 ** (bits - 1))
    values = rng.integers(low, low + 2**bits, shape) * (rng.random(shape) < density)
    tensors = {"w": torch.from_numpy(np.asarray(values, np.uint8 if unsigned else np.int8))}
    path = tmp_path_factory.mktemp("m") / "m.packed"
    (told,) = write_packed(path, tensors, {"w": bits}, {}, coder)
    (found,) = PackedFile(path).tensors(_forms(tensors, {"w": bits})).values()
    assert found.dtype == tensors["w"].dtype
    assert torch.equal(found, tensors["w"])
    if coder != "context":
        assert told.coded_bytes <= -(-values.size * bits // 8) + 6


def test_the_smallest_is_chosen(tmp_path):
    """Bits without structure go into a stream, which learns nothing; the tensor behind it decodes all the same."""
    rng = np.random.default_rng(0)
    noise = torch.from_numpy(rng.integers(-128, 128, 3000).astype(np.int8))
    sparse = torch.from_numpy((rng.random((60, 50)) < 0.5 * (np.arange(50) % 5 == 0)).astype(np.int8))
    tensors = {"a": sparse, "b": noise, "c": sparse}
    bits = dict.fromkeys(tensors, 8)
    told = {coder: write_packed(tmp_path / coder, tensors, bits, {}, coder) for coder in CODERS}
    sizes = {coder: [tensor.coded_bytes for tensor in rows] for coder, rows in told.items()}
    assert 3000 <= sizes["auto"][1] <= 3006 < sizes["context"][1]
    assert sizes["auto"][0] < min(sizes[coder][0] for coder in ("range", "zstd", "none")) * 0.9
    assert (tmp_path / "auto").stat().st_size == min((tmp_path / coder).stat().st_size for coder in CODERS)
    found = PackedFile(tmp_path / "auto").tensors(_forms(tensors, bits))
    assert all(torch.equal(found[name], tensors[name]) for name in tensors)


def test_what_takes_too_long_in_context_goes_to_the_range_coder(tmp_path, monkeypatch):
    monkeypatch.setattr("compress.tensor_coding._AFFORDABLE_BITS", 1000)
    values = torch.from_numpy((np.random.default_rng(0).random((3, 400)) < 0.1).astype(np.int8))
    tensors, bits = {"a": values, "b": values[:, :10]}, {"a": 2, "b": 2}
    first, second = write_packed(tmp_path / "auto", tensors, bits, {})
    alone, _ = write_packed(tmp_path / "range", tensors, bits, {}, "range")
    in_context, same = write_packed(tmp_path / "context", tensors, bits, {}, "context")
    assert first.coded_bytes == alone.coded_bytes > in_context.coded_bytes
    assert abs(second.coded_bytes - same.coded_bytes) <= 1


def test_half_precision_is_found_and_costs_half(tmp_path):
    values = torch.randn(400, generator=torch.Generator().manual_seed(0))
    sizes = []
    for value in (values, values.half().float(), values.bfloat16().float()):
        (told,) = write_packed(tmp_path / "m.packed", {"b": value}, {}, {})
        assert torch.equal(PackedFile(tmp_path / "m.packed").tensors({"b": TensorForm((400,))})["b"], value)
        sizes.append(told.coded_bytes)
    assert sizes[0] <= 1600
    assert sizes[1] <= 800
    assert sizes[2] <= 640


def test_every_damage_is_named(tmp_path):
    path = tmp_path / "m.packed"
    small = {name: value for name, value in TENSORS.items() if name != "large"}
    write_packed(path, small, BITS, {}, sets=SETS)
    good = path.read_bytes()
    for i in range(len(good)):
        for mask in (0x01, 0x80, 0xFF):
            path.write_bytes(good[:i] + bytes([good[i] ^ mask]) + good[i + 1 :])
            with pytest.raises(ArtifactError, match=r"m\.packed"):
                PackedFile(path)
    for data in (*(good[:length] for length in range(len(good))), good + b"\0", good + b"x"):
        path.write_bytes(data)
        with pytest.raises(ArtifactError, match=r"m\.packed"):
            PackedFile(path)
    with pytest.raises(ArtifactError, match=r"Cannot read .*none\.packed"):
        PackedFile(tmp_path / "none.packed")


@pytest.mark.parametrize("coder", ["auto", "range"])
def test_a_file_that_lies_is_refused_or_read_whole(tmp_path, coder):
    """Checksums keep accidents out; a file that was made to deceive must do no harm either."""
    path = tmp_path / "m.packed"
    small = {name: value for name, value in TENSORS.items() if name != "large"}
    write_packed(path, small, BITS, ABOUT, coder, SETS)
    body = path.read_bytes()[8:]
    rng = np.random.default_rng(0)
    refused = 0
    for i in range(90):
        lie = bytearray(body)
        if i % 3:
            lie[rng.integers(len(lie))] ^= int(rng.integers(1, 256))
        else:
            lie = lie[: rng.integers(len(lie))] + rng.bytes(rng.integers(3))
        path.write_bytes(MAGIC + bytes([VERSION]) + zlib.crc32(lie).to_bytes(4, "little") + lie)
        try:
            found = PackedFile(path).tensors(_forms(small))
        except ArtifactError:
            refused += 1
        else:
            assert all(found[name].shape == small[name].shape for name in small)
    assert refused > 45


def test_other_forms_than_were_written_are_refused(tmp_path):
    path = tmp_path / "m.packed"
    write_packed(path, {"a": torch.ones(4, 4)}, {}, {})
    for form in (TensorForm((4, 5)), TensorForm((4, 4), "float16"), TensorForm((4, 4), "int8", 2)):
        with pytest.raises(ArtifactError, match=r"m\.packed does not fit"):
            PackedFile(path).tensors({"a": form})
    with pytest.raises(ArtifactError, match=r"m\.packed does not fit"):
        PackedFile(path).tensors({"b": TensorForm((4, 4))})
    for dtype in ("load", "os.path", "__name__", "complex"):
        with pytest.raises(ArtifactError, match="dtype"):
            _ = TensorForm((1,), dtype).torch_dtype


def test_an_unknown_coder_of_a_file_is_refused(tmp_path):
    with pytest.raises(CompressError, match="'coder' parameter"):
        write_packed(tmp_path / "m.packed", TENSORS, BITS, {}, "huffman")
    assert not (tmp_path / "m.packed").exists()


def test_the_page_of_the_format_tells_the_version_that_is_written():
    page = (Path(__file__).parents[2] / "docs" / "packed_format.md").read_text()
    assert f"`{MAGIC.decode()}`" in page
    assert f"## Layout, version {VERSION}\n" in page
    told = set(re.findall(r"^\| (`.*?) \| ", page.partition("## Header")[2], flags=re.MULTILINE))
    names = {name for cell in told for name in re.findall(r"`(\w+)`", cell)}
    assert names == {
        "inputs", "layers", "bits", "activation_bits", "activation_ranges", "quantized", "formatted", "norms", "tied",
        "tensors", "about", "class_names", "input",
    }  # fmt: skip
    assert names <= set(_WORDS)
