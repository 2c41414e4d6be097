"""Scores of single weights by hand: a linear model with a loss whose derivatives are known."""

import pytest
import torch
from torch import nn

from compress import ClassificationTask, CompressError, DataError
from compress.graph import trace
from compress.weight_score import score_weights
from compress.weight_scores import (
    FisherWeightScore,
    LampWeightScore,
    MagnitudeWeightScore,
    ObsWeightScore,
    RandomWeightScore,
    TaylorWeightScore,
    WandaWeightScore,
)
from compress.weight_statistics import collect_weight_statistics


class SumTask:
    """The loss of an example is the sum of its outputs: its derivative by w_ij is input j."""

    metric_name, higher_is_better = "sum", False

    def inputs(self, batch):
        return (batch[0],)

    def loss(self, outputs, batch):
        return outputs.flatten(1).sum(1)


W = torch.tensor([[1.0, -2.0], [3.0, 0.5]])
X = torch.tensor([[1.0, 2.0], [3.0, -1.0], [2.0, 2.0]])
TASK = SumTask()


@pytest.fixture(name="model")
def one_layer():
    model = nn.Sequential(nn.Linear(2, 2))
    with torch.no_grad():
        model[0].weight.copy_(W)
    return model


def scored(model, score, batches=((X[:2],), (X[2:],)), **settings):
    return score_weights(model, score, TASK, list(batches), **settings)["0"]


def test_magnitude(model):
    assert score_weights(model, MagnitudeWeightScore())["0"].tolist() == [[1.0, 2.0], [3.0, 0.5]]


def test_lamp_is_the_share_of_the_weights_that_are_not_smaller(model):
    found = score_weights(model, LampWeightScore())["0"]
    expected = torch.tensor([[1 / 14, 4 / 13], [1.0, 0.25 / 14.25]], dtype=torch.float64)
    torch.testing.assert_close(found, expected)
    with torch.no_grad():
        model[0].weight.zero_()
    assert not score_weights(model, LampWeightScore())["0"].any()


def test_random_is_of_seed_and_layer():
    model = nn.Sequential(nn.Linear(2, 2), nn.Linear(2, 2))
    first, again = (score_weights(model, RandomWeightScore(3)) for _ in range(2))
    assert first["0"].equal(again["0"])
    assert not first["0"].equal(first["1"])
    assert not first["0"].equal(score_weights(model, RandomWeightScore(4))["0"])
    large = score_weights(nn.Sequential(nn.Linear(100, 100)), RandomWeightScore())["0"]
    assert 0 <= large.min() < 0.01
    assert 0.99 < large.max() < 1


def test_taylor_is_weight_times_mean_gradient(model):
    # Mean inputs are 2 and 1.
    assert scored(model, TaylorWeightScore()).tolist() == [[2.0, 2.0], [6.0, 0.5]]


def test_fisher_squares_the_gradient_of_single_examples(model):
    # Mean squares of the inputs are 14/3 and 3; of the mean gradient they would be 4 and 1.
    expected = W.double() ** 2 * torch.tensor([14 / 3, 3.0])
    torch.testing.assert_close(scored(model, FisherWeightScore()), expected)
    # A batch that cannot be divided gives the same, one backward pass after the other.
    torch.testing.assert_close(scored(model, FisherWeightScore(), [(X[:2], "a"), (X[2:], "b")]), expected)


def test_wanda_is_weight_times_input_norm(model):
    expected = W.double().abs() * torch.tensor([14 / 3, 3.0], dtype=torch.float64).sqrt()
    torch.testing.assert_close(scored(model, WandaWeightScore()), expected)


def test_obs_divides_by_the_diagonal_of_the_inverse(model):
    # H = [[14, 3], [3, 9]] / 3, its determinant 13, so 1 / [H^-1]_jj = 13 / 3 and 13 / (14 / 3).
    expected = W.double() ** 2 * torch.tensor([13 / 3, 39 / 14])
    torch.testing.assert_close(scored(model, ObsWeightScore(ridge=1e-12)), expected)


def test_obs_is_the_error_after_the_best_adjustment(model):
    x, w = X.double(), W.double()
    error = scored(model, ObsWeightScore(ridge=1e-12))
    # Without input 0, the best weight of input 1 is that of a regression.
    for row in range(2):
        target = x @ w[row]
        left = x[:, 1] * (x[:, 1] @ target) / (x[:, 1] @ x[:, 1]) - target
        assert error[row, 0].item() == pytest.approx(left.square().mean().item())
    # An input without a partner that resembles it: the score is that of wanda, squared.
    apart = [(torch.tensor([[1.0, 0.0], [0.0, 2.0]]),)]
    torch.testing.assert_close(
        scored(model, ObsWeightScore(1e-12), apart), scored(model, WandaWeightScore(), apart) ** 2
    )


def test_a_conv_multiplies_every_kernel_position():
    conv = nn.Conv2d(1, 1, 2, bias=False)
    with torch.no_grad():
        conv.weight.copy_(torch.tensor([[[[1.0, 2.0], [3.0, 4.0]]]]))
    # Four positions of a 3 x 3 image: the top left kernel weight sees 1, 2, 4, 5.
    image = torch.arange(1.0, 10.0).reshape(1, 1, 3, 3)
    found = scored(nn.Sequential(conv), WandaWeightScore(), [(image,)])
    sizes = [[1 + 4 + 16 + 25, 4 + 9 + 25 + 36], [16 + 25 + 49 + 64, 25 + 36 + 64 + 81]]
    expected = conv.weight.detach()[0, 0].double() * (torch.tensor(sizes, dtype=torch.float64) / 4).sqrt()
    torch.testing.assert_close(found[0, 0], expected)


def test_groups_of_a_conv_have_inputs_of_their_own():
    conv = nn.Conv1d(2, 2, 1, groups=2)
    x = torch.stack([torch.full((4, 1), 2.0), torch.full((4, 1), 3.0)], dim=1)
    found = scored(nn.Sequential(conv), WandaWeightScore(), [(x,)])
    torch.testing.assert_close(
        found.flatten(), conv.weight.detach().double().abs().flatten() * torch.tensor([2.0, 3.0])
    )


def test_normalised_within_each_layer():
    model = nn.Sequential(nn.Linear(3, 2), nn.Linear(2, 2))
    for how, reached in (("max", 1.0), ("rank", 1.0)):
        found = score_weights(model, MagnitudeWeightScore(), normalize=how)
        assert [scores.max().item() for scores in found.values()] == [reached, reached]
    with pytest.raises(CompressError, match="'normalize' parameter of score_weights"):
        score_weights(model, MagnitudeWeightScore(), normalize="loud")


def test_a_traced_model_scores_the_same():
    with torch.random.fork_rng():
        torch.manual_seed(0)
        model = nn.Sequential(nn.Conv2d(2, 4, 3, stride=2, padding=1), nn.BatchNorm2d(4), nn.ReLU(), nn.Flatten(),
                              nn.Dropout(0.5), nn.Linear(36, 3))  # fmt: skip
    generator = torch.Generator().manual_seed(1)
    batches = [(torch.randn(4, 2, 6, 6, generator=generator), torch.tensor([0, 1, 2, 1])) for _ in range(2)]
    traced = trace(model, batches[0][0]).module
    for score in (TaylorWeightScore(), FisherWeightScore(), WandaWeightScore(), ObsWeightScore()):
        ours, theirs = (score_weights(m, score, ClassificationTask(), batches) for m in (model, traced))
        assert list(ours) == list(theirs) == ["0", "5"]
        for name in ours:
            torch.testing.assert_close(ours[name], theirs[name])


def test_what_cannot_be_scored_is_told(model):
    with pytest.raises(DataError, match="need a task and at least one calibration batch"):
        score_weights(model, TaylorWeightScore())
    with pytest.raises(DataError, match="not finite"):
        scored(model, TaylorWeightScore(), [(X * torch.inf,)])
    words = nn.Sequential(nn.Embedding(4, 2), nn.Linear(2, 2))
    tokens = [(torch.tensor([[0, 1], [2, 3]]),)]
    with pytest.raises(CompressError, match="'0' lack 'layout'"):
        score_weights(words, WandaWeightScore(), TASK, tokens)
    assert list(score_weights(words, WandaWeightScore(), TASK, tokens, skip=["0"])) == ["1"]
    with pytest.raises(CompressError, match="Got 'weights'"):
        collect_weight_statistics(model, {"weights"})
    with pytest.raises(CompressError, match="'ridge' parameter"):
        ObsWeightScore(0.0)
    with pytest.raises(CompressError, match="'seed' parameter"):
        RandomWeightScore(-1)
