"""Which units are drawn for measuring."""

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from autolabel.sampling import sample_units
from compress.errors import CompressError
from compress.units import UnitTable


def _units(sizes, layers=0):
    ids = [f"c{g}:out[{i}]" for g, size in enumerate(sizes) for i in range(size)] + [f"c{k}" for k in range(layers)]
    group = np.array([unit.split("[")[0] for unit in ids])
    index = np.array([i for size in sizes for i in range(size)] + [0] * layers)
    kind = np.array(["channel"] * sum(sizes) + ["layer"] * layers)
    return UnitTable(tuple(ids), group, index, kind)


def _counts(units, rows):
    return [int((units.group[rows] == name).sum()) for name in dict.fromkeys(units.group.tolist())]


def test_kinds():
    units = _units([3, 4], layers=2)
    assert sample_units(units, None).tolist() == list(range(7))
    assert sample_units(units, 99, kind="layer").tolist() == [7, 8]
    assert len(sample_units(units, None, kind="all")) == 9


@settings(max_examples=60, derandomize=True, deadline=None)
@given(
    st.lists(st.integers(1, 20), min_size=1, max_size=8),
    st.integers(0, 60),
    st.integers(0, 3),
    st.sampled_from(["uniform", "stratified"]),
)
def test_samples_are_distinct_sorted_and_repeatable(sizes, n, seed, strategy):
    units = _units(sizes, layers=2)
    rows = sample_units(units, n, seed, strategy)
    assert rows.dtype == np.int64
    assert len(rows) == min(n, sum(sizes))
    assert (np.diff(rows) > 0).all()
    assert units.removable[rows].all()
    np.testing.assert_array_equal(rows, sample_units(units, n, seed, strategy))


@settings(max_examples=60, derandomize=True, deadline=None)
@given(st.lists(st.integers(1, 40), min_size=1, max_size=8), st.integers(0, 80))
def test_stratified_gives_every_group_two_before_any_a_surplus(sizes, n):
    units = _units(sizes)
    counts = _counts(units, sample_units(units, n, 0, "stratified"))
    floors = [min(2, size) for size in sizes]
    if n >= sum(floors):
        assert all(count >= floor for count, floor in zip(counts, floors, strict=True))
    if n <= len(sizes):
        assert max(counts, default=0) <= 1


def test_stratified_is_proportional():
    units = _units([16, 32, 64])
    assert _counts(units, sample_units(units, 28, 0, "stratified")) == [4, 8, 16]
    # The smallest group has its floor, the others share the rest 1 : 2.
    assert _counts(_units([4, 100, 200]), sample_units(_units([4, 100, 200]), 32, 0, "stratified")) == [2, 10, 20]


def test_a_larger_uniform_sample_contains_the_smaller():
    units = _units([20, 20])
    assert set(sample_units(units, 7, 3)) <= set(sample_units(units, 19, 3))


def test_seeds_differ_and_known_units_are_skipped():
    units = _units([20, 20])
    assert sample_units(units, 10, 0).tolist() != sample_units(units, 10, 1).tolist()
    known = units.ids[:15]
    assert (sample_units(units, 10, 0, "stratified", known=known) >= 15).all()
    assert len(sample_units(units, 10, known=units.ids)) == 0


@pytest.mark.parametrize(
    ("arguments", "name"),
    [
        ({"n": -1}, "n"),
        ({"n": True}, "n"),
        ({"n": 2.5}, "n"),
        ({"n": 2, "strategy": "best"}, "strategy"),
        ({"n": 2, "kind": "head"}, "kind"),
    ],
)
def test_wrong_settings_are_named(arguments, name):
    with pytest.raises(CompressError, match=f"The '{name}' parameter of sample_units"):
        sample_units(_units([4]), **arguments)
