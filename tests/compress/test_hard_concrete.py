"""Gates: their distribution, their formula in evaluation mode, and how they come and go."""

import math

import pytest
import torch
from torch import nn

from compress import CompressError
from compress.graph import trace
from compress.hard_concrete import HardConcreteGate, add_gates_, bake_gates_, gates_of


def make_gate(*log_alpha: float) -> HardConcreteGate:
    gate = HardConcreteGate(torch.ones(len(log_alpha), 3), 0, 0.5)
    with torch.no_grad():
        gate.log_alpha.copy_(torch.tensor(log_alpha))
    return gate


def test_gates_in_evaluation_mode_by_hand() -> None:
    # sigmoid(log 3) = 3/4: 3/4 * 1.2 - 0.1 = 0.8.
    gate = make_gate(math.log(3), 10.0, -10.0).eval()
    torch.testing.assert_close(gate.gates().detach(), torch.tensor([0.8, 1.0, 0.0]))
    torch.testing.assert_close(gate(torch.full((3, 3), 2.0))[0].detach(), torch.full((3,), 1.6))


@pytest.mark.parametrize("log_alpha", [-1.5, 0.0, 1.0])
def test_the_expected_count_is_the_share_of_open_draws(log_alpha: float) -> None:
    gate = make_gate(*[log_alpha] * 20_000)
    with torch.random.fork_rng():
        torch.manual_seed(0)
        drawn = gate.gates().detach()
    share = 1 / (1 + math.exp(-(log_alpha - 2 / 3 * math.log(0.1 / 1.1))))
    assert gate.expected_count().item() == pytest.approx(20_000 * 3 * share, rel=1e-5)
    assert (drawn > 0).double().mean().item() == pytest.approx(share, abs=0.01)
    # P(gate = 1) by the same formula with the sign turned: the ends are stretched alike.
    assert (drawn == 1).double().mean().item() == pytest.approx(
        1 / (1 + math.exp(2 / 3 * math.log(11) - log_alpha)), abs=0.01
    )


def make_model() -> nn.Module:
    with torch.random.fork_rng():
        torch.manual_seed(0)
        return nn.Sequential(nn.Conv2d(2, 3, 3), nn.BatchNorm2d(3), nn.Flatten(), nn.Linear(12, 2)).eval()


@pytest.mark.parametrize("per", ["weight", "channel"])
@pytest.mark.parametrize("traced", [False, True])
def test_gates_come_and_go(per: str, traced: bool) -> None:
    x = torch.randn(4, 2, 4, 4, generator=torch.Generator().manual_seed(1))
    model = make_model()
    model = trace(model, x).module if traced else model
    before = {name: value.clone() for name, value in model.state_dict().items()}
    parameters = list(model.named_parameters())
    out, state = model(x), torch.get_rng_state()
    assert add_gates_(model, per=per) == ["0", "3"]
    assert torch.equal(torch.get_rng_state(), state)
    assert [len(gate.log_alpha) for gate in gates_of(model)] == ([54, 24] if per == "weight" else [3, 2])
    torch.testing.assert_close(model(x), out, msg="in evaluation mode the gates start fully open")
    with torch.random.fork_rng():
        torch.manual_seed(0)
        drawn = [next(gates_of(model.train())).gates() for _ in range(20)]
    assert not all(torch.equal(gates, drawn[0]) for gates in drawn)
    model.eval()
    with pytest.raises(CompressError, match="'0' is parametrized already"):
        add_gates_(model)
    conv, _ = gates_of(model)
    with torch.no_grad():
        conv.log_alpha[0] = -9.0
    gated = model(x)
    bake_gates_(model)
    assert not list(gates_of(model))
    torch.testing.assert_close(model(x), gated)
    assert [name for name, _ in model.named_parameters()] == [name for name, _ in parameters]
    assert all(new is old for (_, new), (_, old) in zip(model.named_parameters(), parameters, strict=True))
    changed = model.state_dict()["0.weight"] != before["0.weight"]
    assert torch.equal(model.state_dict()["0.weight"][changed], torch.zeros(18 if per == "channel" else 1))
    bake_gates_(model)


def test_weights_at_the_root_and_shared_weights() -> None:
    x = torch.randn(3, 4)
    model = trace(nn.Linear(4, 2).eval(), x).module
    out, order = model(x), [name for name, _ in model.named_parameters()]
    add_gates_(model)
    torch.testing.assert_close(model(x), out)
    bake_gates_(model)
    torch.testing.assert_close(model(x), out)
    assert [name for name, _ in model.named_parameters()] == order
    tied = nn.Sequential(nn.Linear(4, 4), nn.Linear(4, 4))
    tied[1].weight = tied[0].weight
    with pytest.raises(CompressError, match=r"share the weight 0\.weight and 1\.weight"):
        add_gates_(tied)
    graph = trace(tied.eval(), x).module
    add_gates_(graph, initial=0.6)
    gated = graph(x)
    bake_gates_(graph)
    torch.testing.assert_close(graph(x), gated)
    torch.testing.assert_close(tied(x), gated, msg="tied weights stay tied")
