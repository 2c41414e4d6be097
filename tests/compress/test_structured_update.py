"""Units removed with their readers updated: by hand, against the refit, and over several readers."""

import numpy as np
import pytest
import torch
from torch import nn

from compress import CompressionPlan, analyze, apply_plan, recover_
from compress.errors import CompressError, PlanError
from compress.layer_moments import collect_layer_moments
from compress.structured_update import remove_units


class Fork(nn.Module):
    """One group of channels that a conv with a kernel and a flattened linear read."""

    def __init__(self, channels=5):
        super().__init__()
        self.first = nn.Conv2d(2, channels, 3, padding=1)
        self.conv, self.fc = nn.Conv2d(channels, 3, 3, bias=False), nn.Linear(channels * 16, 4, bias=False)

    def forward(self, x):
        y = torch.relu(self.first(x))
        return self.conv(y).mean((2, 3)), self.fc(y.flatten(1))


def make(kind, *args):
    with torch.random.fork_rng():
        torch.manual_seed(0)
        return kind(*args).eval()


def inputs(*shape):
    return torch.randn(*shape, generator=torch.Generator().manual_seed(1))


def channels_of(structure, layer):
    return np.flatnonzero(structure.units.group == f"{layer}:out")


def test_three_channels_by_hand():
    # Hidden values are the inputs: (a, b, a) with a and b uncorrelated and a weaker. Either copy of a is free and the
    # other takes its weight; the second copy costs its energy: 3^2 x 1 of 3^2 x 1 + 1 x 4 in all.
    model = nn.Sequential(nn.Linear(2, 3, bias=False), nn.Linear(3, 1, bias=False))
    model[0].weight.data = torch.tensor([[1.0, 0.0], [0.0, 1.0], [1.0, 0.0]])
    model[1].weight.data = torch.tensor([[1.0, 1.0, 2.0]])
    x = torch.tensor([[1.0, 2.0], [-1.0, 2.0], [1.0, -2.0], [-1.0, -2.0]])
    structure = analyze(model, x)
    moments = collect_layer_moments(structure.traced.module, [(x,)])
    found = remove_units(structure, channels_of(structure, "0"), moments, 1, damping=1e-9)
    assert found.order[0] in (0, 2)
    assert found.order[1] == 1  # 1 x 4 is less than 3^2 x 1
    np.testing.assert_allclose(found.increases, [0.0, 4 / 13, 9 / 13], atol=1e-6)
    stays = 2 - found.order[0]
    expected = torch.tensor([[0.0, 1.0, 0.0]]).index_fill(1, torch.tensor([stays]), 3.0)
    torch.testing.assert_close(found.weights["1.weight"], expected, atol=1e-5, rtol=0)


def test_updates_are_the_refit_of_the_consumers():
    model, x = make(Fork), inputs(300, 2, 4, 4)
    structure = analyze(model, x)
    units = channels_of(structure, "first")
    before = {name: value.clone() for name, value in model.state_dict().items()}
    found = remove_units(structure, units, collect_layer_moments(structure.traced.module, [(x,)]), 2, damping=1e-9)
    assert all(torch.equal(value, before[name]) for name, value in model.state_dict().items())
    plan = CompressionPlan.removing(structure.units, [structure.units.ids[u] for u in found.order[:2]])
    small = apply_plan(structure, plan)
    recover_(small, structure, [x], steps=("refit",), layers="consumers", relu_steps=0, ridge=1e-9)
    gone = np.isin(units, found.order[:2])
    for name in ("conv", "fc"):
        weight = found.weights[f"{name}.weight"]
        channels = weight.unflatten(1, (5, -1)).flatten(2)
        assert (channels[:, gone] == 0).all()
        stays = channels[:, ~gone].reshape(small.get_parameter(f"{name}.weight").shape)
        torch.testing.assert_close(stays, small.get_parameter(f"{name}.weight").detach(), atol=2e-4, rtol=1e-3)


def test_increases_are_the_errors_that_the_model_really_makes():
    model, x = make(Fork), inputs(200, 2, 4, 4)
    structure = analyze(model, x)
    units = channels_of(structure, "first")
    moments = collect_layer_moments(structure.traced.module, [(x,)])
    seen = {}
    for name in ("conv", "fc"):
        model.get_submodule(name).register_forward_hook(lambda _, __, y, name=name: seen.__setitem__(name, y.detach()))
    model(x)
    dense = dict(seen)
    for n_removed in (0, 1, 3):
        found = remove_units(structure, units, moments, n_removed, damping=1e-9)
        changed = make(Fork)
        changed.load_state_dict({**model.state_dict(), **found.weights})
        for name in ("conv", "fc"):
            changed.get_submodule(name).register_forward_hook(lambda _, __, y, name=name: seen.__setitem__(name, y))
        with torch.no_grad():
            changed(x)
        error = sum(float((seen[n] - dense[n]).square().sum() / dense[n].square().sum()) for n in dense)
        assert error == pytest.approx(found.increases[:n_removed].sum(), rel=1e-3, abs=1e-9)


def test_refuses_what_cannot_be_done():
    structure = analyze(make(Fork), inputs(2, 2, 4, 4))
    units = channels_of(structure, "first")
    moments = collect_layer_moments(structure.traced.module, [(inputs(4, 2, 4, 4),)])
    with pytest.raises(CompressError, match="'n_removed' parameter"):
        remove_units(structure, units, moments, 5)
    with pytest.raises(PlanError, match="no moment of"):
        remove_units(structure, units, {}, 1)
    last = np.array([len(structure.units.ids) - 1])
    with pytest.raises(PlanError, match="No conv or linear"):
        remove_units(structure, last, moments, 0)
