"""Criteria against numbers worked out by hand on tiny nets."""

import numpy as np
import pytest
import torch
from torch import nn

from compress.counting import count_macs
from compress.criteria import (
    ActivationCriterion,
    ApozCriterion,
    BatchNormScaleCriterion,
    FisherCriterion,
    GeometricMedianCriterion,
    MagnitudeCriterion,
    RandomCriterion,
    SecondOrderCriterion,
    TaylorCriterion,
    WandaCriterion,
)
from compress.criterion import score_units
from compress.errors import CompressError, DataError
from compress.normalization import NORMALIZATIONS, normalize_groups
from compress.statistics import collect_statistics
from compress.structure import analyze


class OutputTask:
    """Loss = the first output of each example, so that derivatives are weights."""

    metric_name = "mean_output"
    higher_is_better = False

    def inputs(self, batch):
        return (batch,)

    def loss(self, outputs, batch):
        return outputs[:, 0]

    def score(self, outputs, batches):
        return float(outputs.mean())


class SquareTask(OutputTask):
    """Loss = half the square of the first output."""

    def loss(self, outputs, batch):
        return outputs[:, 0] ** 2 / 2


# Two hidden units with filters (3, -4) and (0, 1); the loss reads them with weights 2 and -1.
W1 = torch.tensor([[3.0, -4.0], [0.0, 1.0]])
W2 = torch.tensor([[2.0, -1.0], [0.5, 0.25]])
# Hidden values: relu(3 - 4) = 0, 1; relu(3 + 4) = 7, relu(-1) = 0.
X = torch.tensor([[1.0, 1.0], [1.0, -1.0]])
HIDDEN = np.array([[0.0, 1.0], [7.0, 0.0]])


def two_layers():
    model = nn.Sequential(nn.Linear(2, 2, bias=False), nn.ReLU(), nn.Linear(2, 2, bias=False))
    with torch.no_grad():
        model[0].weight.copy_(W1)
        model[2].weight.copy_(W2)
    return model.eval()


@pytest.fixture(name="by_hand", scope="module")
def statistics_of_two_layers():
    structure = analyze(two_layers(), X)
    return collect_statistics(structure, OutputTask(), [X[:1], X[1:]])


@pytest.mark.parametrize(
    ("criterion", "expected", "scale"),
    [
        (MagnitudeCriterion(p=1), [7.0, 1.0], "order"),
        (MagnitudeCriterion(p=2), [5.0, 1.0], "order"),
        # d loss / d gate = hidden * w2[0]: (0, -1) and (14, 0).
        (TaylorCriterion(mode="signed"), [-7.0, 0.5], "nats"),
        (TaylorCriterion(mode="abs_mean"), [7.0, 0.5], "nats"),
        (TaylorCriterion(mode="mean_abs"), [7.0, 0.5], "nats"),
        (FisherCriterion(), [49.0, 0.25], "nats"),
        (FisherCriterion(half=False), [98.0, 0.5], "order"),
        (SecondOrderCriterion(), [42.0, 0.75], "nats"),
        (ActivationCriterion(p=1), [3.5, 0.5], "order"),
        (ActivationCriterion(p=2), [np.sqrt(24.5), np.sqrt(0.5)], "order"),
        # column sums of |W2|: 2.5 and 1.25.
        (WandaCriterion(), [2.5 * np.sqrt(24.5), 1.25 * np.sqrt(0.5)], "order"),
        (ApozCriterion(), [0.5, 0.5], "order"),
        (GeometricMedianCriterion(), [np.sqrt(9 + 25)] * 2, "order"),
    ],
    ids=lambda value: type(value).__name__ if hasattr(value, "score") else None,
)
def test_by_hand(by_hand, criterion, expected, scale):
    np.testing.assert_allclose(criterion.score(by_hand), expected, rtol=1e-6)
    assert criterion.scale == scale


def test_signs_of_taylor_modes_differ():
    x = torch.tensor([[1.0, -1.0], [-1.0, 1.0], [1.0, 1.0]])
    statistics = collect_statistics(analyze(two_layers(), x), SquareTask(), [x], {"gradients"})
    # hidden (7, 0), (0, 1), (0, 1); output 14, -1, -1; t = output * w * hidden: (196, 0), (0, 1), (0, 1).
    np.testing.assert_allclose(TaylorCriterion(mode="signed").score(statistics), [-196 / 3, -2 / 3], rtol=1e-6)
    np.testing.assert_allclose(TaylorCriterion().score(statistics), [196 / 3, 2 / 3], rtol=1e-6)


def test_second_order_is_exact_for_a_quadratic_of_one_example():
    """With the loss (a h)^2 / 2 the exact Hessian is t, while the Fisher is t^2: equal where t = 1."""
    model = nn.Sequential(nn.Linear(1, 2, bias=False), nn.Linear(2, 1, bias=False))
    with torch.no_grad():
        model[0].weight.copy_(torch.tensor([[1.0], [0.0]]))
        model[1].weight.copy_(torch.tensor([[1.0, 1.0]]))
    x = torch.ones(1, 1)
    statistics = collect_statistics(analyze(model, x), SquareTask(), [x])
    score = SecondOrderCriterion().score(statistics)
    # Removing the first unit takes the loss from 1/2 to 0.
    np.testing.assert_allclose(score, [-0.5, 0.0], atol=1e-12)


class Normed(nn.Module):
    """One convolution with batch norm, one without, and a residual join of two normed convolutions."""

    def __init__(self, normed=True):
        super().__init__()
        self.a, self.b, self.c = nn.Conv2d(1, 2, 1), nn.Conv2d(2, 2, 1), nn.Conv2d(2, 1, 1)
        self.norm = nn.BatchNorm2d(2) if normed else nn.Identity()

    def forward(self, x):
        return self.c(torch.relu(self.b(torch.relu(self.norm(self.a(x)))))).flatten(1)


def test_batch_norm_scale_and_its_fallback():
    model = Normed().eval()
    with torch.no_grad():
        model.norm.weight.copy_(torch.tensor([-0.5, 2.0]))
        model.b.weight.copy_(torch.tensor([[3.0, 4.0], [0.0, 15.0]]).view(2, 2, 1, 1))
    x = torch.ones(2, 1, 2, 2)
    statistics = collect_statistics(analyze(model, x), OutputTask(), [x], {"weights"})
    with pytest.warns(UserWarning, match="2 of 4 units have no batch norm"):
        score = BatchNormScaleCriterion().score(statistics)
    # Norms 5 and 15 of the second group, mean 10, times the mean scale 1.25.
    np.testing.assert_allclose(score, [0.5, 2.0, 0.625, 1.875])


def test_batch_norm_scale_without_any_batch_norm():
    model = Normed(normed=False).eval()
    with torch.no_grad():
        model.a.weight.copy_(torch.tensor([1.0, -3.0]).view(2, 1, 1, 1))
        model.b.weight.zero_()
    x = torch.ones(2, 1, 2, 2)
    statistics = collect_statistics(analyze(model, x), OutputTask(), [x], {"weights"})
    with pytest.warns(UserWarning, match="4 of 4 units"):
        score = BatchNormScaleCriterion().score(statistics)
    np.testing.assert_allclose(score, [0.5, 1.5, 0.0, 0.0])


def test_magnitude_counts_every_layer_of_a_coupled_group():
    class Residual(nn.Module):
        def __init__(self):
            super().__init__()
            self.a, self.b, self.c = (nn.Linear(n, m, bias=False) for n, m in ((1, 2), (2, 2), (2, 1)))

        def forward(self, x):
            x = self.a(x)
            return self.c(x + self.b(x))

    model = Residual()
    with torch.no_grad():
        model.a.weight.copy_(torch.tensor([[3.0], [0.0]]))
        model.b.weight.copy_(torch.tensor([[4.0, 0.0], [0.0, 2.0]]))
    x = torch.ones(2, 1)
    statistics = collect_statistics(analyze(model, x), OutputTask(), [x], {"weights"})
    np.testing.assert_allclose(MagnitudeCriterion(p=2).score(statistics), [5.0, 2.0])


def test_random_repeats_with_its_seed(by_hand):
    np.testing.assert_array_equal(RandomCriterion(seed=3).score(by_hand), RandomCriterion(seed=3).score(by_hand))
    assert (RandomCriterion(seed=3).score(by_hand) != RandomCriterion(seed=4).score(by_hand)).any()


def test_normalisations_by_hand():
    values = np.array([1.0, -3.0, 2.0, 0.0, 0.0, 5.0, 5.0])
    groups = {"a": np.arange(3), "dead": np.array([3, 4]), "same": np.array([5, 6])}
    expected = {
        "mean": [0.5, -1.5, 1.0, 0, 0, 1, 1],
        "l2": [*(np.array([1.0, -3.0, 2.0]) / np.sqrt(14 / 3)), 0, 0, 1, 1],
        "max": [1 / 3, -1, 2 / 3, 0, 0, 1, 1],
        "rank": [0.5, 0, 1, 0.5, 0.5, 0.5, 0.5],
        "standard": [*(np.array([1.0, -3.0, 2.0]) / np.sqrt(14 / 3)), 0, 0, 0, 0],
    }
    assert set(expected) == {how for how in NORMALIZATIONS if how}
    for how, wanted in expected.items():
        np.testing.assert_allclose(normalize_groups(values, groups, how), wanted, err_msg=how)
    assert normalize_groups(values, groups, None) is values


def test_normalised_scores_are_an_order(by_hand):
    assert SecondOrderCriterion(normalize="mean").scale == "order"
    np.testing.assert_allclose(FisherCriterion(normalize="max").score(by_hand), [1.0, 0.25 / 49])


@pytest.mark.parametrize(
    "make",
    [
        lambda: MagnitudeCriterion(p=3),
        lambda: TaylorCriterion(mode="cubic"),
        lambda: ActivationCriterion(p=0),
        lambda: RandomCriterion(seed=-1),
        lambda: FisherCriterion(normalize="median"),
    ],
)
def test_settings_out_of_range_are_refused(make):
    with pytest.raises(CompressError, match=r"The '\w+' parameter of \w+Criterion must be"):
        make()


def test_score_units_covers_all_units(by_hand):
    scores = score_units(by_hand.structure, SecondOrderCriterion(), by_hand)
    assert scores.unit_ids == ("0:out[0]", "0:out[1]", "0", "2")
    assert scores.choices == ("removed",)
    np.testing.assert_allclose(scores.removal, [42.0, 0.75, np.nan, np.nan], rtol=1e-6)
    assert scores.scale == "nats"


def test_score_units_says_what_is_missing(by_hand):
    bare = collect_statistics(by_hand.structure, OutputTask(), [X], {"weights"})
    with pytest.raises(CompressError, match="lack 'gradients'"):
        score_units(by_hand.structure, FisherCriterion(), bare)
    with pytest.raises(CompressError, match="lack 'activations'"):
        score_units(by_hand.structure, WandaCriterion(), bare)
    other = analyze(nn.Sequential(nn.Linear(2, 3), nn.ReLU(), nn.Linear(3, 2)), X)
    with pytest.raises(CompressError, match="another model"):
        score_units(other, FisherCriterion(), by_hand)


def test_a_score_that_is_not_finite_is_named(by_hand):
    class Broken:
        name, scale, needs = "broken", "order", frozenset()

        def score(self, statistics):
            return np.array([1.0, np.nan])

    with pytest.raises(DataError, match=r"'broken' gives no finite score for '0:out\[1\]'"):
        score_units(by_hand.structure, Broken(), by_hand)


def test_statistics_record_what_they_cost(by_hand):
    structure = by_hand.structure
    macs = count_macs(structure)
    spent = {kind: collect_statistics(structure, OutputTask(), [X], {kind}).forward_macs
             for kind in ("weights", "activations", "gradients")}  # fmt: skip
    assert spent == {"weights": 0.0, "activations": 2 * macs, "gradients": 4 * macs}
    # Two rows of two columns enter the covariances.
    assert by_hand.forward_macs == 6 * macs + 2 * 2**2


def test_activation_statistics_by_hand(by_hand):
    found = by_hand.activations
    np.testing.assert_allclose(found.mean, [3.5, 0.5])
    np.testing.assert_allclose(found.maximum, [7.0, 1.0])
    np.testing.assert_allclose(found.pooled, HIDDEN)
    np.testing.assert_allclose(found.positions, [1.0, 1.0])


def test_statistics_leave_the_model_as_it_was():
    model = nn.Sequential(nn.Conv2d(1, 3, 3), nn.BatchNorm2d(3), nn.ReLU(), nn.Flatten(), nn.Linear(12, 2)).train()
    x = torch.randn(5, 1, 4, 4, generator=torch.Generator().manual_seed(0))
    structure = analyze(model, x)
    before = {name: value.clone() for name, value in model.state_dict().items()}
    rng = torch.get_rng_state()
    statistics = collect_statistics(structure, OutputTask(), [x[:2], x[2:]])
    assert model.training
    assert structure.traced.module.training
    assert all(torch.equal(before[name], value) for name, value in model.state_dict().items())
    assert all(parameter.grad is None for parameter in model.parameters())
    assert torch.equal(rng, torch.get_rng_state())
    assert statistics.activations.positions.tolist() == [4.0] * 3


def test_batches_of_other_sizes_give_the_same_statistics():
    model = nn.Sequential(nn.Conv2d(1, 3, 3), nn.ReLU(), nn.Conv2d(3, 2, 1), nn.Flatten(), nn.Linear(8, 2)).eval()
    x = torch.randn(6, 1, 4, 4, generator=torch.Generator().manual_seed(0))
    structure = analyze(model, x)
    one = collect_statistics(structure, OutputTask(), [x])
    three = collect_statistics(structure, OutputTask(), [x[:1], x[1:3], x[3:]])
    np.testing.assert_allclose(one.activations.mean_square, three.activations.mean_square, rtol=1e-5)
    np.testing.assert_allclose(one.activations.pooled, three.activations.pooled, rtol=1e-5)
    np.testing.assert_allclose(one.gate_gradients, three.gate_gradients, rtol=1e-4, atol=1e-7)
    np.testing.assert_allclose(one.moments[0].covariance, three.moments[0].covariance, rtol=1e-4, atol=1e-7)


def test_gate_gradients_are_those_of_real_gates():
    """Against finite differences in float64."""
    torch.manual_seed(0)
    model = nn.Sequential(nn.Conv2d(1, 3, 3), nn.Tanh(), nn.Flatten(), nn.Linear(12, 2)).double().eval()
    x = torch.randn(4, 1, 4, 4, dtype=torch.float64)
    statistics = collect_statistics(analyze(model, x), SquareTask(), [x], {"gradients"})

    def loss(gates):
        hidden = torch.tanh(model[0](x)) * gates.view(1, 3, 1, 1)
        return SquareTask().loss(model[3](hidden.flatten(1)), x)

    for unit in range(3):
        step = torch.zeros(3, dtype=torch.float64)
        step[unit] = 1e-5
        with torch.no_grad():
            slope = (loss(1 + step) - loss(1 - step)) / 2e-5
        np.testing.assert_allclose(statistics.gate_gradients[:, unit], slope.numpy(), rtol=1e-5, atol=1e-7)


def test_redundancy_by_hand():
    """Three inputs of a linear layer: the second is twice the first, the third is independent and constant-free."""
    hidden = torch.tensor([[1.0, 2.0, 1.0], [-1.0, -2.0, 1.0], [1.0, 2.0, -1.0], [-1.0, -2.0, -1.0]])
    model = nn.Sequential(nn.Linear(3, 3, bias=False), nn.Linear(3, 1, bias=False))
    with torch.no_grad():
        model[0].weight.copy_(torch.eye(3))
        model[1].weight.copy_(torch.tensor([[1.0, 1.0, 2.0]]))
    found = collect_statistics(analyze(model, hidden), OutputTask(), [hidden], {"moments"}).redundancy
    np.testing.assert_allclose(found.residual, [0.0, 0.0, 1.0], atol=0.01)
    # Output 3 a + 2 c has energy 13; alone the units make 1, 4 and 4 of it.
    np.testing.assert_allclose(found.silenced, np.array([1, 4, 4]) / 13, rtol=1e-6)
    np.testing.assert_allclose(found.averaged, np.array([1, 4, 4]) / 13, rtol=1e-6)
    np.testing.assert_allclose(found.refitted, [0.0, 0.0, 4 / 13], atol=0.01)


def test_a_constant_unit_costs_nothing_once_its_mean_is_kept():
    hidden = torch.tensor([[5.0, 1.0], [5.0, -1.0]])
    model = nn.Sequential(nn.Linear(2, 2, bias=False), nn.Linear(2, 1))
    with torch.no_grad():
        model[0].weight.copy_(torch.eye(2))
        model[1].weight.fill_(1.0)
    found = collect_statistics(analyze(model, hidden), OutputTask(), [hidden], {"moments"}).redundancy
    np.testing.assert_allclose(found.residual, [0.0, 1.0], atol=0.01)
    np.testing.assert_allclose(found.silenced, [25 / 26, 1 / 26], rtol=1e-6)
    np.testing.assert_allclose(found.averaged, [0.0, 1 / 26], atol=1e-9)


def test_wrong_batches_are_refused():
    structure = analyze(two_layers(), X)
    for batches, reason in (
        ([], "at least one calibration batch"),
        ([X[:0]], "Batch 0 is empty"),
        ([X, torch.ones(2, 3)], "Batch 1 has shape"),
        ([torch.full((2, 2), float("nan"))], "NaN"),
        ([{"x": X}], "must begin with a tensor, examples first. Got dict"),
    ):
        with pytest.raises(DataError, match=reason):
            collect_statistics(structure, OutputTask(), batches)
    with pytest.raises(CompressError, match="'needs' parameter"):
        collect_statistics(structure, OutputTask(), [X], {"hessian"})
