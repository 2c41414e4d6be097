"""Explanations name the features that made the damage."""

import numpy as np
import pytest

from autolabel.explanation import explain, top_features
from autolabel.labelers import GBDTLabeler, MeanLabeler, MLPLabeler, RidgeLabeler
from autolabel.tables import FeatureTable, LabelTable
from compress.errors import CompressError

NAMES = ("noise_a", "saliency", "noise_b", "redundancy")


@pytest.fixture(scope="module")
def tables():
    rng = np.random.default_rng(0)
    ids = [f"c{g}:out[{i}]" for g in range(6) for i in range(15)] + [f"c{g}" for g in range(6)]
    group = np.array([unit.split("[")[0] for unit in ids])
    values = rng.standard_normal((len(ids), 4)).astype(np.float32)
    damage = np.full((len(ids), 3), np.nan)
    damage[:90, 0] = 1e-3 * np.exp(2 * values[:90, 1] - values[:90, 3])
    damage[90:, 1:] = np.exp(values[90:, :1]) * np.array([1e-4, 1.0])
    nothing = np.full(damage.shape, np.nan)
    features = FeatureTable(values, NAMES, tuple(ids), group, np.full(len(ids), "net"))
    source = np.full(len(ids), "measured")
    labels = LabelTable(tuple(ids), ("removed", "8bit", "2bit"), damage, nothing, nothing, nothing, source)
    return features, labels


@pytest.mark.parametrize("labeler", [GBDTLabeler(), RidgeLabeler(), MLPLabeler()], ids=lambda labeler: labeler.name)
def test_the_features_that_made_the_damage_come_first(labeler, tables):
    features, labels = tables
    top = top_features(labeler.fit(features, labels), features)
    assert [weight.name for weight in top[:2]] == ["saliency", "redundancy"]
    assert [weight.direction for weight in top[:2]] == [1, -1]
    assert sum(weight.share for weight in top) == pytest.approx(1.0)
    assert top[0].share > 0.4
    assert len(top_features(labeler, features, n=1)) == 1


def test_bits_matter_most_among_bit_widths(tables):
    features, labels = tables
    top = top_features(RidgeLabeler().fit(features, labels), features, "2bit")
    assert (top[0].name, top[0].direction) == ("bits", -1)


@pytest.mark.parametrize("labeler", [GBDTLabeler(), RidgeLabeler(), MLPLabeler()], ids=lambda labeler: labeler.name)
def test_contributions_of_a_unit_sum_to_its_prediction(labeler, tables):
    from autolabel.explanation import _contributions

    features, labels = tables
    fitted = labeler.fit(features, labels).problem_of("removed")
    x = fitted.problem.rows(features.values[:20], features.names, "removed")
    np.testing.assert_allclose(_contributions(fitted, x).sum(axis=1), fitted.regressor.predict(x), atol=1e-9)


def test_words_name_the_unit_the_interval_and_the_reasons(tables):
    features, labels = tables
    labeler = GBDTLabeler().fit(features, labels)
    worst = features.unit_ids[int(np.nanargmax(labels.damage[:, 0]))]
    lines = explain(labeler, features, worst, n=2).split("\n")
    assert len(lines) == 3
    assert lines[0].startswith(f"{worst}, removed: predicted damage ")
    assert "90% interval" in lines[0]
    assert any("saliency = " in line and line.strip().startswith("+") for line in lines[1:])
    assert "of 90 units" in lines[1]
    assert explain(labeler, features, "c3").startswith("c3, 8bit:")
    assert explain(labeler, features, "c3", "2bit").startswith("c3, 2bit:")


def test_the_mean_has_no_reasons(tables):
    features, labels = tables
    labeler = MeanLabeler().fit(features, labels)
    assert top_features(labeler, features) == ()
    assert "No feature moved it" in explain(labeler, features, features.unit_ids[0])


def test_unknown_units_and_choices_are_refused(tables):
    features, labels = tables
    labeler = MeanLabeler().fit(features, labels)
    with pytest.raises(CompressError, match="'c99'"):
        explain(labeler, features, "c99")
    with pytest.raises(CompressError, match="'2bit'"):
        explain(labeler, features, features.unit_ids[0], "2bit")
    with pytest.raises(CompressError, match="'5bit'"):
        top_features(labeler, features, "5bit")
    with pytest.raises(CompressError, match="can have"):
        top_features(labeler, features.select(np.arange(3)), "8bit")
