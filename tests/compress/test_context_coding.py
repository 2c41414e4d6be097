"""Coding in context: what comes back, on every machine the same, and how near or below the entropy it gets."""

import contextlib
import hashlib
import math

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as npst

from compress.arithmetic_coding import BitDecoder, BitEncoder
from compress.bit_model import ODDS, SQUASHED, BitModel
from compress.context_coding import (
    code_bytes,
    code_floats,
    code_integers,
    code_set,
    code_text,
    mantissa_bits,
)
from compress.entropy_coding import entropy_bits
from compress.errors import ArtifactError


def _encode(code, *arguments):
    encoder = BitEncoder()
    code(BitModel(encoder), *arguments)
    return encoder.finish()


def _decoder(data):
    return BitModel(BitDecoder(data))


@given(st.lists(st.tuples(st.integers(0, 1), st.integers(1, 65535)), max_size=400))
def test_bits_come_back(bits):
    encoder = BitEncoder()
    for bit, probability in bits:
        encoder.code(bit, probability)
    data = encoder.finish()
    decoder = BitDecoder(data)
    assert [decoder.code(0, probability) for _, probability in bits] == [bit for bit, _ in bits]
    ideal = sum(-math.log2((p if bit else 65536 - p) / 65536) for bit, p in bits) / 8
    assert len(data) <= ideal * 1.001 + 2


def test_known_bytes():
    # Three even bits 1, 0, 1 (a one takes the lower half) leave [0x40000000, 0x5FFFFFFF]: one byte lies in it.
    encoder = BitEncoder()
    for bit in (1, 0, 1):
        encoder.code(bit, 32768)
    assert encoder.finish() == b"\x40"
    assert BitEncoder().finish() == b""


def test_an_encoder_goes_back_as_if_nothing_had_been():
    encoder, other = BitEncoder(), BitEncoder()
    for each in (encoder, other):
        for i in range(50):
            each.code(i % 3 == 0, 20000)
    state = encoder.state()
    for _ in range(100):
        encoder.code(1, 300)
    encoder.rewind(state)
    for each in (encoder, other):
        each.code(0, 5)
    assert encoder.finish() == other.finish()


def test_the_tables_are_the_same_everywhere():
    """Their entries are rounded from real numbers, none of which another `math` could round otherwise."""
    for i in range(4096):
        odds = 256 * math.log((i + 0.5) / (4095.5 - i))
        assert abs(odds - math.floor(odds) - 0.5) > 1e-6
    for x in range(-2815, 2816):
        squashed = 65536 / (1 + math.exp(-x / 256))
        assert abs(squashed - math.floor(squashed) - 0.5) > 1e-6
    assert (min(SQUASHED), max(SQUASHED)) == (1, 65535)
    digest = hashlib.sha256(repr((ODDS, SQUASHED)).encode()).hexdigest()
    assert digest.startswith("d7c98e35")


def test_a_stream_is_the_same_everywhere():
    values = (np.arange(600) * 7919 % 31 % 5 - 2).astype(np.int8).reshape(6, 4, 5, 5)
    digest = hashlib.sha256(_encode(code_integers, values, "w")).hexdigest()
    assert digest.startswith("5d22ddec")


@settings(deadline=None, max_examples=60)
@given(st.integers(1, 8), st.floats(0, 1), st.data())
def test_integers_come_back(bits, density, data):
    shape = data.draw(npst.array_shapes(min_dims=0, max_dims=5, min_side=0, max_side=6))
    seed = data.draw(st.integers(0, 2**32))
    rng = np.random.default_rng(seed)
    values = rng.integers(-(2 ** (bits - 1)), 2 ** (bits - 1), shape) * (rng.random(shape) < density)
    values = np.asarray(values, np.int8)
    found = code_integers(_decoder(_encode(code_integers, values, "w")), np.zeros_like(values), "w")
    assert found.dtype == np.int8
    np.testing.assert_array_equal(found, values)


@pytest.mark.parametrize(
    ("symbols", "chances", "shape"),
    [
        ([0, 1], [0.97, 0.03], (60, 300)),
        ([-2, -1, 0, 1, 2], [0.01, 0.02, 0.94, 0.02, 0.01], (80, 200)),
        ([-1, 0, 1], [0.25, 0.5, 0.25], (50, 200)),
        ([-3, -2, -1, 0, 1, 2, 3], [0.05, 0.1, 0.2, 0.3, 0.2, 0.1, 0.05], (20, 20, 5, 5)),
    ],
)
def test_symbols_without_structure_cost_their_entropy(symbols, chances, shape):
    values = np.random.default_rng(0).choice(np.array(symbols, np.int8), shape, p=chances)
    assert len(_encode(code_integers, values, "w")) <= 1.015 * entropy_bits(values) * values.size / 8 + 4


def test_rows_and_columns_of_different_density_cost_far_less():
    rng = np.random.default_rng(0)
    share = np.outer(np.exp(rng.normal(0, 1.2, 300)), np.exp(rng.normal(0, 1.5, 784)))
    share = np.minimum(share * 0.03 / share.mean(), 0.9)
    drawn = rng.random(share.shape) < share
    values = (drawn * rng.choice(np.array([-2, -1, 1, 2]), share.shape)).astype(np.int8)
    order0 = entropy_bits(values) * values.size / 8
    coded = len(_encode(code_integers, values, "w"))
    # What a coder would take that was told the chance of each place, and the 2 bits of each value.
    known = np.where(drawn, 2 - np.log2(share), -np.log2(1 - share)).sum() / 8
    assert known < coded < 0.8 * order0


def test_few_symbols_need_no_table():
    values = np.random.default_rng(1).choice(np.array([-1, 0, 1], np.int8), (10, 10), p=[0.1, 0.8, 0.1])
    assert len(_encode(code_integers, values, "w")) <= entropy_bits(values) * 100 / 8 + 4
    assert len(_encode(code_integers, np.full((100, 100), -3, np.int8), "w")) <= 4
    assert len(_encode(code_integers, np.zeros((0, 4), np.int8), "w")) <= 1


def test_a_commonest_symbol_that_is_not_zero_costs_no_more():
    values = np.random.default_rng(1).choice(np.array([-1, 0, 1], np.int8), (40, 50), p=[0.03, 0.92, 0.05])
    lengths = [len(_encode(code_integers, values + shift, "w")) for shift in (0, 5, -90)]
    assert max(lengths) - min(lengths) <= 1


_WORDS = st.integers(0, 2**32 - 1)


@settings(deadline=None)
@given(st.lists(_WORDS, max_size=30), st.integers(0, 23))
def test_floats_come_back_bit_for_bit(words, zeros):
    values = (np.array(words, np.uint32) >> zeros << zeros).view(np.float32)
    found = code_floats(_decoder(_encode(code_floats, values, "b")), np.zeros_like(values), "b")
    np.testing.assert_array_equal(found.view(np.uint32), values.view(np.uint32))


def test_floats_cost_the_bits_that_they_have():
    assert mantissa_bits(np.array([0.0, 1.0, -2.0], np.float32)) == 0
    assert mantissa_bits(np.array([1.5, 1.25], np.float32)) == 2
    values = np.random.default_rng(0).normal(0, 0.1, 200).astype(np.float32)
    halves = values.astype(np.float16).astype(np.float32)
    assert mantissa_bits(halves) == 10
    # Exponents and signs take about 3 bits of the 9 (and are learned first), each bit behind the point itself.
    assert len(_encode(code_floats, halves, "b")) <= 200 * 14 / 8
    assert len(_encode(code_floats, values, "b")) <= 200 * 27 / 8


@given(st.binary(max_size=60))
def test_bytes_and_text_come_back(data):
    values = np.frombuffer(data, np.uint8)
    found = code_bytes(_decoder(_encode(code_bytes, values, "int64")), np.zeros_like(values), "int64")
    assert found.tobytes() == data
    for usual in (b"", b"the usual text"):
        assert code_text(_decoder(_encode(code_text, data, usual)), b"", usual) == data


def test_usual_text_costs_next_to_nothing():
    usual = b'{"model":"lenet5","data":"mnist"}{"model":"lenet300","data":"digits"}'
    text = b'{"model":"lenet300","data":"mnist"}'
    assert len(_encode(code_text, text, usual)) <= 5 < 25 <= len(_encode(code_text, text, b""))


@given(st.sets(st.integers(0, 300)))
def test_sets_come_back(members):
    assert code_set(_decoder(_encode(code_set, sorted(members))), []) == sorted(members)


def test_ranges_and_scattered_members_are_both_short():
    assert len(_encode(code_set, range(20, 500))) <= 6
    scattered = np.random.default_rng(0).permutation(500)[:100].tolist()
    assert len(_encode(code_set, scattered)) <= 500 * 0.722 / 8 + 7  # the entropy of 1 in 5 is 0.722 bits
    with pytest.raises(ArtifactError, match="set"):
        code_set(_decoder(_encode(code_set, [50])), [], 50)


@given(st.binary(max_size=40))
@settings(deadline=None, max_examples=40)
def test_any_bytes_decode_or_are_refused(data):
    for code, blank in (
        (code_integers, np.zeros((3, 4, 2, 2), np.int8)),
        (code_floats, np.zeros(9, np.float32)),
        (code_bytes, np.zeros(9, np.uint8)),
    ):
        with contextlib.suppress(ArtifactError):
            assert code(_decoder(data), blank, "t").shape == blank.shape
    with contextlib.suppress(ArtifactError):
        assert max(code_set(_decoder(data), [], 100), default=0) < 100
    with contextlib.suppress(ArtifactError):
        code_text(_decoder(data), b"")
