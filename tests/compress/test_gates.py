"""Gates against networks from which the channel was taken by hand."""

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional as F

import compress
from compress.gates import (
    gated_extreme,
    gated_group_norm,
    gated_layer_norm,
    gated_mean,
    gated_module,
    gated_softmax,
    gates_of,
)

KEEP = [0, 2, 3]
GATE = torch.tensor([1.0, 0.0, 1.0, 1.0], dtype=torch.float64)


@pytest.fixture
def x() -> Tensor:
    return torch.randn(5, 4, generator=torch.Generator().manual_seed(0), dtype=torch.float64)


def test_layer_norm_counts_only_what_is_there(x: Tensor) -> None:
    weight, bias = torch.rand(4).double(), torch.rand(4).double()
    found = gated_layer_norm(x, GATE, 1, weight, bias, 1e-5, True)[:, KEEP]
    torch.testing.assert_close(found, F.layer_norm(x[:, KEEP], [3], weight[KEEP], bias[KEEP]))
    found = gated_layer_norm(x, GATE, 1, weight, None, 1e-6, False)[:, KEEP]
    torch.testing.assert_close(found, F.rms_norm(x[:, KEEP], [3], weight[KEEP], 1e-6))


def test_rms_norm_has_its_own_default_epsilon(x: Tensor) -> None:
    found = gated_layer_norm(x * 1e-8, GATE, 1, None, None, None, False)[:, KEEP]
    torch.testing.assert_close(found, F.rms_norm(x[:, KEEP] * 1e-8, [3]))


def test_group_norm_counts_only_what_is_there(x: Tensor) -> None:
    maps = torch.randn(2, 8, 3, generator=torch.Generator().manual_seed(1), dtype=torch.float64)
    gate = torch.tensor([1.0, 0, 1, 1, 1, 0, 1, 1], dtype=torch.float64).view(1, 8, 1)
    keep = gate.flatten().bool()
    weight, bias = torch.rand(8).double(), torch.rand(8).double()
    found = gated_group_norm(maps, gate, 2, weight, bias)[:, keep]
    torch.testing.assert_close(found, F.group_norm(maps[:, keep], 2, weight[keep], bias[keep]))


def test_a_silenced_group_is_finite() -> None:
    maps = torch.randn(2, 4, 3)
    gate = torch.tensor([0.0, 0, 1, 1]).view(1, 4, 1).requires_grad_()
    out = gated_group_norm(maps, gate, 2)
    out.sum().backward()
    torch.testing.assert_close(out[:, 2:], F.group_norm(maps[:, 2:], 1))
    assert torch.isfinite(out).all()
    assert torch.isfinite(gate.grad).all()


def test_softmax_gives_nothing_to_what_is_absent(x: Tensor) -> None:
    torch.testing.assert_close(gated_softmax(x, GATE, -1, False)[:, KEEP], x[:, KEEP].softmax(-1))
    torch.testing.assert_close(gated_softmax(x, GATE, -1, True)[:, KEEP], x[:, KEEP].log_softmax(-1))
    huge = x.clone()
    huge[:, 1] = 1e6
    gate = GATE.clone().requires_grad_()
    gated_softmax(huge, gate, -1, True)[:, KEEP].sum().backward()
    assert torch.isfinite(gate.grad).all()


def test_means_and_extremes(x: Tensor) -> None:
    torch.testing.assert_close(gated_mean(x, GATE, [1], False), x[:, KEEP].mean(1))
    torch.testing.assert_close(gated_mean(x, GATE, None, False), x[:, KEEP].mean())
    torch.testing.assert_close(gated_extreme(x, GATE, float("-inf")).amax(1), x[:, KEEP].amax(1))
    torch.testing.assert_close(gated_extreme(x, GATE, float("inf")).amin(1), x[:, KEEP].amin(1))


def test_a_channel_with_a_bias_is_absent_and_not_zero() -> None:
    """sigmoid(0) is one half: the gate lies where the channel is consumed, not where it is made."""
    model = nn.Sequential(nn.Linear(3, 4), nn.Sigmoid(), nn.Linear(4, 2))
    structure = compress.analyze(model, torch.randn(2, 3))
    plan = compress.CompressionPlan.removing(structure.units, ["0:out[1]"])
    x = torch.randn(6, 3)
    first, last = model[0], model[2]
    hidden = torch.sigmoid(F.linear(x, first.weight[KEEP], first.bias[KEEP]))
    expected = F.linear(hidden, last.weight[:, KEEP], last.bias)
    torch.testing.assert_close(compress.simulate_plan(structure, plan)(x), expected)
    small = compress.apply_plan(structure, plan)
    torch.testing.assert_close(small(x), expected)
    assert small.get_parameter("0.weight").shape == (3, 3)
    assert small.get_parameter("2.weight").shape == (2, 3)


def test_gradient_of_a_gate_is_activation_times_gradient() -> None:
    model = nn.Sequential(nn.Linear(3, 4), nn.ReLU(), nn.Linear(4, 1))
    structure = compress.analyze(model, torch.randn(2, 3))
    x = torch.randn(5, 3)
    module = gated_module(structure)
    module.gates = torch.ones(5, 4, requires_grad=True)
    module(x).sum().backward()
    expected = model[1](model[0](x)) * model[2].weight
    torch.testing.assert_close(module.gates.grad, expected)


def test_gates_of_examples_need_a_known_batch() -> None:
    class Mixes(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.fc1, self.fc2 = nn.Linear(3, 4), nn.Linear(4, 2)

        def forward(self, x: Tensor) -> Tensor:
            return self.fc2(torch.relu(self.fc1(x))[x[:, 0] > -10])

    structure = compress.analyze(Mixes(), torch.randn(2, 3))
    module = gated_module(structure, torch.ones(5, 4))
    with pytest.raises(compress.CompressError, match="need a known batch dimension"):
        module(torch.randn(5, 3))
    module.gates = gates_of(torch.tensor([True, False, False, False]).numpy())
    assert module(torch.randn(5, 3)).shape == (5, 2)
