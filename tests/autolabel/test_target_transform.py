"""Damages to a signed logarithm and back; features to comparable scales."""

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from autolabel.transform import FeatureScaler, TargetTransform

DAMAGES = st.lists(st.floats(-1e3, 1e3), min_size=1, max_size=30).map(np.array)


@settings(max_examples=60, derandomize=True, deadline=None)
@given(DAMAGES)
def test_inverse_undoes_forward_and_order_is_kept(damage):
    transform = TargetTransform.learn(damage)
    z = transform.forward(damage)
    assert np.isfinite(z).all()
    np.testing.assert_allclose(transform.inverse(z), damage, rtol=1e-12, atol=1e-15 * transform.scale)
    assert (np.diff(z[np.argsort(damage, kind="stable")]) >= 0.0).all()
    assert (transform.low, transform.high) == (z.min(), z.max())


def test_scale_is_the_lower_quartile_of_sizes():
    transform = TargetTransform.learn(np.array([-1.0, 2.0, 3.0, 4.0, 5.0]))
    assert transform.scale == 2.0
    assert transform.forward(np.array([2.0]))[0] == pytest.approx(np.arcsinh(1.0))


def test_scale_is_not_below_the_noise():
    damage = np.array([1e-6, 1e-3, 1e-2, 0.1])
    assert TargetTransform.learn(damage, np.full(4, 5e-3)).scale == 5e-3
    assert TargetTransform.learn(damage, np.full(4, np.nan)).scale == TargetTransform.learn(damage).scale


def test_zero_damages_have_a_transform():
    transform = TargetTransform.learn(np.zeros(3))
    assert transform.scale == 1.0
    assert (transform.inverse(transform.forward(np.zeros(3))) == 0.0).all()


def test_identity_changes_nothing():
    damage = np.array([-3.0, 0.5, 1e9])
    transform = TargetTransform.identity(damage)
    assert (transform.forward(damage) == damage).all()
    assert (transform.inverse(damage) == damage).all()
    assert (transform.low, transform.high, transform.span) == (-3.0, 1e9, 1e9 + 3.0)


def test_predictions_stay_within_a_factor_of_e_beyond_the_labels():
    transform = TargetTransform.learn(np.array([1.0, 10.0, 100.0, 1000.0]))
    far = transform.inverse(transform.clip(np.array([50.0])))[0]
    assert far == pytest.approx(1000.0 * np.e, rel=1e-4)


def test_json_keeps_every_bit():
    transform = TargetTransform.learn(np.array([0.1, 0.2, 0.7]))
    assert TargetTransform.from_json(transform.to_json()) == transform
    same = TargetTransform.identity(np.array([0.1]))
    assert TargetTransform.from_json(same.to_json()) == same


def test_feature_scaler_centres_and_silences_constants():
    rng = np.random.default_rng(0)
    x = np.column_stack([np.exp(4 * rng.standard_normal(200)), np.full(200, 7.0), np.zeros(200)])
    scaled = FeatureScaler.learn(x).apply(x)
    assert abs(scaled[:, 0].mean()) < 0.05
    assert scaled[:, 0].std() == pytest.approx(1.0, abs=0.05)
    np.testing.assert_allclose(scaled[:, 1:], 0.0, atol=1e-12)


def test_feature_scaler_limits_outliers_and_moved_constants():
    scaler = FeatureScaler.learn(np.column_stack([np.arange(10.0), np.full(10, 2.0)]))
    assert np.abs(scaler.apply(np.array([[1e30, -5.0]]))).max() <= 6.0
