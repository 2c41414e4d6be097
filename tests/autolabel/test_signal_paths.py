"""What of a network's signal still arrives: by hand on a shortcut, a gate and a collection of branches."""

import numpy as np
import pytest
import torch
from torch import nn

import compress
from autolabel.signal_paths import SignalPaths
from compress.output_sensitivity import collect_output_sensitivity
from compress.structure import analyze


class Branches(nn.Module):
    """`last(first(x) + branch(first(x)))`, gated; and beside it another branch."""

    def __init__(self):
        super().__init__()
        self.first, self.branch, self.side = nn.Linear(4, 6), nn.Linear(6, 6), nn.Linear(6, 3)
        self.last = nn.Linear(9, 2)

    def forward(self, x):
        stream = self.first(x)
        stream = stream + self.branch(torch.relu(stream))
        return self.last(torch.cat([stream * torch.sigmoid(stream), self.side(stream)], 1))


def seeded_branches():
    with torch.random.fork_rng():
        torch.manual_seed(0)
        return Branches().double().eval()


X = torch.randn(32, 4, generator=torch.Generator().manual_seed(1), dtype=torch.float64)


def test_by_hand():
    model = seeded_branches()
    paths = SignalPaths(analyze(model, (X[:2],)), {"linear": 3.0, "linear_1": 1.0, "mul": 2.0, "linear_2": 6.0})
    assert paths.lost({}, 2) == pytest.approx([0.0, 0.0])
    branch, side, last = np.array([0.0, 0.4]), np.array([0.5, 0.5]), np.array([0.0, 0.1])
    stream = 1 - branch / 4
    # The gate multiplies the stream with itself; the collection weighs both branches.
    kept = (2 * stream**2 + 6 * stream * (1 - side)) / 8 * (1 - last)
    found = paths.lost({"linear_1": branch, "linear_2": side, "linear_3": last}, 2)
    assert found == pytest.approx(1 - kept)
    assert paths.lost({"linear_3": np.array([7.0])}, 1) == pytest.approx([1.0])
    assert paths.lost({"linear": np.array([1.0])}, 1) == pytest.approx([1.0])


def test_variances_of_what_meets_are_those_over_examples():
    model = seeded_branches()
    batches = [(X, torch.zeros(len(X), dtype=torch.int64))]
    found = collect_output_sensitivity(analyze(model, (X[:2],)), compress.ClassificationTask(), batches).variances
    first = model.first(X).detach()
    assert found["linear"] == pytest.approx(float(first.var(0, correction=0).sum()))
    assert found["linear_1"] == pytest.approx(float(model.branch(first.relu()).detach().var(0, correction=0).sum()))
    assert set(found) >= {"linear", "linear_1", "mul", "linear_2"}
    # Nothing else is read beside these by the last layer.
    assert "cat" not in found


class Shortcut(nn.Module):
    def __init__(self):
        super().__init__()
        self.branch, self.last = nn.Linear(4, 4), nn.Linear(4, 2)

    def forward(self, x):
        return self.last(x + 0.01 * self.branch(x))


def test_a_shortcut_from_the_inputs_weighs_what_it_carries():
    with torch.random.fork_rng():
        torch.manual_seed(0)
        model = Shortcut().double().eval()
    structure = analyze(model, (X[:2],))
    batches = [(X, torch.zeros(len(X), dtype=torch.int64))]
    variances = collect_output_sensitivity(structure, compress.ClassificationTask(), batches).variances
    # The branch is a thousandth of the sum: what it loses is hardly missed.
    assert SignalPaths(structure, variances).lost({"linear": np.array([1.0])}, 1)[0] < 0.01
