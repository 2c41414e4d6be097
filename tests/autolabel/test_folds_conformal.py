"""Folds keep groups whole; intervals cover units of groups that were never seen."""

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from autolabel.conformal import Calibration
from autolabel.folds import assign_folds, group_keys
from autolabel.tables import FeatureTable


def _features(group, model=None):
    n = len(group)
    model = np.full(n, "net") if model is None else np.array(model)
    ids = tuple(f"u{i}" for i in range(n))
    return FeatureTable(np.zeros((n, 1), np.float32), ("f",), ids, np.array(group), model)


def test_one_network_is_split_by_group():
    keys = group_keys(_features(["b", "a", "b", "c"]))
    assert keys[0] == keys[2]
    assert len(set(keys.tolist())) == 3


def test_two_networks_with_equal_group_names_have_groups_of_their_own():
    keys = group_keys(_features(["a", "a", "b", "b"], ["m1", "m2", "m1", "m2"]))
    assert len(set(keys.tolist())) == 4


def test_three_networks_are_split_by_network():
    keys = group_keys(_features(list("abcabc"), ["m1", "m1", "m2", "m2", "m3", "m3"]))
    assert keys.tolist() == [0, 0, 1, 1, 2, 2]


@settings(max_examples=50, derandomize=True, deadline=None)
@given(st.lists(st.integers(0, 9), min_size=1, max_size=60), st.integers(2, 8), st.integers(0, 5))
def test_folds_never_split_a_key_and_none_is_empty(keys, n_folds, seed):
    keys = np.array(keys)
    fold = assign_folds(keys, n_folds, seed)
    for key in set(keys.tolist()):
        assert len(set(fold[keys == key].tolist())) == 1
    assert set(fold.tolist()) == set(range(min(n_folds, len(set(keys.tolist())))))
    np.testing.assert_array_equal(fold, assign_folds(keys, n_folds, seed))


def test_folds_are_balanced():
    keys = np.repeat(np.arange(7), [40, 40, 20, 20, 20, 10, 10])
    assert np.bincount(assign_folds(keys, 4, 0)).tolist() == [40, 40, 40, 40]


def test_half_width_by_hand():
    # Two groups of two: the worse one (errors 3, 4) counts twice, so its errors weigh 1/3 each, the others 1/6.
    errors, keys = np.array([1.0, -2.0, 3.0, -4.0]), np.array([0, 0, 1, 1])
    assert Calibration.learn(errors, keys, 1 / 6).half_width == 1.0
    assert Calibration.learn(errors, keys, 1 / 3).half_width == 2.0
    assert Calibration.learn(errors, keys, 2 / 3).half_width == 3.0
    assert Calibration.learn(errors, keys, 0.9).half_width == 4.0


def test_a_large_group_counts_no_more_than_a_small_one():
    errors = np.concatenate([np.full(1000, 0.1), np.full(2, 5.0)])
    assert Calibration.learn(errors, np.repeat([0, 1], [1000, 2]), 0.5).half_width == 5.0


def test_interval_and_json():
    calibration = Calibration(0.5, 0.9, 4)
    lower, upper = calibration.interval(np.array([1.0, 2.0]))
    assert lower.tolist() == [0.5, 1.5]
    assert upper.tolist() == [1.5, 2.5]
    assert Calibration.from_json(calibration.to_json()) == calibration


@pytest.mark.parametrize("shift", [0.0, 0.5, 1.0])
@pytest.mark.parametrize("n_groups", [5, 9, 20])
def test_coverage_of_units_of_new_exchangeable_groups(n_groups, shift):
    rng = np.random.default_rng(7)
    covered = []
    for _ in range(150):
        keys = np.repeat(np.arange(n_groups + 1), 16)
        errors = shift * rng.standard_normal(n_groups + 1)[keys] + rng.standard_normal(len(keys))
        seen = keys < n_groups
        width = Calibration.learn(errors[seen], keys[seen], 0.9).half_width
        covered.append(float((np.abs(errors[~seen]) <= width).mean()))
    assert 0.87 <= np.mean(covered) <= 0.95
