"""Backward elimination against brute force, and the criterion made of it."""

import itertools

import numpy as np
import pytest
import torch
from torch import nn

from compress import ClassificationTask, CompressError, analyze
from compress.criteria.reconstruction import ReconstructionCriterion
from compress.elimination import Reading, eliminate, readings, silencing_errors
from compress.statistics import collect_statistics


def make_reading(seed: int, rows: np.ndarray, n_outputs: int) -> Reading:
    rng = np.random.default_rng(seed)
    x = rng.normal(size=(200, len(rows))) @ rng.normal(size=(len(rows), len(rows)))
    return Reading(rows, np.cov(x.T, bias=True), rng.normal(size=(len(rows), n_outputs)), x.mean(axis=0))


def refit_error(reading: Reading, gone: list[int]) -> float:
    """Part of the outputs' variance that a refit on the other columns leaves."""
    drop = np.isin(reading.rows, gone)
    s, w = reading.covariance, reading.weight[drop]
    kept = s[np.ix_(~drop, ~drop)]
    rest = s[np.ix_(drop, drop)] - s[np.ix_(drop, ~drop)] @ np.linalg.solve(kept, s[np.ix_(~drop, drop)])
    return np.trace(w.T @ rest @ w) / np.trace(reading.weight.T @ s @ reading.weight)


@pytest.mark.parametrize("columns", [[0, 1, 2, 3, -1, 4], [0, 0, 1, 2, -1, 1, 3, 3]])
def test_increases_add_up_to_the_refitted_error_of_all_readers(columns: list[int]) -> None:
    places = [make_reading(0, np.array(columns), 3), make_reading(1, np.array(columns), 2)]
    units = np.array(sorted({c for c in columns if c >= 0}))
    order, increases = eliminate(places, units, ridge=1e-12)
    assert sorted(order) == units.tolist()
    for k in range(1, len(units) + 1):
        error = sum(refit_error(place, order[:k].tolist()) for place in places)
        assert increases[:k].sum() == pytest.approx(error, rel=1e-6)
        # Each step takes the unit that adds least.
        others = [sum(refit_error(p, [*order[: k - 1], u]) for p in places) for u in units if u not in order[: k - 1]]
        assert error == pytest.approx(min(others), rel=1e-6)


def test_two_columns_that_are_alike_are_cheap_once() -> None:
    x = np.random.default_rng(0).normal(size=(500, 3))
    x = np.column_stack([x, 2 * x[:, 0]])
    place = Reading(np.arange(4), np.cov(x.T, bias=True), np.ones((4, 2)), x.mean(axis=0))
    order, increases = eliminate([place], np.arange(4), ridge=1e-9)
    assert order[0] in (0, 3)
    assert increases[0] < 1e-6 < 0.05 < increases[1]
    assert set(order[1:]) == set(range(4)) - {order[0]}
    assert silencing_errors([place], np.arange(4)) == pytest.approx(
        [place.covariance[i, i] * 2 / np.trace(place.weight.T @ place.covariance @ place.weight) for i in range(4)]
    )


def test_the_criterion_is_in_nats_and_spares_the_last_of_alike_channels() -> None:
    with torch.random.fork_rng():
        torch.manual_seed(0)
        model = nn.Sequential(nn.Linear(6, 8), nn.ReLU(), nn.Linear(8, 3)).eval()
    with torch.no_grad():
        for value in (model[0].weight, model[0].bias):
            value[5] = value[2]
    generator = torch.Generator().manual_seed(1)
    batches = [(torch.randn(64, 6, generator=generator), torch.arange(64) % 3)]
    structure = analyze(model, batches[0][0])
    needs = ("gradients", "moments")
    statistics = collect_statistics(structure, ClassificationTask(), batches, needs)
    score = ReconstructionCriterion().score(statistics)
    assert ReconstructionCriterion().scale == "nats"
    twins = sorted(score[[2, 5]])
    assert twins[0] == score.min()
    assert twins[0] < 0.05 * twins[1]
    # Without redundancy to be found the level is that of the Fisher damage.
    fisher = 0.5 * (statistics.gate_gradients.astype(np.float64) ** 2).mean(0)
    rest = [unit for unit in range(8) if unit not in (2, 5)]
    assert 0.1 < np.median(score[rest]) / np.median(fisher[rest]) < 3
    lean = collect_statistics(structure, ClassificationTask(), batches, ("gradients",))
    with pytest.raises(CompressError, match="'moments'"):
        ReconstructionCriterion().score(lean)


@pytest.mark.parametrize(("groups", "readers"), [(1, 2), (2, 1)])
def test_grouped_transposed_convolutions_are_left_out(groups: int, readers: int) -> None:
    model = nn.Sequential(
        nn.Conv2d(3, 4, 3), nn.ReLU(), nn.ConvTranspose2d(4, 6, 2, groups=groups), nn.ReLU(), nn.Conv2d(6, 3, 1),
        nn.AdaptiveAvgPool2d(1), nn.Flatten(),
    ).eval()  # fmt: skip
    batches = [(torch.randn(8, 3, 6, 6, generator=torch.Generator().manual_seed(0)), torch.arange(8) % 3)]
    structure = analyze(model, batches[0][0])
    statistics = collect_statistics(structure, ClassificationTask(), batches, ("gradients", "moments"))
    found = readings(statistics)
    assert len({reading.call for reading in found}) == readers
    # A wrong reading of its weight would mix input channels that it does not mix.
    assert all(reading.weight.shape[0] == len(reading.rows) for reading in found)


def test_brute_force_finds_nothing_much_better() -> None:
    place = make_reading(4, np.arange(7), 4)
    _, increases = eliminate([place], np.arange(7), ridge=1e-12)
    best = min(refit_error(place, list(gone)) for gone in itertools.combinations(range(7), 3))
    assert best <= increases[:3].sum() <= 2 * best
