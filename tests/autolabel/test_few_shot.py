"""Scores corrected by measured plans: closed form, and what a labeler got wrong on a network that is unlike others."""

import numpy as np
import pytest
from scipy.stats import spearmanr

from autolabel.few_shot import AdaptedPlanLabeler, adapt
from autolabel.plan_board import normal_scores
from autolabel.plan_summary import PlanSummary
from compress.errors import CompressError

NAMES = ("log_units", "first_layer", "last_layer", "n_makers", "n_readers", "is_head", "macs_share", "bytes_share",
         "sensitivity_share", "log1p_group_nats", "kept")  # fmt: skip


def plans(kept):
    values = np.full((len(kept), kept.shape[1], len(NAMES)), 0.5, dtype=np.float32)
    values[:, :, -1] = kept
    return PlanSummary(tuple(f"g{i}" for i in range(kept.shape[1])), NAMES, values, ("macs",),
                       np.full((len(kept), 1), 0.5, dtype=np.float32))  # fmt: skip


def test_without_distance_it_is_a_mean_over_twins():
    summary = plans(np.array([[0.2, 0.8], [0.2, 0.8], [0.9, 0.1], [0.9, 0.1]]))
    score, losses = np.zeros(4), np.array([1.0, 2.0])
    found = adapt(score, summary, np.array([0, 2]), losses, length=0.01)
    worse, better = normal_scores(losses)[::-1]
    # Far from the other one each pair knows its own measurement only: variance / (variance + noise) of it.
    np.testing.assert_allclose(found, np.array([better, better, worse, worse]) * 0.5 / 0.8, atol=1e-9)


def test_it_learns_what_the_labeler_got_wrong():
    rng = np.random.default_rng(0)
    gains = []
    for _ in range(10):
        kept = rng.random((30, 3))
        loss = np.exp(-2 * kept[:, 0] + 1.5 * kept[:, 1])
        wrong = -kept[:, 0] - kept[:, 1]
        chosen = rng.permutation(30)[:8]
        rest = np.setdiff1d(np.arange(30), chosen)
        found = adapt(wrong, plans(kept), chosen, loss[chosen])
        gains.append(spearmanr(found[rest], loss[rest]).statistic - spearmanr(wrong[rest], loss[rest]).statistic)
    assert np.median(gains) > 0.1


def test_too_little_is_refused():
    summary = plans(np.random.default_rng(0).random((5, 2)))
    for rows, losses in (([0], [1.0]), ([0, 1], [1.0]), ([0, 1], [1.0, np.nan])):
        with pytest.raises(CompressError, match="At least two plans"):
            adapt(np.zeros(5), summary, np.array(rows), np.array(losses))


class Wrong:
    """A labeler that thinks that the first group does not matter."""

    name = "wrong"

    def predict(self, summary, reference=None):
        kept, known = (x.values[:, :, -1].astype(float) for x in (summary, reference or summary))
        return (known[:, 1].mean() - kept[:, 1]) / known[:, 1].std(), np.zeros(len(kept))


def some_plans(summary, rows):
    return PlanSummary(summary.groups, NAMES, summary.values[rows], summary.plan_names, summary.plan_values[rows])


def test_an_adapted_labeler_judges_plans_by_those_that_were_measured():
    rng = np.random.default_rng(0)
    kept = rng.random((60, 2))
    loss = np.exp(-3 * kept[:, 0] - kept[:, 1])
    random = plans(rng.random((30, 2)))
    labeler = AdaptedPlanLabeler(Wrong(), plans(kept[:20]), loss[:20], random)
    others = plans(kept[20:])
    score, spread = labeler.predict(others)
    before = Wrong().predict(others)[0]
    assert spearmanr(score, loss[20:]).statistic > spearmanr(before, loss[20:]).statistic + 0.1
    assert spread.shape == (40,)
    # A plan is judged alike whoever else is asked about, and whether or not the random plans are named.
    np.testing.assert_allclose(labeler.predict(some_plans(others, slice(3)), random)[0], score[:3], atol=1e-9)
    with pytest.raises(CompressError, match="At least two plans"):
        AdaptedPlanLabeler(Wrong(), plans(kept[:1]), loss[:1], random)
    with pytest.raises(CompressError, match="same groups"):
        AdaptedPlanLabeler(Wrong(), plans(rng.random((2, 3))), loss[:2], random).predict(others)


def test_favourites_that_are_alike_are_told_apart():
    gains = []
    for seed in range(10):
        rng = np.random.default_rng(seed)
        measured, close = rng.random((12, 2)), 0.5 + 0.05 * rng.standard_normal((30, 2))
        loss = [np.exp(-3 * kept[:, 0] - kept[:, 1]) for kept in (measured, close)]
        labeler = AdaptedPlanLabeler(Wrong(), plans(measured), loss[0], plans(rng.random((30, 2))))
        adapted, plain = labeler.predict(plans(close))[0], Wrong().predict(plans(close))[0]
        gains.append(spearmanr(adapted, loss[1]).statistic - spearmanr(plain, loss[1]).statistic)
    assert np.mean(gains) > 0.1
