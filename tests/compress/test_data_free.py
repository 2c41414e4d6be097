"""Inputs made of batch-norm statistics: by hand, on a trained net, and what must stay as it was."""

import pytest
import torch
from torch import nn

from compress.data_free import statistics_distance, synthesize_batches
from compress.errors import CompressError, DataError
from compress.fake_quantization import HOLDER
from compress.folding import fold_batch_norm
from compress.graph import trace
from compress.plan import CompressionPlan, LayerFormat
from compress.quantization import prepare_quantized
from compress.quantizers.minmax import MinMaxQuantizer

MEAN, STD = torch.tensor([2.0, -1.0, 0.5]), torch.tensor([0.5, 3.0, 1.0])


class Small(nn.Module):
    def __init__(self):
        super().__init__()
        self.a, self.norm_a = nn.Conv2d(2, 6, 3, padding=1), nn.BatchNorm2d(6)
        self.b, self.norm_b = nn.Conv2d(6, 8, 3, padding=1), nn.BatchNorm2d(8)
        self.fc = nn.Linear(8, 3)

    def forward(self, x):
        x = torch.relu_(self.norm_a(self.a(x)))
        return self.fc(torch.relu_(self.norm_b(self.b(x))).mean((2, 3)))


def real_data(seed, n=256):
    """Smooth images far from noise of mean 0 and deviation 1."""
    g = torch.Generator().manual_seed(seed)
    coarse = torch.rand(n, 2, 3, 3, generator=g) * torch.tensor([4.0, 0.5])[:, None, None] + 2
    return nn.functional.interpolate(coarse, size=(8, 8), mode="bilinear")


@pytest.fixture(name="small", scope="module")
def net_with_statistics_of_real_data():
    with torch.random.fork_rng():
        torch.manual_seed(0)
        model = Small().train()
    with torch.no_grad():
        for seed in range(60):
            model(real_data(seed, 64))
    return trace(model.eval(), real_data(0, 2)).module


def test_one_norm_gets_its_own_mean_and_variance():
    model = nn.Sequential(nn.BatchNorm1d(3)).eval()
    model[0].running_mean.copy_(MEAN)
    model[0].running_var.copy_(STD**2)
    module = trace(model, torch.randn(4, 3, generator=torch.Generator().manual_seed(0))).module
    # Noise of mean 0: ((0 - mean) / std)^2 + (1 / std - 1)^2, within the error of sampling.
    noise = torch.randn(20000, 3, generator=torch.Generator().manual_seed(1))
    expected = float(((MEAN / STD).square() + (1 / STD - 1).square()).mean())
    assert statistics_distance(module, noise) == pytest.approx(expected, rel=0.05)
    (batch,) = synthesize_batches(module, torch.zeros(1, 3), n_batches=1, steps=300)
    torch.testing.assert_close(batch[0].mean(0), MEAN, atol=0.01, rtol=0.01)
    torch.testing.assert_close(batch[0].std(0, correction=0), STD, atol=0.01, rtol=0.01)
    assert statistics_distance(module, batch) < 1e-4


def test_a_batch_that_matches_has_distance_zero():
    model = nn.Sequential(nn.BatchNorm1d(2)).eval()
    batch = torch.tensor([[1.0, 0.0], [-1.0, 4.0]])
    model[0].running_mean.copy_(torch.tensor([0.0, 2.0]))
    model[0].running_var.copy_(torch.tensor([1.0, 4.0]))
    assert statistics_distance(trace(model, batch).module, batch) == pytest.approx(0.0, abs=1e-9)


def test_statistics_are_nearer_than_those_of_noise(small):
    batches = synthesize_batches(small, real_data(0, 2), n_batches=2, steps=150)
    noise = torch.randn(64, 2, 8, 8, generator=torch.Generator().manual_seed(9))
    far = statistics_distance(small, noise)
    assert [batch[0].shape for batch in batches] == [(64, 2, 8, 8)] * 2
    assert not torch.equal(batches[0][0], batches[1][0])
    assert all(statistics_distance(small, batch) < 0.02 * far for batch in batches)


def test_ranges_for_quantisation_are_near_those_of_real_data(small):
    plan = CompressionPlan(layer_formats={name: LayerFormat(8) for name in ("a", "b", "fc")}, activation_bits=8)
    made = synthesize_batches(small, real_data(0, 2), n_batches=2, steps=150)
    noise = [(torch.randn(64, 2, 8, 8, generator=torch.Generator().manual_seed(s)),) for s in range(2)]
    scales = []
    for batches in ([(real_data(1000),)], made, noise):
        state = prepare_quantized(small, plan, batches, MinMaxQuantizer()).state_dict()
        # The input's own range is seen by no batch norm.
        found = {n: v for n, v in state.items() if n.startswith(HOLDER) and n.endswith("_scale") and ".x_" not in n}
        scales.append(torch.stack(list(found.values())))
    real, synthetic, random = scales
    assert len(real) == 3
    assert (synthetic / real).log().abs().mean() < 0.5 * (random / real).log().abs().mean()
    assert ((synthetic / real).log2().abs() < 1).all()


def test_is_deterministic_by_seed_and_leaves_all_as_it_was(small):
    before = {name: value.clone() for name, value in small.state_dict().items()}
    small.train()
    state = torch.get_rng_state()
    calls = []
    options = {"n_batches": 2, "batch_size": 4, "steps": 3}
    first = synthesize_batches(small, real_data(0, 2), **options, progress=lambda *a: calls.append(a))
    with torch.no_grad():
        again = synthesize_batches(small, real_data(5, 2), **options)
    other = synthesize_batches(small, real_data(0, 2), **options, seed=1)
    assert all(torch.equal(a[0], b[0]) for a, b in zip(first, again, strict=True))
    assert not torch.equal(first[0][0], other[0][0])
    assert [call[:2] for call in calls] == [(k, 6) for k in range(1, 7)]
    assert all(call[2] > 0 for call in calls)
    assert small.training
    assert torch.equal(state, torch.get_rng_state())
    assert all(torch.equal(value, before[name]) for name, value in small.state_dict().items())
    assert all(p.grad is None and p.requires_grad for p in small.parameters())
    assert not first[0][0].requires_grad
    small.eval()


def test_refuses_what_cannot_be_done(small):
    for module in (fold_batch_norm(small), trace(nn.Linear(3, 2), torch.ones(2, 3)).module):
        with pytest.raises(CompressError, match="no batch norm"):
            synthesize_batches(module, torch.ones(2, 3))
        with pytest.raises(CompressError, match="no batch norm"):
            statistics_distance(module, torch.ones(2, 3))
    for name in ("n_batches", "batch_size", "steps"):
        with pytest.raises(CompressError, match=f"'{name}' parameter"):
            synthesize_batches(small, real_data(0, 2), **{name: 0})
    with pytest.raises(DataError, match="Lower the 'lr'"):
        synthesize_batches(small, real_data(0, 2), batch_size=2, lr=1e30)
    tokens = trace(nn.Sequential(nn.Embedding(5, 4), nn.BatchNorm1d(3)), torch.zeros(2, 3, dtype=torch.long)).module
    with pytest.raises(DataError, match="Tokens cannot"):
        synthesize_batches(tokens, torch.zeros(2, 3, dtype=torch.long))
