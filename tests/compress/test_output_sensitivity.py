"""Sensitivity of outputs and loss to a layer's outputs: by hand on linear nets, and against real perturbations."""

import pytest
import torch
from torch import nn

import compress
from compress import output_sensitivity
from compress.errors import DataError
from compress.output_sensitivity import collect_output_sensitivity
from compress.structure import analyze

TASK = compress.ClassificationTask()


def seeded(seed=0):
    return torch.Generator().manual_seed(seed)


def batches_of(x, n_classes, size=16):
    labels = torch.randint(0, n_classes, (len(x),), generator=seeded(9))
    return [(x[i : i + size], labels[i : i + size]) for i in range(0, len(x), size)]


def test_of_a_linear_net_it_is_the_product_of_weights():
    with torch.random.fork_rng():
        torch.manual_seed(0)
        model = nn.Sequential(nn.Linear(5, 4), nn.Linear(4, 3)).double().eval()
    x = torch.randn(48, 5, generator=seeded(), dtype=torch.float64)
    batches = batches_of(x, 3)
    structure = analyze(model, (x[:2],))
    found = collect_output_sensitivity(structure, TASK, batches, probes=400)
    weight = model[1].weight.detach()
    torch.testing.assert_close(found.outputs["linear"], weight.T @ weight, rtol=0.1, atol=0.02)
    torch.testing.assert_close(found.outputs["linear_1"], torch.eye(3).double(), rtol=0.1, atol=0.03)
    logits = model(x).detach()
    assert found.output_energy == pytest.approx(float(logits.var(dim=0, correction=0).sum()))
    errors = logits.softmax(1) - nn.functional.one_hot(torch.cat([b[1] for b in batches]), 3)
    torch.testing.assert_close(found.loss["linear_1"], errors.T @ errors / len(x))
    assert found.forward_macs == (1 + 2 * 401) * 48 * (5 * 4 + 4 * 3)


def test_it_predicts_what_small_noise_does():
    with torch.random.fork_rng():
        torch.manual_seed(1)
        model = nn.Sequential(nn.Conv2d(2, 6, 3), nn.Tanh(), nn.Conv2d(6, 5, 3, stride=2), nn.ReLU(), nn.Flatten(),
                              nn.Linear(20, 4)).double().eval()  # fmt: skip
    x = torch.randn(64, 2, 7, 7, generator=seeded(), dtype=torch.float64)
    structure = analyze(model, (x[:2],))
    found = collect_output_sensitivity(structure, TASK, batches_of(x, 4), probes=64)
    spread = torch.randn(6, 6, generator=seeded(3), dtype=torch.float64)
    covariance = 1e-6 * spread @ spread.T
    with torch.no_grad():
        hidden = model[0](x).repeat(40, 1, 1, 1)
        noise = torch.randn(*hidden.shape[:1], *hidden.shape[2:], 6, generator=seeded(4), dtype=torch.float64)
        noise = (1e-3 * noise @ spread.T).movedim(-1, 1)
        moved = (model[1:](hidden + noise) - model[1:](hidden)).square().sum(1).mean()
    predicted = (covariance * found.outputs["conv2d"]).sum()
    assert float(predicted) == pytest.approx(float(moved), rel=0.1)


def test_wide_layers_have_their_diagonal_alone(monkeypatch):
    model = nn.Sequential(nn.Linear(5, 4), nn.ReLU(), nn.Linear(4, 3)).eval()
    x = torch.randn(32, 5, generator=seeded())
    structure = analyze(model, (x[:2],))
    whole = collect_output_sensitivity(structure, TASK, batches_of(x, 3))
    monkeypatch.setattr(output_sensitivity, "_MOST_OUTPUTS", 3)
    narrow = collect_output_sensitivity(structure, TASK, batches_of(x, 3))
    torch.testing.assert_close(narrow.outputs["linear"], whole.outputs["linear"].diagonal())
    assert narrow.outputs["linear_1"].shape == (3, 3)


def test_without_batches_it_is_refused():
    model = nn.Sequential(nn.Linear(5, 4), nn.Linear(4, 3)).eval()
    structure = analyze(model, (torch.randn(2, 5),))
    with pytest.raises(DataError, match="at least one batch"):
        collect_output_sensitivity(structure, TASK, [])
