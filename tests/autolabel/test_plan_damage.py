"""Damage of whole plans in nats: a law that is found again, corrections by hand, intervals, files."""

import dataclasses
import re

import numpy as np
import pytest

from autolabel.plan_board import PlanBoard
from autolabel.plan_damage import DAMAGE_FILE, SMALLEST, PlanDamage
from autolabel.plan_summary import PlanSummary
from compress.errors import ArtifactError, CompressError

COLUMNS = ("x", "y")


def summary(values, names=COLUMNS):
    values = np.asarray(values, dtype=np.float32)
    n = len(values)
    return PlanSummary(("g",), (), np.zeros((n, 1, 0), np.float32), names, values)


def board(seed, level=0.0, n=40, noise=0.1):
    """Plans whose log damage is 1.5 x + 0.5 y, shifted by what is the network's own."""
    rng = np.random.default_rng(seed)
    values = rng.standard_normal((n, 2))
    own = level * rng.standard_normal()
    damage = np.exp(1.5 * values[:, 0] + 0.5 * values[:, 1] + own + noise * rng.standard_normal(n))
    return PlanBoard(f"net{seed}", "f", "t", summary(values), {"refitted": damage + 0.3}, {}, {}, 0.3)


def ratios(model, found, k):
    damage = found.loss["refitted"] - 0.3
    predicted = model.predict(found.summary, 0.3, range(k), damage[:k])
    return np.log(predicted.nats / damage)[k:], predicted, damage


def test_a_law_is_found_again_and_measured_plans_tell_what_is_the_networks_own():
    model = PlanDamage.fit([board(i, level=1.0) for i in range(30)], "refitted", COLUMNS)
    # The network's own level is more than its single plans.
    assert model.variances[0] == pytest.approx(1.0, rel=0.6)
    assert model.noise == pytest.approx(0.01, rel=0.5)
    errors = {k: [] for k in (0, 1, 5)}
    for seed in range(100, 130):
        for k in errors:
            errors[k] += list(ratios(model, board(seed, level=1.0), k)[0])
    spread = {k: float(np.sqrt(np.mean(np.square(found)))) for k, found in errors.items()}
    assert spread[0] == pytest.approx(1.0, rel=0.4)
    assert spread[5] < spread[1] < 0.3 < spread[0]


def test_intervals_hold_before_and_after_measuring():
    model = PlanDamage.fit([board(i, level=1.0) for i in range(60)], "refitted", COLUMNS)
    for k in (0, 3):
        inside = []
        for seed in range(100, 200):
            _, predicted, damage = ratios(model, board(seed, level=1.0), k)
            low, high = predicted.interval(0.9)
            inside += list((low <= damage)[k:] & (damage <= high)[k:])
        assert np.mean(inside) == pytest.approx(0.9, abs=0.07)
    with pytest.raises(CompressError, match="coverage"):
        predicted.interval(1.0)


def test_a_new_family_is_further_off_than_those_that_were_learned_from():
    names = tuple(f"x{i}" for i in range(8))

    def of_family(number, seed):
        """Most numbers tell the family, whose level the regression then knows; of another they tell nothing."""
        family, rng = np.random.default_rng([7, number]), np.random.default_rng([seed, number])
        values = np.column_stack([np.tile(family.standard_normal(6), (20, 1)), rng.standard_normal((20, 2))])
        log_damage = values[:, 6] + 2 * family.standard_normal() + 0.1 * rng.standard_normal(20)
        loss = {"refitted": np.exp(log_damage) + 0.3}
        return PlanBoard(f"net{number}_{seed}", f"f{number}", "t", summary(values, names), loss, {}, {}, 0.3)

    model, inside = PlanDamage.fit([of_family(f, s) for f in range(6) for s in range(4)], "refitted", names), []
    for number in range(100, 140):
        _, predicted, damage = ratios(model, of_family(number, 0), 0)
        low, high = predicted.interval(0.9)
        inside += list((low <= damage) & (damage <= high))
    assert np.mean(inside) > 0.75


def test_a_correction_by_hand():
    zeros = np.zeros(3)
    # Nothing is shared but the level e^-1; networks differ in the level alone, with variance 4, plans with variance 1.
    model = PlanDamage("refitted", COLUMNS, zeros, np.ones(3), np.array([0, 0, 0, 0, 0, 0, -1.0]),
                       np.array([4.0, 0, 0, 0, 0]), 0.0, 1.0, 1.0)  # fmt: skip
    plans = summary(np.arange(8).reshape(4, 2))
    before = model.predict(plans, 0.3)
    np.testing.assert_allclose(before.nats, np.exp(-1.0))
    np.testing.assert_allclose(before.log_std, np.sqrt(5.0))
    # Two plans, each e^2 times what was expected: the level moves by 2 * 2 / (2 + 1 / 4).
    after = model.predict(plans, 0.3, [1, 3], [np.exp(1.0)] * 2)
    np.testing.assert_allclose(after.nats, np.exp(-1.0 + 4 / 2.25))
    np.testing.assert_allclose(after.log_std, np.sqrt(1.0 + 1 / 2.25))
    # What is too small to be measured counts as the smallest that can be.
    small = model.predict(plans, 0.3, [0], [-0.5])
    np.testing.assert_allclose(small.nats, np.exp(-1.0 + (np.log(SMALLEST) + 1) / 1.25))


def test_what_a_plan_was_found_to_do_is_expected_of_plans_like_it():
    zeros = np.zeros(3)
    # Networks differ in nothing; what is left has variance 3 where plans are alike, and 1 of each plan's own.
    model = PlanDamage("refitted", COLUMNS, zeros, np.ones(3), np.array([0, 0, 0, 0, 0, 0, -1.0]), np.zeros(5),
                       3.0, 0.5, 1.0)  # fmt: skip
    plans = summary([[0, 0], [0, 0], [1, 1], [1, 1]])
    found = model.predict(plans, 0.3, [0], [np.exp(1.0)])
    # Two of three numbers lie two standard deviations apart: 8/3 on the mean, over 2 * 0.5 squared.
    like = np.exp(-16 / 3)
    expected = -1.0 + 2 * np.array([1, 1, like, like]) * 3 / 4
    np.testing.assert_allclose(np.log(found.nats), expected)
    np.testing.assert_allclose(found.log_std**2, 1 + 3 - (3 * np.array([1, 1, like, like])) ** 2 / 4)


def test_whether_alike_plans_do_alike_is_learned():
    def waves(seed, height):
        rng = np.random.default_rng(seed)
        values = rng.uniform(-1.7, 1.7, (40, 2))
        damage = np.exp(height * np.sin(4 * values[:, 0] + seed) + 0.1 * rng.standard_normal(40))
        return PlanBoard(f"net{seed}", "f", "t", summary(values), {"refitted": damage + 0.3}, {}, {}, 0.3)

    smooth, rough = (PlanDamage.fit([waves(i, h) for i in range(12)], "refitted", COLUMNS) for h in (1.0, 0.0))
    assert smooth.alike > smooth.noise
    assert smooth.length < 0.6
    assert rough.alike < 0.01
    alone = dataclasses.replace(smooth, alike=0.0, noise=smooth.alike + smooth.noise)
    errors = [np.std([ratios(m, waves(s, 1.0), 30)[0] for s in range(50, 60)]) for m in (smooth, alone)]
    assert errors[0] < 0.8 * errors[1]


def test_what_does_no_damage_teaches_nothing():
    quiet = [board(i, level=1.0) for i in range(8)]
    for b in quiet:
        b.loss["refitted"][:20] = 0.2
    model = PlanDamage.fit(quiet, "refitted", COLUMNS)
    assert model.noise < 0.05
    silent = [dataclasses.replace(b, loss={"refitted": np.full(40, 0.3)}) for b in quiet]
    with pytest.raises(CompressError, match="at least two networks with 5 plans that do damage"):
        PlanDamage.fit([quiet[0], *silent[1:]], "refitted", COLUMNS)


def test_what_does_not_fit_is_refused():
    model = PlanDamage.fit([board(i) for i in range(3)], "refitted", COLUMNS)
    plans = board(9).summary
    with pytest.raises(CompressError, match="one finite damage"):
        model.predict(plans, 0.3, [0, 1], [0.1])
    with pytest.raises(CompressError, match="one finite damage"):
        model.predict(plans, 0.3, [0], [float("nan")])
    with pytest.raises(CompressError, match="without 'z'"):
        PlanDamage.fit([board(i) for i in range(3)], "refitted", ("x", "z"))


def test_it_is_read_back(tmp_path):
    model = PlanDamage.fit([board(i, level=1.0) for i in range(5)], "refitted", COLUMNS)
    model.save(tmp_path)
    read, found = PlanDamage.load(tmp_path), board(7)
    np.testing.assert_allclose(ratios(read, found, 2)[1].nats, ratios(model, found, 2)[1].nats, rtol=1e-4)
    assert (read.moment, read.columns) == ("refitted", COLUMNS)
    text = (tmp_path / DAMAGE_FILE).read_text()
    for name, value in (("length", "0"), ("noise", "NaN"), ("alike", "-1")):
        (tmp_path / DAMAGE_FILE).write_text(re.sub(f'"{name}": [^,\\n]+', f'"{name}": {value}', text))
        with pytest.raises(ArtifactError, match="is damaged"):
            PlanDamage.load(tmp_path)
    (tmp_path / DAMAGE_FILE).write_text(text.replace('"y"', '"y", "z"'))
    with pytest.raises(ArtifactError, match="does not fit the columns"):
        PlanDamage.load(tmp_path)
