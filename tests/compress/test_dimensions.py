"""Labels through reshapes, by hand."""

import numpy as np
import pytest

from compress.atoms import Atoms
from compress.dimensions import BatchLayout, Merge, Value, batch_layout, reshape


@pytest.fixture
def atoms() -> Atoms:
    return Atoms()


def outermost(atoms: Atoms, choice: int = 0) -> Merge:
    return Merge(atoms, lambda sizes, labels: choice)


def batch_of(n: int, *rest: int) -> Value:
    return Value.plain((n, *rest)).replace(0, n, None, np.arange(n))


def test_flatten_repeats_each_channel(atoms: Atoms) -> None:
    channels = atoms.new(3)
    x = batch_of(2, 3, 2, 2).replace(1, 3, channels)
    flat = reshape(x, (2, 12), outermost(atoms))
    np.testing.assert_array_equal(flat.labels[1], np.repeat(channels, 4))
    assert batch_layout(flat, 2) == BatchLayout(0, 1, 1)


def test_heads_are_joined_within(atoms: Atoms) -> None:
    channels = atoms.new(6)
    x = batch_of(2, 5, 6).replace(2, 6, channels)
    heads = reshape(x, (2, 5, 3, 2), outermost(atoms))
    assert heads.labels[3] is None
    np.testing.assert_array_equal(atoms.roots(channels), [0, 0, 2, 2, 4, 4])
    np.testing.assert_array_equal(heads.labels[2], [0, 2, 4])
    back = reshape(heads, (2, 5, 6), outermost(atoms))
    np.testing.assert_array_equal(back.labels[2], [0, 0, 2, 2, 4, 4])


def test_the_second_choice_cuts_across_heads(atoms: Atoms) -> None:
    channels = atoms.new(6)
    x = batch_of(2, 6).replace(1, 6, channels)
    heads = reshape(x, (2, 3, 2), outermost(atoms, 1))
    assert heads.labels[1] is None
    np.testing.assert_array_equal(atoms.roots(channels), [0, 1, 0, 1, 0, 1])


def test_tokens_fold_into_the_batch(atoms: Atoms) -> None:
    folded = reshape(batch_of(2, 5, 4), (10, 4), outermost(atoms))
    assert batch_layout(folded, 2) == BatchLayout(0, 1, 5)
    windows_first = Value.plain((3, 2, 4)).replace(1, 2, None, np.arange(2))
    assert batch_layout(reshape(windows_first, (6, 4), outermost(atoms)), 2) == BatchLayout(0, 3, 1)


def test_channels_folded_with_space_stay(atoms: Atoms) -> None:
    channels = atoms.new(4)
    x = batch_of(2, 4, 9).replace(1, 4, channels)
    out = reshape(x, (2, 6, 6), outermost(atoms))
    assert out.labels[1] is None
    assert out.labels[2] is None
    assert "mixes" in atoms.reason(0)


def test_two_channel_dimensions_do_not_fold(atoms: Atoms) -> None:
    rows, columns = atoms.new(2), atoms.new(3)
    x = Value((2, 3), (rows, columns), (None, None))
    assert reshape(x, (6,), outermost(atoms)).labels[0] is None
    assert "folds" in atoms.reason(0)
    assert "folds" in atoms.reason(2)


def test_repeated_values_fold_into_channels(atoms: Atoms) -> None:
    heads, copies = atoms.new(2), atoms.new(3, free=True)
    x = Value((2, 3), (heads, copies), (None, None))
    np.testing.assert_array_equal(reshape(x, (6,), outermost(atoms)).labels[0], [0, 0, 0, 1, 1, 1])
    assert atoms.reason(0) is None
    assert "folds" in atoms.reason(2)
