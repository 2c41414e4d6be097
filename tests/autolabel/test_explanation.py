"""Explanations name the features that made the damage."""

from dataclasses import replace

import numpy as np
import pytest
import torch
from torch import nn

import autolabel
from autolabel.explanation import explain, relatives, top_features
from autolabel.labelers import GBDTLabeler, MeanLabeler, MLPLabeler, RidgeLabeler
from autolabel.tables import FeatureTable, LabelTable
from compress.counting import unit_costs
from compress.errors import CompressError
from compress.structure import analyze

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
    lines = str(explain(labeler, features, worst, n=2)).split("\n")
    assert len(lines) == 3
    assert lines[0].startswith(f"{worst}, removed: predicted damage ")
    assert "90% interval" in lines[0]
    assert any("saliency = " in line and line.strip().startswith("+") for line in lines[1:])
    assert "of 90 units" in lines[1]
    # What a feature of the package is stands behind its number.
    own = replace(features, names=("act_mean", "act_zeros", "act_std", "act_max"))
    reason = explain(GBDTLabeler().fit(own, labels), own, worst, n=1).reasons[0]
    assert (reason.name, reason.means) == ("act_zeros", "part of the values that is exactly zero")
    assert str(explain(GBDTLabeler().fit(own, labels), own, worst, n=1)).endswith(
        ": part of the values that is exactly zero."
    )
    assert str(explain(labeler, features, "c3")).startswith("c3, 8bit:")
    assert str(explain(labeler, features, "c3", "2bit")).startswith("c3, 2bit:")


def test_the_mean_has_no_reasons(tables):
    features, labels = tables
    labeler = MeanLabeler().fit(features, labels)
    assert top_features(labeler, features) == ()
    assert "No feature moved it" in str(explain(labeler, features, features.unit_ids[0]))


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


def test_relatives_are_the_measured_units_most_alike(tables):
    features, labels = tables
    values = features.values.copy()
    values[7] = values[3]
    values[8] = values[3] + np.array([0.01, 0, 0, 0], dtype=np.float32)
    alike = FeatureTable(values, features.names, features.unit_ids, features.group, features.model)
    found = relatives(alike, labels, features.unit_ids[3], n=2)
    assert [relative.unit_id for relative in found] == [features.unit_ids[7], features.unit_ids[8]]
    assert found[0].distance == 0
    assert found[0].damage == labels.damage[7, 0]
    # Units that were not measured are nobody's relatives, whether their damage is unknown or predicted.
    predicted = replace(labels, source=np.where(np.arange(len(labels.source)) == 7, "predicted", labels.source))
    assert relatives(alike, predicted, features.unit_ids[3], n=1)[0].unit_id == features.unit_ids[8]
    unknown = labels.damage.copy()
    unknown[7] = np.nan
    nothing = np.full(unknown.shape, np.nan)
    fewer = LabelTable(labels.unit_ids, labels.choices, unknown, nothing, nothing, nothing, labels.source)
    assert relatives(alike, fewer, features.unit_ids[3], n=1)[0].unit_id == features.unit_ids[8]
    words = str(explain(GBDTLabeler().fit(alike, labels), alike, features.unit_ids[3], measured=labels, n=2))
    assert f"{features.unit_ids[7]}: {labels.damage[7, 0]:.3g} (features 0.00" in words
    with pytest.raises(CompressError, match="has no unit"):
        relatives(alike, labels, "c99")
    with pytest.raises(CompressError, match="was not measured"):
        relatives(alike, labels, features.unit_ids[3], "4bit")


def test_a_layer_is_told_by_what_less_of_it_would_cost():
    model = nn.Sequential(nn.Linear(4, 6), nn.ReLU(), nn.Linear(6, 3))
    structure = analyze(model, (torch.randn(2, 4),))
    units, costs = structure.units, unit_costs(structure)
    damage = np.full((len(units), 1), np.nan)
    damage[:6, 0] = [0.5, 0.1, -0.2, 0.3, 1.0, 2.0]
    nothing = np.full(damage.shape, np.nan)
    labels = LabelTable(units.ids, ("removed",), damage, nothing, nothing, nothing, np.full(len(units), "measured"))
    words = autolabel.explain_layer(units, costs, labels, "0:out")
    # The cheapest go first: -0.2, then 0.1; each takes 4 + 3 of 42 MACs.
    assert "1 less: -0.2 predicted damage, 16.67% of the MACs" in words
    assert "2 less: -0.1 predicted damage, 33.33% of the MACs" in words
    assert "5 less: +1.7 predicted damage" in words
    with pytest.raises(CompressError, match="no removable group 'nowhere'"):
        autolabel.explain_layer(units, costs, labels, "nowhere")
    unknown = LabelTable(units.ids, ("removed",), nothing, nothing, nothing, nothing, labels.source)
    with pytest.raises(CompressError, match="has a label"):
        autolabel.explain_layer(units, costs, unknown, "0:out")


def test_a_layer_is_told_by_what_a_bit_more_would_cost():
    model = nn.Sequential(nn.Linear(4, 6), nn.ReLU(), nn.Linear(6, 3))
    structure = analyze(model, (torch.randn(2, 4),))
    units, costs = structure.units, unit_costs(structure)
    choices = ("4bit", "8bit", "2bit")
    nothing = np.full((2, 3), np.nan)
    damage = np.array([[0.25, 0.125, np.nan], [np.nan, np.nan, np.nan]])
    labels = LabelTable(("0", "2"), choices, damage, nothing, nothing, nothing, np.full(2, "measured"))
    # 4 x 6 weights and a scale for each of 6 outputs: 24 + 24 and 12 + 24 bytes where there were 96, of 4 * 51 in all.
    assert autolabel.explain_layer(units, costs, labels, "0").splitlines() == [
        "0: 2 widths.",
        "  8bit: +0.125 predicted damage (+0.125 against the width above), 23.53% of the bytes saved.",
        "  4bit: +0.25 predicted damage (+0.125 against the width above), 29.41% of the bytes saved.",
    ]
    with pytest.raises(CompressError, match="No width of '2' has a label"):
        autolabel.explain_layer(units, costs, labels, "2")
