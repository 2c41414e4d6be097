"""Which label belongs to which features, and how bit-widths share one regression."""

import numpy as np
import pytest

from autolabel.choice_rows import bits_of, is_layer, match_rows, problems
from autolabel.tables import FeatureTable, LabelTable, merge_labels
from compress.errors import CompressError, DataError


def _features(ids, names=("a",), group=None):
    values = np.arange(len(ids) * len(names), dtype=np.float32).reshape(len(ids), len(names))
    group = np.array(ids if group is None else group)
    return FeatureTable(values, tuple(names), tuple(ids), group, np.full(len(ids), "net"))


def _labels(ids, damage, choices=("removed",), source="measured", macs=0.0):
    damage = np.array(damage, dtype=np.float64).reshape(len(ids), len(choices))
    return LabelTable(
        tuple(ids),
        tuple(choices),
        damage,
        damage * 0,
        damage - 1,
        damage + 1,
        np.full(len(ids), source),
        macs,
        2 * macs,
    )


def test_bits_of_choices():
    assert [bits_of(c) for c in ("8bit", "16bit", "removed", "8bits", "bit", "int8bit")] == [8, 16] + [None] * 4


def test_layers_are_their_own_group():
    assert is_layer(_features(["fc", "fc:out[0]"], group=["fc", "fc:out"])).tolist() == [True, False]


def test_rows_are_matched_by_id_or_by_order():
    features = _features(["a", "b", "c"])
    assert match_rows(features, _labels(["c", "a"], [1, 2])).tolist() == [2, 0]
    twice = _features(["a", "a"])
    assert match_rows(twice, _labels(["a", "a"], [1, 2])).tolist() == [0, 1]
    with pytest.raises(DataError, match="same order"):
        match_rows(twice, _labels(["a"], [1]))


def test_a_row_without_features_matters_only_if_it_was_measured():
    features = _features(["a"])
    assert match_rows(features, _labels(["x", "a"], [np.nan, 1])).tolist() == [-1, 0]
    with pytest.raises(DataError, match="'x'"):
        match_rows(features, _labels(["x", "a"], [1, 1]))


def test_bit_widths_share_one_problem_with_their_own_errors_in_one_column():
    names = ("depth", "error_8bit", "error_4bit", "mse_4_bits", "snr_8bit_db", "snr_4bit_db")
    removed, bits = problems(("removed", "8bit", "4bit"), names)
    assert (removed.name, removed.columns) == ("removed", names)
    assert bits.name == "bits"
    assert bits.choices == ("8bit", "4bit")
    # mse is there for 4 bits only, so it cannot be lined up.
    assert bits.columns == (*names, "bits", "error_ownbit", "snr_ownbit_db")
    values = np.array([[9.0, 0.1, 0.5, 0.7, 40.0, 20.0]])
    assert bits.rows(values, names, "8bit")[0, 6:].tolist() == [8.0, 0.1, 40.0]
    assert bits.rows(values, names, "4bit")[0, 6:].tolist() == [4.0, 0.5, 20.0]
    assert removed.rows(values, names, "removed").tolist() == values.tolist()


def test_a_feature_named_like_the_bits_column_is_refused():
    with pytest.raises(CompressError, match="'bits'"):
        problems(("8bit",), ("bits",))


def test_merging_keeps_measured_cells_and_says_where_units_come_from():
    measured = _labels(["b", "x"], [[1.0, np.nan], [2.0, np.nan]], ("removed", "8bit"), macs=5.0)
    predicted = _labels(["a", "b"], [7.0, 8.0], source="predicted")
    merged = merge_labels(measured, predicted)
    assert merged.unit_ids == ("a", "b", "x")
    assert merged.choices == ("removed", "8bit")
    assert merged.damage[:, 0].tolist() == [7.0, 1.0, 2.0]
    assert merged.lower[:, 0].tolist() == [6.0, 0.0, 1.0]
    assert np.isnan(merged.damage[:, 1]).all()
    assert merged.source.tolist() == ["predicted", "measured", "measured"]
    assert (merged.forward_macs, merged.naive_macs) == (5.0, 10.0)


def test_a_unit_with_one_predicted_choice_is_predicted():
    measured = _labels(["a"], [[1.0, np.nan]], ("8bit", "4bit"))
    predicted = _labels(["a"], [[3.0, 4.0]], ("8bit", "4bit"), source="predicted")
    merged = merge_labels(measured, predicted)
    assert merged.damage.tolist() == [[1.0, 4.0]]
    assert merged.source.tolist() == ["predicted"]


def test_merging_tables_of_several_networks_needs_the_same_order():
    measured = _labels(["a", "a"], [1.0, np.nan])
    predicted = _labels(["a", "a"], [5.0, 6.0], source="predicted")
    assert merge_labels(measured, predicted).damage[:, 0].tolist() == [1.0, 6.0]
    with pytest.raises(CompressError, match="same order"):
        merge_labels(_labels(["a"], [1.0]), predicted)
