"""One suite over every labeler that lies in `autolabel/labelers/`."""

import hashlib
import importlib
import json
import pkgutil
import random

import numpy as np
import pytest
import torch

import autolabel.labelers
from autolabel.conformal import CalibrationWarning
from autolabel.labeler import Labeler
from autolabel.tables import FeatureTable, LabelTable
from compress.errors import ArtifactError, CompressError, DataError

N_FEATURES = 12
BIT_CHOICES = ("8bit", "4bit", "2bit")


def _labelers() -> list[type]:
    found = []
    for info in pkgutil.iter_modules(autolabel.labelers.__path__):
        module = importlib.import_module(f"autolabel.labelers.{info.name}")
        own = [v for v in vars(module).values() if isinstance(v, type) and v.__module__ == module.__name__]
        labelers = [v for v in own if not v.__name__.startswith("_")]
        assert len(labelers) == 1, f"{info.name} must define exactly one public class"
        assert labelers[0].name == info.name
        found.append(labelers[0])
    return found


@pytest.fixture(params=_labelers(), ids=lambda cls: cls.name)
def labeler(request):
    small = {"gbdt": {"rounds": 20}, "mlp": {"steps": 15, "hidden": 4, "nets": 2}}
    return request.param(folds=3, **small.get(request.param.name, {}))


def _table(groups: int = 5, per: int = 8, layers: int = 0, seed: int = 0) -> tuple[FeatureTable, LabelTable]:
    """Channels with the choice `removed`, then layers with bit-widths, damages made from the first features."""
    rng = np.random.default_rng(seed)
    ids = [f"conv{g}:out[{i}]" for g in range(groups) for i in range(per)] + [f"conv{k}" for k in range(layers)]
    group = [unit.split("[")[0] for unit in ids]
    values = rng.standard_normal((len(ids), N_FEATURES)).astype(np.float32)
    choices = ("removed", *BIT_CHOICES) if layers else ("removed",)
    damage = np.full((len(ids), len(choices)), np.nan)
    parts = groups * per
    damage[:parts, 0] = 1e-3 * np.sinh(2 * values[:parts, 0] + values[:parts, 1])
    for column, choice in enumerate(choices[1:], start=1):
        damage[parts:, column] = np.exp(values[parts:, 2]) * 4.0 ** -int(choice[0])
    nothing = np.full_like(damage, np.nan)
    features = FeatureTable(
        values, tuple(f"f{i}" for i in range(N_FEATURES)), tuple(ids), np.array(group), np.full(len(ids), "net")
    )
    source = np.full(len(ids), "measured")
    return features, LabelTable(tuple(ids), choices, damage, nothing, nothing, nothing, source)


def _with_damage(labels: LabelTable, damage: np.ndarray) -> LabelTable:
    return LabelTable(
        labels.unit_ids, labels.choices, damage, labels.std_err, labels.lower, labels.upper, labels.source
    )


def _assert_same(a: LabelTable, b: LabelTable) -> None:
    for name in ("damage", "lower", "upper"):
        np.testing.assert_array_equal(getattr(a, name), getattr(b, name))


def test_fit_returns_itself_and_follows_the_seam(labeler):
    assert isinstance(labeler, Labeler)
    assert labeler.fit(*_table()) is labeler


def test_chain_of_the_public_face_gives_scores_in_nats(labeler):
    features, labels = _table()
    scores = labeler.fit(features, labels).predict(features).scores()
    assert scores.scale == "nats"
    assert scores.removal.shape == (len(features.unit_ids),)


def test_predictions_are_finite_ordered_and_inside_their_interval(labeler):
    features, labels = _table()
    predicted = labeler.fit(features, labels).predict(features)
    assert predicted.unit_ids == features.unit_ids
    assert predicted.choices == ("removed",)
    assert set(predicted.source) == {"predicted"}
    for name in ("damage", "lower", "upper"):
        assert np.isfinite(getattr(predicted, name)).all()
    assert (predicted.lower <= predicted.damage).all()
    assert (predicted.damage <= predicted.upper).all()
    assert np.isnan(predicted.std_err).all()


def test_rows_follow_their_units_not_their_position(labeler):
    features, labels = _table()
    order = np.random.default_rng(1).permutation(len(features.unit_ids))
    labeler.fit(features, labels)
    straight, shuffled = labeler.predict(features), labeler.predict(features.select(order))
    assert shuffled.unit_ids == tuple(features.unit_ids[i] for i in order)
    np.testing.assert_allclose(shuffled.damage, straight.damage[order], rtol=1e-9, atol=1e-12)


def test_label_rows_are_matched_by_unit_id(labeler):
    features, labels = _table()
    order = np.random.default_rng(1).permutation(len(labels.unit_ids))[:25]
    subset = LabelTable(
        tuple(labels.unit_ids[i] for i in order),
        labels.choices,
        labels.damage[order],
        labels.std_err[order],
        labels.lower[order],
        labels.upper[order],
        labels.source[order],
    )
    masked = np.full_like(labels.damage, np.nan)
    masked[order] = labels.damage[order]
    a = labeler.fit(features, subset).predict(features)
    b = labeler.fit(features, _with_damage(labels, masked)).predict(features)
    _assert_same(a, b)


def test_unknown_damages_are_ignored(labeler):
    features, labels = _table()
    damage = labels.damage.copy()
    damage[::3] = np.nan
    known = np.flatnonzero(np.isfinite(damage[:, 0]))
    a = labeler.fit(features, _with_damage(labels, damage)).predict(features)
    kept = LabelTable(
        tuple(labels.unit_ids[i] for i in known),
        labels.choices,
        damage[known],
        labels.std_err[known],
        labels.lower[known],
        labels.upper[known],
        labels.source[known],
    )
    _assert_same(a, labeler.fit(features, kept).predict(features))
    assert np.isfinite(a.damage).all()


def test_same_seed_same_numbers_and_refitting_forgets(labeler):
    features, labels = _table()
    first = labeler.fit(features, labels).predict(features)
    labeler.fit(*_table(seed=3))
    _assert_same(first, labeler.fit(features, labels).predict(features))


def test_global_random_state_and_threads_are_left_alone(labeler):
    random.seed(1)
    np.random.seed(1)  # noqa: NPY002 - the legacy state is what must stay untouched
    torch.manual_seed(1)
    before = (random.getstate(), np.random.get_state()[1].copy(), torch.get_rng_state(), torch.get_num_threads())  # noqa: NPY002
    features, labels = _table()
    labeler.fit(features, labels).predict(features)
    assert random.getstate() == before[0]
    np.testing.assert_array_equal(np.random.get_state()[1], before[1])  # noqa: NPY002
    assert torch.equal(torch.get_rng_state(), before[2])
    assert torch.get_num_threads() == before[3]


def test_inputs_are_not_written_to(labeler):
    features, labels = _table(layers=4)
    copies = features.values.copy(), labels.damage.copy()
    labeler.fit(features, labels).predict(features)
    np.testing.assert_array_equal(features.values, copies[0])
    np.testing.assert_array_equal(labels.damage, copies[1])


def test_choices_go_to_the_kind_of_unit_they_were_seen_on(labeler):
    features, labels = _table(layers=6)
    predicted = labeler.fit(features, labels).predict(features)
    layer = np.array(["[" not in unit for unit in features.unit_ids])
    assert np.isfinite(predicted.damage[~layer, 0]).all()
    assert np.isnan(predicted.damage[layer, 0]).all()
    assert np.isfinite(predicted.damage[layer, 1:]).all()
    assert np.isnan(predicted.damage[~layer, 1:]).all()


def test_a_bit_width_never_measured_is_filled_in_from_its_neighbours(labeler):
    features, labels = _table(groups=2, layers=8)
    damage = labels.damage.copy()
    damage[:, labels.choices.index("4bit")] = np.nan
    predicted = labeler.fit(features, _with_damage(labels, damage)).predict(features)
    layer = np.array(["[" not in unit for unit in features.unit_ids])
    assert np.isfinite(predicted.damage[layer]).sum() == 3 * 8


def test_saved_and_loaded_predictions_are_bit_equal(labeler, tmp_path):
    features, labels = _table(layers=5)
    predicted = labeler.fit(features, labels).predict(features)
    labeler.save(tmp_path / "labeler")
    loaded = type(labeler).load(tmp_path / "labeler")
    assert loaded.feature_names == features.names
    assert {f: getattr(loaded, f) for f in ("seed", "coverage", "folds")} == {
        f: getattr(labeler, f) for f in ("seed", "coverage", "folds")
    }
    _assert_same(predicted, loaded.predict(features))
    _assert_same(predicted, labeler.load(tmp_path / "labeler").predict(features))


def test_saving_again_replaces_and_leaves_no_stale_file(labeler, tmp_path):
    labeler.fit(*_table()).save(tmp_path)
    features, labels = _table(seed=5)
    labeler.fit(features, labels).save(tmp_path)
    assert len(list(tmp_path.iterdir())) == 2
    _assert_same(type(labeler).load(tmp_path).predict(features), labeler.predict(features))


@pytest.mark.filterwarnings("always::autolabel.conformal.CalibrationWarning")
@pytest.mark.parametrize(("groups", "per"), [(1, 1), (1, 9)])
def test_a_single_group_warns_and_gives_wide_intervals(labeler, groups, per):
    features, labels = _table(groups, per)
    with pytest.warns(CalibrationWarning, match="single group"):
        labeler.fit(features, labels)
    predicted = labeler.predict(_table(groups, 9, seed=1)[0])
    assert np.isfinite(predicted.damage).all()
    assert (predicted.lower <= labels.damage.min()).all()
    assert (predicted.upper >= labels.damage.max()).all()


def test_two_rows_of_two_groups_are_enough(labeler):
    predicted = labeler.fit(*_table(2, 1)).predict(_table()[0])
    assert np.isfinite(predicted.damage).all()
    assert np.isfinite(predicted.upper - predicted.lower).all()


@pytest.mark.parametrize("value", [0.0, 0.25, -1e-300, 1e300])
def test_equal_damages_are_predicted_as_they_are(labeler, value):
    features, labels = _table(3, 4)
    predicted = labeler.fit(features, _with_damage(labels, np.full_like(labels.damage, value))).predict(features)
    np.testing.assert_allclose(predicted.damage, value, rtol=1e-6, atol=1e-290)


def test_extreme_and_constant_features_stay_finite(labeler):
    features, labels = _table()
    values = features.values.copy()
    values[:, 3], values[:, 4], values[0, 5] = 0.0, 1e-38, 3e38
    extreme = FeatureTable(values, features.names, features.unit_ids, features.group, features.model)
    assert np.isfinite(labeler.fit(extreme, labels).predict(extreme).damage).all()
    labeler.fit(features, labels)
    assert np.isfinite(labeler.predict(extreme).upper).all()


def test_other_features_are_refused_by_name(labeler):
    features, labels = _table()
    labeler.fit(features, labels)
    renamed = FeatureTable(
        features.values, (*features.names[:-1], "moon_phase"), features.unit_ids, features.group, features.model
    )
    with pytest.raises(CompressError, match=r"moon_phase.*f11"):
        labeler.predict(renamed)
    more = FeatureTable(
        np.hstack([features.values, features.values[:, :1]]),
        (*features.names, "extra"),
        features.unit_ids,
        features.group,
        features.model,
    )
    with pytest.raises(CompressError, match="extra"):
        labeler.predict(more)


def test_columns_in_another_order_are_the_same_features(labeler):
    features, labels = _table()
    predicted = labeler.fit(features, labels).predict(features)
    swapped = FeatureTable(
        features.values[:, ::-1].copy(), features.names[::-1], features.unit_ids, features.group, features.model
    )
    _assert_same(predicted, labeler.predict(swapped))


def test_nothing_measured_is_refused(labeler):
    features, labels = _table()
    with pytest.raises(DataError, match="known"):
        labeler.fit(features, _with_damage(labels, np.full_like(labels.damage, np.nan)))


def test_a_label_without_features_is_refused(labeler):
    features, labels = _table()
    with pytest.raises(DataError, match=r"conv0:out\[0\]"):
        labeler.fit(features.select(np.arange(1, len(features.unit_ids))), labels)


def test_unfitted_use_is_refused(labeler, tmp_path):
    with pytest.raises(CompressError, match="not fitted"):
        labeler.predict(_table()[0])
    with pytest.raises(CompressError, match="not fitted"):
        labeler.save(tmp_path)


@pytest.mark.parametrize("setting", [{"coverage": 1.0}, {"coverage": 0.0}, {"folds": 1}, {"seed": -1}])
def test_settings_out_of_range_are_refused_by_name(labeler, setting):
    with pytest.raises(CompressError, match=f"'{next(iter(setting))}' parameter of {type(labeler).__name__}"):
        type(labeler)(**setting)


def test_damaged_files_are_refused(labeler, tmp_path):
    labeler.fit(*_table()).save(tmp_path)
    cls = type(labeler)
    index = tmp_path / "labeler.json"
    (model,) = [file for file in tmp_path.iterdir() if file != index]
    text, content = index.read_text(), model.read_bytes()

    model.write_bytes(content[: len(content) // 2])
    with pytest.raises(ArtifactError, match=model.name):
        cls.load(tmp_path)
    model.unlink()
    with pytest.raises(ArtifactError, match=model.name):
        cls.load(tmp_path)
    model.write_bytes(content)

    damaged = [
        text[: len(text) // 2],
        "[]",
        json.dumps({**json.loads(text), "schema_version": 99}),
        json.dumps({**json.loads(text), "labeler": "oracle"}),
        json.dumps({**json.loads(text), "settings": {"coverage": 3.0}}),
        json.dumps({**json.loads(text), "settings": {"moon": 3.0}}),
        json.dumps({**json.loads(text), "problems": [{}]}),
        json.dumps({**json.loads(text), "problems": 3}),
        json.dumps({key: value for key, value in json.loads(text).items() if key != "choices"}),
    ]
    for broken in damaged:
        index.write_text(broken)
        with pytest.raises(ArtifactError):
            cls.load(tmp_path)
    index.unlink()
    with pytest.raises(ArtifactError):
        cls.load(tmp_path)


def test_a_well_signed_file_of_another_kind_is_refused(labeler, tmp_path):
    labeler.fit(*_table()).save(tmp_path)
    index = tmp_path / "labeler.json"
    value = json.loads(index.read_text())
    for content in (b"", b"not a model", b"tree\nversion=v4\nnum_class=1\n"):
        (tmp_path / value["problems"][0]["file"]).write_bytes(content)
        value["problems"][0]["sha256"] = hashlib.sha256(content).hexdigest()
        index.write_text(json.dumps(value))
        with pytest.raises(ArtifactError):
            type(labeler).load(tmp_path)
