"""Terms of pairs: exact where the expansion is, and learned where they are the truth."""

import numpy as np
import pytest
import torch
from torch import nn

from autolabel.choice_bench import DENSE, ChoiceBench
from autolabel.joint_damage import JointDamage
from autolabel.pair_terms import LearnedPairs, second_order_pairs
from compress import ClassificationTask, analyze
from compress.errors import CompressError
from compress.layer_choice import LayerChoice
from compress.quantizers.mse import MseQuantizer


class TwoHeads(nn.Module):
    """Logits are sums of what two layers compute, so that changes of them add up exactly."""

    def __init__(self):
        super().__init__()
        self.one, self.other = nn.Linear(6, 3, bias=False), nn.Linear(6, 3, bias=False)

    def forward(self, x):
        return self.one(x) + self.other(x)


def bench_of(model, x):
    choices = [LayerChoice(8), LayerChoice(4), LayerChoice(2)]
    return ChoiceBench(analyze(model, x[:2]), ClassificationTask(), MseQuantizer(), choices)


@pytest.fixture
def examples():
    return torch.randn(64, 6, generator=torch.Generator().manual_seed(0))


def test_a_plan_of_two_layers_does_what_the_expansion_in_its_own_outputs_says(examples):
    torch.manual_seed(0)
    bench = bench_of(TwoHeads().eval(), examples)
    batches = [(examples, torch.zeros(64, dtype=torch.long))]
    pairs = second_order_pairs(bench, batches)
    assert np.allclose(pairs, pairs.T)
    dense = bench.outputs([DENSE, DENSE], batches).double()
    p = dense.softmax(1)
    for picks in ([2, 2], [1, 2], [2, DENSE]):
        change = bench.outputs(picks, batches).double() - dense
        exact = 0.5 * ((p * change.square()).sum(1) - (p * change).sum(1).square()).mean()
        taken = bench.taken(np.array([picks]))[0]
        assert float(taken @ pairs @ taken) == pytest.approx(float(exact), rel=1e-5)
        assert float(exact) > 1e-4


def test_sequences_of_outputs_are_refused():
    x = torch.randn(8, 3, 6, generator=torch.Generator().manual_seed(0))
    bench = bench_of(nn.Linear(6, 4).eval(), x)
    with pytest.raises(CompressError, match="Terms of pairs need outputs"):
        second_order_pairs(bench, [(x, torch.zeros(8, dtype=torch.long))])


@pytest.mark.parametrize("strength", [0.0, 0.3])
def test_a_pair_that_hurts_more_together_is_learned_and_nothing_is_made_up(strength):
    rng = np.random.default_rng(0)
    n_layers, n_picks = 4, 3
    alone = np.tile([0.01, 0.1, 1.0], n_layers)
    picks = rng.integers(0, n_picks, (260, n_layers))
    taken = (picks[:, :, None] == np.arange(n_picks)).reshape(len(picks), -1)
    # Layers 0 and 1: severe in both or in neither hurts more, by a factor.
    together = (picks[:, 0] - 1) * (picks[:, 1] - 1)
    damage = (taken @ alone) * np.exp(strength * together + 0.02 * rng.normal(size=len(picks)))
    law = JointDamage.fit(alone, taken[:60], damage[:60])
    pairs = LearnedPairs.fit(law, taken[:60], damage[:60], n_layers, noise=1e-3)

    def error(predicted):
        return float(np.abs(np.log(predicted / damage[60:])).mean())

    known, learned = error(law.predict(taken[60:])), error(pairs.predict(taken[60:]))
    if strength:
        assert learned < 0.5 * known
        assert int(np.argmax(np.abs(pairs.weight))) == 0
    else:
        assert learned < known + 0.02
