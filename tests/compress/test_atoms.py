"""Atoms against a naive partition."""

import numpy as np
from hypothesis import given, settings
from hypothesis import strategies as st

from compress.atoms import Atoms


def test_joining_keeps_the_first_reason() -> None:
    atoms = Atoms()
    a = atoms.new(4)
    atoms.block(a[2:3], "later")
    atoms.block(a[:1], "first")
    atoms.join(a[:1], a[2:3])
    assert atoms.reason(2) == atoms.reason(0) == "first"
    assert atoms.reason(1) is None
    atoms.join(a[1:2], a[3:4])
    atoms.block(a[3:4], "other")
    assert atoms.reason(1) == "other"


def test_free_until_a_parameter_is_met() -> None:
    atoms = Atoms()
    made_up, real = atoms.new(3, free=True), atoms.new(3)
    assert atoms.free(made_up)
    assert not atoms.free(real)
    atoms.join(made_up, real)
    assert not atoms.free(made_up)
    # The flag travels through a chain that is joined in one call.
    a, b = atoms.new(2, free=True), atoms.new(1)
    atoms.join(np.array([a[0], a[1]]), np.array([a[1], b[0]]))
    assert not atoms.free(a)


@given(st.lists(st.lists(st.tuples(st.integers(0, 11), st.integers(0, 11)), max_size=6), max_size=6))
@settings(max_examples=60, derandomize=True, deadline=None)
def test_joins_agree_with_a_naive_partition(rounds: list[list[tuple[int, int]]]) -> None:
    atoms = Atoms()
    labels = atoms.new(12)
    atoms.block(labels[7:8], "seven")
    naive = list(range(12))
    for pairs in rounds:
        if not pairs:
            continue
        left, right = (np.array(side, dtype=np.int64) for side in zip(*pairs, strict=True))
        atoms.join(left, right)
        for a, b in pairs:
            low, high = sorted((naive[a], naive[b]))
            naive = [low if part == high else part for part in naive]
    assert atoms.roots(labels).tolist() == naive
    assert [atoms.reason(i) for i in range(12)] == ["seven" if part == naive[7] else None for part in naive]
