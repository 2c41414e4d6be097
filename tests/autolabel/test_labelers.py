"""What each labeler must learn from data of known structure, and closed forms where there are any."""

from dataclasses import replace

import numpy as np
import pytest
from sklearn.linear_model import Ridge

from autolabel.evaluation import compare, coverage, held_out_predictions
from autolabel.labelers import GBDTLabeler, MeanLabeler, MLPLabeler, RidgeLabeler
from autolabel.tables import FeatureTable, LabelTable
from autolabel.transform import FeatureScaler, TargetTransform
from compress.errors import CompressError

LEARNERS = [GBDTLabeler(rounds=80), MLPLabeler(steps=60, learning_rate=0.01), RidgeLabeler()]


def _tables(values, damage, ids, groups, choices=("removed",), model=None):
    names = tuple(f"f{i}" for i in range(values.shape[1]))
    model = np.full(len(ids), "net") if model is None else np.array(model)
    features = FeatureTable(values.astype(np.float32), names, tuple(ids), np.array(groups), model)
    nothing = np.full(damage.shape, np.nan)
    source = np.full(len(ids), "measured")
    return features, LabelTable(tuple(ids), tuple(choices), damage, nothing, nothing, nothing, source)


def _heavy_tailed(groups=10, per=20, noise=0.3, seed=0):
    """Damages over four orders of magnitude: a signal all layers share, an effect of the layer, and noise."""
    rng = np.random.default_rng(seed)
    key = np.repeat(np.arange(groups), per)
    values = rng.standard_normal((len(key), 10))
    layer = 0.3 * rng.standard_normal(groups)[key]
    z = 1.5 * values[:, 0] + values[:, 1] + layer + noise * rng.standard_normal(len(key))
    ids = [f"conv{k}:out[{i % per}]" for i, k in enumerate(key)]
    return _tables(values, 1e-3 * np.sinh(z)[:, None], ids, [f"conv{k}:out" for k in key])


@pytest.mark.parametrize("labeler", LEARNERS, ids=lambda labeler: labeler.name)
def test_learners_order_units_of_layers_they_never_saw(labeler):
    features, labels = _heavy_tailed()
    learned, single = compare(labels, held_out_predictions(labeler, features, labels), {"f0": features.column("f0")})
    assert learned.spearman > 0.85
    assert learned.within > 0.85
    assert learned.spearman_low > single.spearman_high


@pytest.mark.parametrize("labeler", LEARNERS, ids=lambda labeler: labeler.name)
def test_learners_beat_the_mean_in_error(labeler):
    features, labels = _heavy_tailed()
    error = {}
    for one in (labeler, MeanLabeler()):
        predicted = held_out_predictions(one, features, labels).damage
        error[one.name] = np.abs(np.arcsinh(predicted / 1e-3) - np.arcsinh(labels.damage / 1e-3)).mean()
    assert error[labeler.name] < 0.5 * error["mean"]


@pytest.mark.parametrize("labeler", [RidgeLabeler(), GBDTLabeler(rounds=60)], ids=lambda labeler: labeler.name)
def test_intervals_cover_layers_that_were_never_seen(labeler):
    covered, sizes = [], []
    for seed in range(3):
        features, labels = _heavy_tailed(groups=14, per=15, seed=seed)
        new = np.arange(10 * 15, 14 * 15)
        damage = labels.damage.copy()
        damage[new] = np.nan
        known = LabelTable(
            labels.unit_ids, labels.choices, damage, labels.std_err, labels.lower, labels.upper, labels.source
        )
        predicted = labeler.fit(features, known).predict(features)
        covered.append(((labels.damage >= predicted.lower) & (labels.damage <= predicted.upper))[new].mean())
        sizes.append(np.median((predicted.upper - predicted.lower)[new]) / np.ptp(labels.damage))
    assert 0.85 <= np.mean(covered) <= 0.99
    # Not by being as wide as everything.
    assert np.mean(sizes) < 0.2


def test_nested_coverage_is_reported():
    features, labels = _heavy_tailed(groups=6, per=8)
    assert coverage(labels, held_out_predictions(RidgeLabeler(), features, labels, intervals=True)) > 0.8
    assert coverage(labels, held_out_predictions(RidgeLabeler(), features, labels)) is None


def test_a_wider_coverage_gives_wider_intervals():
    features, labels = _heavy_tailed(groups=6, per=10)
    half, most = (RidgeLabeler(coverage=c).fit(features, labels).predict(features) for c in (0.5, 0.95))
    assert (most.upper - most.lower > half.upper - half.lower).all()
    np.testing.assert_array_equal(half.damage, most.damage)


def test_calibration_can_be_skipped():
    features, labels = _heavy_tailed(groups=4, per=5)
    quick = RidgeLabeler(calibrate=False).fit(features, labels).predict(features)
    np.testing.assert_array_equal(quick.damage, RidgeLabeler().fit(features, labels).predict(features).damage)
    assert (quick.lower <= labels.damage.min()).all()


def test_mean_is_the_arithmetic_mean_of_each_choice():
    ids = ["a:out[0]", "b:out[0]", "b:out[1]", "a", "b"]
    damage = np.array(
        [[1.0, np.nan, np.nan], [2.0, np.nan, np.nan], [np.nan] * 3, [np.nan, 0.1, 5.0], [np.nan, 0.3, 7.0]]
    )
    features, labels = _tables(
        np.zeros((5, 2)), damage, ids, ["a:out", "b:out", "b:out", "a", "b"], ("removed", "8bit", "2bit")
    )
    predicted = MeanLabeler().fit(features, labels).predict(features)
    np.testing.assert_array_equal(predicted.damage[:, 0], [1.5, 1.5, 1.5, np.nan, np.nan])
    np.testing.assert_allclose(predicted.damage[3:, 1:], [[0.2, 6.0]] * 2, rtol=1e-15)


def test_ridge_is_ridge_on_the_transformed_scale():
    features, labels = _heavy_tailed(groups=5, per=10)
    labeler = RidgeLabeler(alphas=(0.1,)).fit(features, labels)
    damage = labels.damage[:, 0]
    transform = TargetTransform.learn(damage)
    scaled = FeatureScaler.learn(features.values).apply(features.values)
    expected = Ridge(alpha=0.1 * len(damage)).fit(scaled, transform.forward(damage)).predict(scaled)
    np.testing.assert_allclose(labeler.predict(features).damage[:, 0], transform.inverse(expected), rtol=1e-8)


def test_few_layers_suffice_for_all_bit_widths():
    """The damage of a layer falls by 4 with every bit; 12 layers are enough to order 60 rows of layers held out."""
    rng = np.random.default_rng(0)
    choices = ("8bit", "6bit", "4bit", "3bit", "2bit")
    values = rng.standard_normal((12, 3))
    damage = np.exp(values[:, :1]) * 4.0 ** -np.array([8.0, 6.0, 4.0, 3.0, 2.0])
    ids = [f"conv{k}" for k in range(12)]
    features, labels = _tables(values, damage, ids, ids, choices)
    for labeler in (RidgeLabeler(), GBDTLabeler()):
        predicted = held_out_predictions(labeler, features, labels).damage
        assert np.corrcoef(np.log(damage.ravel()), np.arcsinh(predicted.ravel() / 1e-5))[0, 1] > 0.9
    trees = GBDTLabeler().fit(features, labels).predict(features).damage
    assert (np.diff(trees, axis=1) >= 0.0).all()


def test_several_networks_are_held_out_whole():
    features, labels = _heavy_tailed(groups=6, per=10)
    model = np.repeat(["m1", "m2", "m3"], 20)
    several = FeatureTable(features.values, features.names, features.unit_ids, features.group, model)
    labeler = RidgeLabeler().fit(several, labels)
    assert labeler.problem_of("removed").calibration.n_groups == 3
    row = compare(labels, held_out_predictions(labeler, several, labels), model=model)[0]
    assert set(row.by_model) == {"m1", "m2", "m3"}
    assert min(row.by_model.values()) > 0.8


def test_networks_with_equal_unit_ids_are_matched_by_order():
    features, labels = _heavy_tailed(groups=4, per=10)
    ids = tuple(unit.replace("conv2", "conv0").replace("conv3", "conv1") for unit in features.unit_ids)
    model = np.repeat(["m1", "m2"], 20)
    features = FeatureTable(features.values, features.names, ids, np.array([u.split("[")[0] for u in ids]), model)
    labels = LabelTable(ids, labels.choices, labels.damage, labels.std_err, labels.lower, labels.upper, labels.source)
    labeler = RidgeLabeler().fit(features, labels)
    assert labeler.problem_of("removed").calibration.n_groups == 4
    held_out = held_out_predictions(labeler, features, labels)
    assert compare(labels, held_out, group=features.group, model=model)[0].spearman > 0.8


def test_a_choice_without_any_label_is_said_and_left_out():
    features, labels = _heavy_tailed(groups=3, per=5)
    damage = np.column_stack([labels.damage, np.full(len(labels.damage), np.nan)])
    nothing = np.full(damage.shape, np.nan)
    both = LabelTable(labels.unit_ids, ("removed", "half"), damage, nothing, nothing, nothing, labels.source)
    with pytest.warns(UserWarning, match="'half'"):
        labeler = RidgeLabeler().fit(features, both)
    assert np.isnan(labeler.predict(features).damage[:, 1]).all()
    with pytest.raises(CompressError, match="nothing of 'half'"):
        labeler.problem_of("half")


@pytest.mark.parametrize(
    ("cls", "setting"),
    [
        (GBDTLabeler, {"rounds": 0}),
        (GBDTLabeler, {"leaves": 1}),
        (GBDTLabeler, {"learning_rate": 0.0}),
        (GBDTLabeler, {"feature_fraction": 1.5}),
        (MLPLabeler, {"hidden": 0}),
        (MLPLabeler, {"nets": 0}),
        (MLPLabeler, {"steps": 0}),
        (MLPLabeler, {"learning_rate": -1.0}),
        (MLPLabeler, {"weight_decay": -0.1}),
        (RidgeLabeler, {"alphas": ()}),
        (RidgeLabeler, {"alphas": (0.0,)}),
    ],
)
def test_settings_are_checked_by_name(cls, setting):
    with pytest.raises(CompressError, match=f"The '{next(iter(setting))}' parameter of {cls.__name__}"):
        cls(**setting)


def test_silent_units_of_a_layer_without_labels_are_not_said_to_help():
    rng = np.random.default_rng(0)
    logs = np.concatenate([rng.normal(-3.0, 0.5, 60), np.full(20, -12.0)])
    damage = 10 ** (logs[:, None] + 1)
    damage[60:] = np.nan
    ids = [f"conv{i // 20}:out[{i % 20}]" for i in range(80)]
    features, labels = _tables(logs[:, None], damage, ids, [name.partition("[")[0] for name in ids])
    features = replace(features, names=("error_refitted_log",))
    predicted = GBDTLabeler().fit(features, labels).predict(features).damage[:, 0]
    # No less than the unit of least damage among those that were measured, from which their logs lie far away.
    assert predicted[60:].min() >= predicted[:60].min()
    assert predicted[60:].max() <= np.quantile(predicted[:60], 0.1)
