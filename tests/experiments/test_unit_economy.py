"""What labels of units are worth: where a feature tells all, where it tells nothing, and where the cut is in doubt."""

import numpy as np
import pytest

from autolabel.label_bank import LabelBank
from autolabel.labelers import RidgeLabeler
from experiments.leaderboard import write_samplings
from experiments.unit_economy import SAMPLINGS, UnitEconomyRow, judge_samplings, summarize_samplings

N = 80


def bank(damage, feature, units=N):
    rng = np.random.default_rng(1)
    table = {
        "network": np.zeros(units, dtype=np.int64),
        "unit": np.array([f"u{i}" for i in range(units)]),
        "group": np.repeat(["a", "b"], units // 2),
        "feature_known": feature.astype(np.float32),
        "feature_noise": rng.random(units).astype(np.float32),
        "feature_macs_saved_share": np.full(units, 1 / units, dtype=np.float32),
        "damage_at_once": damage,
        "std_err_at_once": np.full(units, 1e-3),
    }
    one = {"network": np.zeros(1, dtype=np.int64)}
    networks = {"name": np.array(["n"]), "family": np.array(["f"]), "task": np.array(["t"])}
    return LabelBank(networks, one, {"plan": np.zeros(1, dtype=np.int64)}, table, one, one, {})


def test_all_labels_leave_nothing_to_gain_and_a_feature_that_tells_all_little():
    rng = np.random.default_rng(0)
    damage = rng.random(N)
    rows = judge_samplings(bank(damage, damage), (0,), (0.4, 1.0), RidgeLabeler)
    found = {(row.sampling, row.part): row.excess for row in rows}
    assert set(found) == {(sampling, part) for sampling in SAMPLINGS for part in (0.4, 1.0)}
    assert all(found[sampling, 1.0] == 0 for sampling in SAMPLINGS)
    assert all(found[sampling, 0.4] < 0.1 for sampling in SAMPLINGS)


def test_a_feature_that_tells_nothing_is_chance_but_for_what_was_measured():
    rng = np.random.default_rng(0)
    rows = judge_samplings(bank(rng.random(N), rng.random(N)), range(6), (0.1,), RidgeLabeler)
    assert np.mean([row.excess for row in rows]) == pytest.approx(0.9, abs=0.3)


def test_measuring_at_the_cut_helps_where_features_tell_the_rest():
    rng = np.random.default_rng(0)
    # Half of the units are far from the cut, whatever noise their feature has.
    damage = np.concatenate([rng.random(N // 2) * 0.2 + 0.4, rng.random(N // 4) * 0.05, 1 + rng.random(N // 4)])
    feature = damage + 0.1 * rng.standard_normal(N)
    rows = judge_samplings(bank(damage, feature), range(8), (0.4,), RidgeLabeler)
    mean = {s: np.mean([row.excess for row in rows if row.sampling == s]) for s in SAMPLINGS}
    assert mean["active"] < 0.8 * min(mean["uniform"], mean["stratified"])


def test_small_networks_are_left_out():
    assert judge_samplings(bank(np.arange(20.0), np.arange(20.0), 20)) == []


def test_the_page_tells_medians_over_networks():
    rows = [UnitEconomyRow("f", "t", f"n{i}", "active", 0.2, seed, 0.1 * i + 0.02 * seed)
            for i in range(3) for seed in (0, 1)]  # fmt: skip
    (line,) = summarize_samplings(rows)
    assert line["median"] == pytest.approx(0.11)
    assert "| drawn | 20 % measured |" in write_samplings(rows)
    assert "| active | 0.11 (0.06 to 0.16) |" in write_samplings(rows)
