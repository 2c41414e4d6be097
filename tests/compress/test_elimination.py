"""Backward elimination against brute force, and the criterion made of it."""

import itertools

import numpy as np
import pytest
import torch
from torch import nn
from torch.nn import functional as F

from compress import ClassificationTask, CompressError, analyze
from compress.criteria import ReconstructionCriterion, ZipLMCriterion
from compress.elimination import Reading, eliminate, joint_readings, readings, silencing_errors
from compress.statistics import KINDS, collect_statistics


def make_reading(seed: int, rows: np.ndarray, n_outputs: int) -> Reading:
    rng = np.random.default_rng(seed)
    x = rng.normal(size=(200, len(rows))) @ rng.normal(size=(len(rows), len(rows)))
    return Reading(rows, np.cov(x.T, bias=True), rng.normal(size=(len(rows), n_outputs)), x.mean(axis=0))


def labelled(x: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    """A batch of the first class."""
    return x, torch.zeros(len(x), dtype=torch.int64)


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


def test_three_channels_by_hand() -> None:
    # Hidden values are the inputs: (a, b, a) with a and b uncorrelated and a weaker. Either copy of a is free and the
    # other takes its weight; the second copy costs its energy: 3^2 x 1 of 3^2 x 1 + 1 x 4 in all.
    model = nn.Sequential(nn.Linear(2, 3, bias=False), nn.Linear(3, 1, bias=False))
    model[0].weight.data = torch.tensor([[1.0, 0.0], [0.0, 1.0], [1.0, 0.0]])
    model[1].weight.data = torch.tensor([[1.0, 1.0, 2.0]])
    x = torch.tensor([[1.0, 2.0], [-1.0, 2.0], [1.0, -2.0], [-1.0, -2.0]])
    needs = ("gradients", "layer_moments")
    statistics = collect_statistics(analyze(model, x), ClassificationTask(), [labelled(x)], needs)
    order, increases = eliminate(joint_readings(statistics), statistics.group_rows["0:out"], ridge=1e-9)
    assert order[0] in (0, 2)
    assert order[1] == 1  # 1 x 4 is less than 3^2 x 1
    np.testing.assert_allclose(increases, [0.0, 4 / 13, 9 / 13], atol=1e-6)
    score = ZipLMCriterion().score(statistics)
    assert ZipLMCriterion().scale == "nats"
    assert score.argsort()[:2].tolist() == order[:2].tolist()
    lean = collect_statistics(statistics.structure, ClassificationTask(), [labelled(x)])
    with pytest.raises(CompressError, match="'layer_moments'"):
        ZipLMCriterion().score(lean)


class Fork(nn.Module):
    """One group of channels that a conv with a kernel and a flattened linear read."""

    def __init__(self) -> None:
        super().__init__()
        self.first = nn.Conv2d(2, 5, 3, padding=1)
        self.conv, self.fc = nn.Conv2d(5, 3, 3, bias=False), nn.Linear(5 * 16, 4, bias=False)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        y = torch.relu(self.first(x))
        return torch.cat([self.conv(y).mean((2, 3)), self.fc(y.flatten(1))], 1)


def test_increases_are_what_least_squares_on_whole_patches_leaves() -> None:
    with torch.random.fork_rng():
        torch.manual_seed(0)
        model = Fork().eval()
    x = torch.randn(200, 2, 4, 4, generator=torch.Generator().manual_seed(1))
    statistics = collect_statistics(
        analyze(model, x[:2]), ClassificationTask(), [labelled(x[:90]), labelled(x[90:])], ("layer_moments",)
    )
    found = joint_readings(statistics)
    assert sorted(len(reading.rows) for reading in found) == [5 * 9, 5 * 16]
    order, increases = eliminate(found, statistics.group_rows["first:out"], ridge=1e-9)
    with torch.no_grad():
        hidden = torch.relu(model.first(x)).double()
        patches = F.unfold(hidden, 3).movedim(1, 2).reshape(-1, 5 * 9)
        read = [(patches, model.conv.weight, 9), (hidden.flatten(1), model.fc.weight, 16)]
        for n_removed in range(1, 5):
            error = 0.0
            for inputs, weight, columns in read:
                target = inputs @ weight.flatten(1).double().T
                kept = inputs[:, ~np.isin(np.repeat(np.arange(5), columns), order[:n_removed])]
                left = target - kept @ torch.linalg.lstsq(kept, target).solution
                error += float(left.square().sum() / target.square().sum())
            assert increases[:n_removed].sum() == pytest.approx(error, rel=1e-3)


def test_what_kernel_offsets_have_in_common_counts() -> None:
    # A channel that a difference of neighbours reads is nearly silent where it is smooth: taken by themselves the two
    # offsets cost as much as those of a channel that is summed.
    model = nn.Sequential(nn.Conv1d(2, 2, 1, bias=False), nn.Conv1d(2, 1, 2, bias=False), nn.Flatten())
    model[0].weight.data = torch.eye(2)[..., None]
    model[1].weight.data = torch.tensor([[[1.0, -1.0], [0.9, 0.9]]])
    x = torch.randn(64, 2, 1, generator=torch.Generator().manual_seed(0)).expand(64, 2, 8)
    statistics = collect_statistics(analyze(model, x[:2]), ClassificationTask(), [labelled(x)], KINDS)
    units = statistics.group_rows["0:out"]
    apart, joint = (eliminate(places, units)[1] for places in (readings(statistics), joint_readings(statistics)))
    assert joint[0] < 1e-2 < 0.2 < apart[0]


def test_brute_force_finds_nothing_much_better() -> None:
    place = make_reading(4, np.arange(7), 4)
    _, increases = eliminate([place], np.arange(7), ridge=1e-12)
    best = min(refit_error(place, list(gone)) for gone in itertools.combinations(range(7), 3))
    assert best <= increases[:3].sum() <= 2 * best


def test_a_transposed_convolution_in_groups_is_not_read_as_one_that_mixes_all_channels() -> None:
    torch.manual_seed(0)
    x = torch.randn(32, 3, 6, 6)
    found = {}
    for groups in (1, 2):
        model = nn.Sequential(nn.Conv2d(3, 8, 3), nn.ReLU(), nn.ConvTranspose2d(8, 8, 2, groups=groups), nn.Flatten())
        structure = analyze(model.eval(), x[:2])
        found[groups] = collect_statistics(structure, ClassificationTask(), [labelled(x)], {"moments"})
    assert len(readings(found[2])) == len(readings(found[1])) - 1
    # Nothing that could be refitted reads what the first layer puts out.
    assert (found[1].redundancy.silenced > 0).all()
    assert (found[2].redundancy.silenced == 0).all()
