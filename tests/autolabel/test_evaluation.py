"""Rank correlations that can be checked by hand, and predictions that never saw their own group."""

from dataclasses import dataclass, field

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy.stats import spearmanr

from autolabel.conformal import CalibrationWarning
from autolabel.evaluation import compare, coverage, held_out_predictions, resampled_spearman, spearman
from autolabel.tables import FeatureTable, LabelTable
from compress.errors import CompressError, DataError
from compress.scores import Scores


@dataclass
class _Spy:
    """A labeler that notes the groups it was shown and predicts how many labels it saw."""

    shown: list = field(default_factory=list)
    name: str = "spy"

    def fit(self, features, labels):
        known = np.isfinite(labels.damage).any(axis=1)
        self.count, self.choices = float(known.sum()), labels.choices
        self.groups = set(features.group[known].tolist())
        return self

    def predict(self, features):
        assert not self.groups & set(features.group.tolist())
        shape = (len(features.unit_ids), len(self.choices))
        damage = np.full(shape, self.count)
        return LabelTable(
            features.unit_ids,
            self.choices,
            damage,
            damage * np.nan,
            damage - 1,
            damage + 1,
            np.full(shape[0], "predicted"),
        )

    def __deepcopy__(self, memo):
        copied = _Spy(self.shown)
        self.shown.append(copied)
        return copied


def _features(groups, per):
    ids = [f"c{g}:out[{i}]" for g in range(groups) for i in range(per)]
    group = np.array([unit.split("[")[0] for unit in ids])
    return FeatureTable(np.zeros((len(ids), 1), np.float32), ("f",), tuple(ids), group, np.full(len(ids), "net"))


def _labels(ids, damage, choices=("removed",)):
    damage = np.asarray(damage, dtype=np.float64).reshape(len(ids), -1)
    nothing = np.full(damage.shape, np.nan)
    return LabelTable(tuple(ids), choices, damage, nothing, nothing, nothing, np.full(len(ids), "measured"))


def test_every_group_is_predicted_without_its_own_labels():
    features = _features(4, 3)
    spy = _Spy()
    held_out = held_out_predictions(spy, features, _labels(features.unit_ids, np.arange(12)))
    assert len(spy.shown) == 4
    assert (held_out.damage == 9.0).all()
    assert np.isnan(held_out.lower).all()
    assert held_out.unit_ids == features.unit_ids


def test_labels_of_a_subset_in_any_order_are_enough_and_all_units_are_predicted():
    features = _features(4, 3)
    held_out = held_out_predictions(_Spy(), features, _labels(["c2:out[0]", "c0:out[1]"], [1.0, 2.0]), intervals=True)
    assert np.isfinite(held_out.damage[[1, 6]]).all()
    assert held_out.damage[[1, 6], 0].tolist() == [1.0, 1.0]
    assert (held_out.upper - held_out.lower == 2.0)[np.isfinite(held_out.damage)].all()


@pytest.mark.filterwarnings("always::autolabel.conformal.CalibrationWarning")
def test_labels_of_one_group_cannot_be_evaluated_and_that_is_said():
    features = _features(3, 4)
    damage = np.full(12, np.nan)
    damage[:4] = range(4)
    labels = _labels(features.unit_ids, damage)
    with pytest.warns(CalibrationWarning, match="single group"):
        held_out = held_out_predictions(_Spy(), features, labels)
    assert np.isnan(held_out.damage).all()
    (row,) = compare(labels, held_out)
    assert (row.n, row.spearman, row.kendall, row.within, row.n_groups) == (0, None, None, None, 0)


def test_nothing_measured_is_refused():
    features = _features(2, 2)
    with pytest.raises(DataError, match="Measure"):
        held_out_predictions(_Spy(), features, _labels(features.unit_ids, np.full(4, np.nan)))


def test_spearman_by_hand():
    assert spearman(np.array([1.0, 2, 3]), np.array([1.0, 3, 2])) == pytest.approx(0.5)
    assert spearman(np.array([1.0, 2, 3]), np.ones(3)) == 0.0
    assert spearman(np.array([1.0, 2]), np.array([1.0, 2])) is None
    rng = np.random.default_rng(0)
    a, b = rng.integers(0, 5, 40).astype(float), rng.standard_normal(40)
    assert spearman(a, b) == pytest.approx(spearmanr(a, b).statistic, abs=1e-12)


def test_within_and_overall_tell_different_stories():
    """Layers in the wrong order, units within each in the right one."""
    ids = [f"c{g}:out[{i}]" for g in range(3) for i in range(3)]
    damage = np.array([1, 2, 3, 11, 12, 13, 21, 22, 23])
    score = np.array([21, 22, 23, 11, 12, 13, 1, 2, 3])
    (row,) = compare(_labels(ids, damage), None, {"criterion": score})
    assert row.name == "criterion"
    assert row.within == 1.0
    assert (row.within_low, row.within_high) == (1.0, 1.0)
    assert row.n_groups == 3
    assert row.spearman == pytest.approx(1 - 6 * 6 * 36 / (9 * 80))
    assert row.kendall == pytest.approx((9 - 27) / 36)
    assert row.spearman_low <= row.spearman <= row.spearman_high


def test_small_and_flat_groups_say_nothing_of_order_within():
    ids = ["a:out[0]", "a:out[1]", "b:out[0]", "b:out[1]", "b:out[2]", "c:out[0]", "c:out[1]", "c:out[2]"]
    (row,) = compare(_labels(ids, [1, 2, 5, 5, 5, 1, 2, 3]), None, {"s": np.arange(8.0)})
    assert (row.n_groups, row.within) == (1, 1.0)
    assert row.within_low is None


def test_all_scores_are_compared_on_the_same_units():
    features = _features(3, 4)
    labels = _labels(features.unit_ids, np.arange(12.0))
    gappy = np.arange(12.0)
    gappy[0] = np.nan
    some = Scores(features.unit_ids[2:], ("removed",), -np.arange(10.0)[:, None], "order")
    rows = compare(labels, held_out_predictions(_Spy(), features, labels), {"gappy": gappy, "some": some}, name="spy")
    assert [row.name for row in rows] == ["spy", "gappy", "some"]
    assert [row.n for row in rows] == [10, 10, 10]
    assert [row.spearman for row in rows] == pytest.approx([0.0, 1.0, -1.0])


def test_bootstrap_is_repeatable_and_narrows():
    rng = np.random.default_rng(0)
    ids = [f"c{g}:out[{i}]" for g in range(12) for i in range(10)]
    damage = rng.standard_normal(120)
    labels, score = _labels(ids, damage), damage + rng.standard_normal(120)
    (a,), (b,) = (compare(labels, None, {"s": score}) for _ in range(2))
    assert a == b
    assert compare(labels, None, {"s": score}, seed=1)[0].spearman_low != a.spearman_low
    (small,) = compare(_labels(ids[:30], damage[:30]), None, {"s": score[:30]})
    assert a.spearman_high - a.spearman_low < small.spearman_high - small.spearman_low


@settings(max_examples=50, deadline=None)
@given(st.integers(3, 30), st.integers(1, 8), st.integers(0, 2**16))
def test_resamples_are_correlated_as_if_their_values_were_repeated(n, distinct, seed):
    rng = np.random.default_rng(seed)
    a, b = (rng.integers(0, distinct, n).astype(float) for _ in range(2))
    times = rng.multinomial(rng.integers(1, n + 1), np.ones(n) / n, size=5)
    expected = [spearman(np.repeat(a, row), np.repeat(b, row)) for row in times]
    assert resampled_spearman(a, b, times) == pytest.approx([value for value in expected if value is not None])


def test_networks_are_told_apart():
    ids = [f"c:out[{i}]" for i in range(4)] * 2
    model = np.repeat(["m1", "m2"], 4)
    damage, score = [1, 2, 3, 4, 1, 2, 3, 4], np.array([1.0, 2, 3, 4, 4, 3, 2, 1])
    (row,) = compare(_labels(ids, damage), None, {"s": score}, model=model)
    assert row.by_model == {"m1": pytest.approx(1.0), "m2": pytest.approx(-1.0)}
    assert row.n_groups == 2


def test_choices_are_evaluated_one_by_one():
    labels = _labels(["a", "b", "c"], [[1.0, 3.0], [2.0, 2.0], [3.0, 1.0]], ("8bit", "2bit"))
    other = {"s": np.array([1.0, 2.0, 3.0])}
    assert compare(labels, None, other, choice="8bit")[0].spearman == pytest.approx(1.0)
    assert compare(labels, None, other, choice="2bit")[0].spearman == pytest.approx(-1.0)
    with pytest.raises(CompressError, match="'choice' parameter"):
        compare(labels, None, other)


def test_wrong_scores_are_named():
    labels = _labels(["a", "b", "c"], [1.0, 2.0, 3.0])
    with pytest.raises(CompressError, match="'taylor'"):
        compare(labels, None, {"taylor": np.zeros(2)})
    with pytest.raises(CompressError, match="'taylor'"):
        compare(labels, None, {"taylor": Scores(labels.unit_ids, ("8bit",), np.zeros((3, 1)), "order")})


def test_coverage_by_hand():
    labels = _labels(["a", "b", "c", "d"], [0.0, 1.0, 5.0, np.nan])
    ends = np.full((4, 1), 1.0)
    predicted = LabelTable(labels.unit_ids, ("removed",), ends * 0, ends, -ends, ends, np.full(4, "predicted"))
    assert coverage(labels, predicted) == pytest.approx(2 / 3)
