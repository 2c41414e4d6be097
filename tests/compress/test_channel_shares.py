"""Scores of channels as scores of their weights."""

import numpy as np
import pytest
import torch
from implementations import implementations
from torch import nn

import compress.criteria
from compress.channel_shares import share_scores
from compress.errors import CompressError
from compress.masking import choose_masks
from compress.prunable_weights import prunable_weights
from compress.statistics import collect_statistics
from compress.structure import analyze
from compress.task import ClassificationTask


def test_shares_of_two_hidden_neurons_by_hand():
    model = nn.Sequential(nn.Linear(2, 2), nn.ReLU(), nn.Linear(2, 1))
    with torch.no_grad():
        model[0].weight.copy_(torch.tensor([[1.0, 2.0], [3.0, 0.0]]))
        model[2].weight.copy_(torch.tensor([[2.0, 1.0]]))
    # The first neuron's squares add up to 1 + 4 + 4, the other's to 9 + 1.
    found = share_scores(analyze(model, torch.zeros(1, 2)), [18.0, 5.0])
    assert found["0"].tolist() == [[2.0, 8.0], [4.5, 0.0]]
    assert found["2"].tolist() == [[8.0, 0.5]]


@pytest.fixture
def structure():
    """A conv net with a skip connection, and a depthwise conv."""

    class Net(nn.Module):
        def __init__(self):
            super().__init__()
            self.first, self.second = nn.Conv2d(1, 6, 3, padding=1), nn.Conv2d(6, 6, 3, padding=1)
            self.depthwise, self.last = nn.Conv2d(6, 6, 3, groups=6), nn.Linear(6, 4)

        def forward(self, x):
            x = self.first(x).relu()
            x = (x + self.second(x)).relu()
            return self.last(self.depthwise(x).relu().mean((2, 3)))

    with torch.random.fork_rng():
        torch.manual_seed(0)
        return analyze(Net().eval(), torch.zeros(2, 1, 8, 8))


def test_what_was_dealt_out_adds_up(structure):
    scores = np.random.default_rng(0).random(structure.n_removable)
    found = share_scores(structure, scores)
    assert found.keys() == prunable_weights(structure.traced.module).keys()
    assert sum(float(share.sum()) for share in found.values()) == pytest.approx(scores.sum())


def test_a_channel_without_importance_goes_first(structure):
    scores = np.ones(structure.n_removable)
    scores[2] = 0.0
    shares = share_scores(structure, scores)
    masks = choose_masks(structure.traced.module, shares, 0.85, scope="global")
    row = structure.parameters["first.weight"][0].tolist().index(2)
    assert not masks["first"][row].any()
    assert not masks["last"][:, row].any()


def test_layers_without_channels_count_by_their_squares():
    layer = nn.Linear(3, 2)
    (share,) = share_scores(analyze(layer, torch.zeros(1, 3)), []).values()
    assert torch.equal(share, layer.weight.detach().double().square())


def test_weights_between_what_must_stay_count_as_average_ones():
    class Head(nn.Module):
        """The input goes on beside what is made of it; only the latter can be removed."""

        def __init__(self):
            super().__init__()
            self.a, self.b = nn.Linear(8, 6), nn.Linear(14, 3)

        def forward(self, x):
            return self.b(torch.cat([self.a(x).relu(), x], 1))

    structure = analyze(Head(), torch.zeros(1, 8))
    scores = np.arange(1.0, 7.0)
    found, weight = share_scores(structure, scores), structure.traced.module.get_parameter("b.weight").detach()
    made = structure.traced.module.get_parameter("a.weight").detach()
    energy = made.double().square().sum() + weight[:, :6].double().square().sum()
    torch.testing.assert_close(found["b"][:, 6:], weight[:, 6:].double().square() * scores.sum() / energy)
    assert float(found["a"].sum() + found["b"][:, :6].sum()) == pytest.approx(scores.sum())


def test_a_nearly_dead_channel_does_not_make_others_matter(structure):
    with torch.no_grad():
        for name in ("first.weight", "second.weight", "depthwise.weight"):
            structure.traced.module.get_parameter(name)[0] *= 1e-8
        structure.traced.module.get_parameter("second.weight")[:, 0] *= 1e-8
        structure.traced.module.get_parameter("last.weight")[:, 0] *= 1e-8
    found = share_scores(structure, np.ones(structure.n_removable))
    assert max(float(share.max()) for share in found.values()) <= 1


def test_the_sign_of_a_score_does_not_turn_the_order_of_weights():
    model = nn.Sequential(nn.Linear(2, 2), nn.ReLU(), nn.Linear(2, 1))
    structure = analyze(model, torch.zeros(1, 2))
    for one, other in zip(*(share_scores(structure, s).values() for s in ([-1.0, 2.0], [1.0, 2.0])), strict=True):
        assert torch.equal(one, other)


@pytest.mark.filterwarnings("ignore:.*have no batch norm:UserWarning")
@pytest.mark.parametrize("kind", implementations(compress.criteria, "score"))
def test_any_criterion_will_do(structure, kind):
    generator = torch.Generator().manual_seed(0)
    batches = [(torch.randn(16, 1, 8, 8, generator=generator), torch.randint(4, (16,), generator=generator))]
    criterion = kind()
    scores = criterion.score(collect_statistics(structure, ClassificationTask(), batches, criterion.needs))
    shares = share_scores(structure, scores)
    assert sum(float(share.sum()) for share in shares.values()) == pytest.approx(np.abs(scores).sum())
    kept = choose_masks(structure.traced.module, shares, 0.5, scope="global")
    lost = sum(float(shares[name][~mask].sum()) for name, mask in kept.items())
    assert lost < 0.5 * np.abs(scores).sum()


def test_scores_of_other_units_are_refused(structure):
    with pytest.raises(CompressError, match="'scores' parameter of share_scores must be"):
        share_scores(structure, [1.0])
