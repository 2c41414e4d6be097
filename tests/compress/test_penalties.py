"""Values and gradients of the penalties by hand, and what training with them leaves."""

import logging
import math
from collections import OrderedDict

import pytest
import torch
from torch import nn

from compress import ClassificationTask, CompressError, analyze, evaluate
from compress.finetuning import finetune_
from compress.graph import trace
from compress.layer_weights import layer_weights
from compress.penalties import BatchNormL1Penalty, GroupLassoPenalty, L0Penalty, L1Penalty

TASK = ClassificationTask()


def linear(rows: list[list[float]]) -> nn.Linear:
    weight = torch.tensor(rows)
    layer = nn.Linear(weight.shape[1], weight.shape[0])
    with torch.no_grad():
        layer.weight.copy_(weight)
        layer.bias.fill_(9.0)
    return layer


def two_layers() -> nn.Module:
    return nn.Sequential(linear([[3.0, -4.0], [0.0, 0.0]]), nn.ReLU(), linear([[1.0, -2.0]]))


def test_l1_by_hand() -> None:
    model = two_layers()
    value = L1Penalty(0.5).penalty(model)
    assert value.item() == pytest.approx(0.5 * (7 + 3))
    value.backward()
    assert model[0].weight.grad.tolist() == [[0.5, -0.5], [0.0, 0.0]]
    assert model[0].bias.grad is None
    assert L1Penalty(0.5, ["2"]).penalty(model).item() == pytest.approx(0.5 * 3)
    assert L1Penalty(0.5).penalty(trace(model, torch.zeros(2, 2)).module).item() == pytest.approx(5.0)


def test_group_lasso_by_hand() -> None:
    model = two_layers()
    value = GroupLassoPenalty(2.0).penalty(model)
    # Two weights in every group: sqrt(2) (5 + 0 + sqrt(5)).
    assert value.item() == pytest.approx(2 * math.sqrt(2) * (5 + math.sqrt(5)))
    value.backward()
    expected = 2 * math.sqrt(2) * torch.tensor([[0.6, -0.8], [0.0, 0.0]])
    torch.testing.assert_close(model[0].weight.grad, expected)
    transposed = nn.ConvTranspose1d(2, 1, 2)
    with torch.no_grad():
        transposed.weight.copy_(torch.tensor([[[1.0, 2.0]], [[2.0, 4.0]]]))
    assert GroupLassoPenalty(1.0).penalty(nn.Sequential(transposed)).item() == pytest.approx(math.sqrt(4) * 5)


def test_group_lasso_of_coupled_units_by_hand() -> None:
    class Residual(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.a, self.b, self.out = linear([[3.0], [0.0]]), linear([[4.0, 0.0], [0.0, 2.0]]), linear([[7.0, 7.0]])

        def forward(self, x: torch.Tensor) -> torch.Tensor:
            x = torch.relu(self.a(x))
            return self.out(x + self.b(x))

    model = Residual()
    penalty = GroupLassoPenalty(1.0, per="unit").of_structure(analyze(model, torch.zeros(2, 1)))
    # Channel 0 is made by 3 and (4, 0), channel 1 by 0 and (0, 2): three weights each. The outputs stay.
    value = penalty.penalty(model)
    assert value.item() == pytest.approx(math.sqrt(3) * (5 + 2))
    value.backward()
    torch.testing.assert_close(model.a.weight.grad, math.sqrt(3) * torch.tensor([[0.6], [0.0]]))
    assert model.out.weight.grad is None
    penalty.attach(model, 0, 1)
    with pytest.raises(CompressError, match=r"belongs to another model: 'a\.weight'"):
        penalty.attach(two_layers(), 0, 1)
    with pytest.raises(CompressError, match="'layers' parameter of GroupLassoPenalty must be None"):
        GroupLassoPenalty(layers=["a"], per="unit")
    with pytest.raises(CompressError, match="'structure' parameter of GroupLassoPenalty needs per='unit'"):
        GroupLassoPenalty(structure=penalty.structure)
    with pytest.raises(CompressError, match=r"needs structure=analyze"):
        GroupLassoPenalty(per="unit").attach(model, 0, 1)
    with pytest.raises(CompressError, match="'per' parameter of GroupLassoPenalty must be one of"):
        GroupLassoPenalty(per="layer")


def test_bn_l1_by_hand(caplog: pytest.LogCaptureFixture) -> None:
    model = nn.Sequential(nn.Conv2d(1, 3, 1), nn.BatchNorm2d(3), nn.BatchNorm2d(3, affine=False), nn.LayerNorm(2))
    with torch.no_grad():
        model[1].weight.copy_(torch.tensor([1.0, -2.0, 0.0]))
    for whole in (model, trace(model.eval(), torch.zeros(2, 1, 2, 2)).module):
        model[1].weight.grad = None
        value = BatchNormL1Penalty(0.1).penalty(whole)
        assert value.item() == pytest.approx(0.3)
        value.backward()
        torch.testing.assert_close(model[1].weight.grad, torch.tensor([0.1, -0.1, 0.0]))
    assert BatchNormL1Penalty().penalty(two_layers()) is None
    with caplog.at_level(logging.WARNING):
        BatchNormL1Penalty().attach(two_layers(), 0, 1)
    assert "no effect" in caplog.text


def test_l0_by_hand() -> None:
    model = two_layers()
    # log(0.5 / 0.5) = 0: a gate is open with probability sigmoid(-2/3 log(1/11)).
    open_ = 1 / (1 + 11 ** (-2 / 3))
    for per, count in (("weight", 6), ("channel", 6)):
        penalty = L0Penalty(0.1, per=per, initial=0.5)
        penalty.prepare(model)
        value = penalty.penalty(model)
        assert value.item() == pytest.approx(0.1 * count * open_, rel=1e-6)
        gate = model[0].parametrizations.weight[0]
        (gradient,) = torch.autograd.grad(value, gate.log_alpha)
        each = 0.1 * open_ * (1 - open_) * (2 if per == "channel" else 1)
        torch.testing.assert_close(gradient, torch.full((2 if per == "channel" else 4,), each))
        with torch.no_grad():
            gate.log_alpha.fill_(100.0)
            model[2].parametrizations.weight[0].log_alpha.fill_(100.0)
        penalty.release(model)
    torch.testing.assert_close(model[0].weight.detach(), torch.tensor([[3.0, -4.0], [0.0, 0.0]]))


def useless(n: int = 64, seed: int = 0) -> list[tuple[torch.Tensor, torch.Tensor]]:
    """Two classes told by the first of four inputs alone; the others come with either sign."""
    x = torch.randn(n // 2, 4, generator=torch.Generator().manual_seed(seed))
    x = torch.cat([x, x * torch.tensor([1.0, -1.0, -1.0, -1.0])])
    return [(x, (x[:, 0] > 0).long())]


def two_outputs(seed: int = 0) -> nn.Module:
    with torch.random.fork_rng():
        torch.manual_seed(seed)
        return nn.Sequential(nn.Linear(4, 2))


SETTINGS = {"epochs": 300, "optimizer": "adamw", "weight_decay": 0.0, "lr": 0.05, "progress": False}


def test_l1_drives_useless_weights_to_zero() -> None:
    plain, sparse = two_outputs(), two_outputs()
    finetune_(plain, TASK, useless(), **SETTINGS)
    finetune_(sparse, TASK, useless(), hooks=[L1Penalty(0.05)], **SETTINGS)
    largest = sparse[0].weight.detach().abs().amax(0)
    assert largest[0] > 0.5
    assert (largest[1:] < 5e-3).all()
    assert (plain[0].weight.detach().abs().amax(0)[1:] > 0.05).any()


def test_group_lasso_silences_useless_channels_as_wholes() -> None:
    def hidden() -> nn.Module:
        with torch.random.fork_rng():
            torch.manual_seed(1)
            return nn.Sequential(nn.Linear(4, 8), nn.ReLU(), nn.Linear(8, 2))

    model, plain = hidden(), hidden()
    finetune_(model, TASK, useless(), hooks=[GroupLassoPenalty(0.01, ["0"])], **SETTINGS)
    finetune_(plain, TASK, useless(), **SETTINGS)
    norms = model[0].weight.detach().norm(dim=1)
    assert 4 <= int((norms < 0.02).sum()) < 8
    assert (plain[0].weight.detach().norm(dim=1) > 0.1).all()
    assert evaluate(model, TASK, useless())[0] >= 95


@pytest.mark.parametrize("per", ["weight", "channel"])
def test_l0_closes_useless_gates_for_good(per: str) -> None:
    model = two_outputs() if per == "weight" else nn.Sequential(two_outputs()[0], nn.Linear(2, 2))
    with torch.no_grad():
        if per == "channel":
            # The second channel is read by nobody.
            model[0].weight.copy_(torch.tensor([[2.0, 0, 0, 0], [1.0, 1, 1, 1]]))
            model[1].weight.copy_(torch.tensor([[-2.0, 0.0], [2.0, 0.0]]))
            model[1].requires_grad_(False)
    weight = model[0].weight
    hook = L0Penalty(0.05, layers=["0"], per=per)
    finetune_(model, TASK, useless(256), hooks=[hook], **{**SETTINGS, "epochs": 400})
    assert model[0].weight is weight
    assert type(model[0]) is nn.Linear
    closed = model[0].weight == 0
    if per == "weight":
        assert closed[:, 1:].all(), "an exact zero at every useless input"
        assert not closed[:, 0].all()
    else:
        assert closed.all(1).tolist() == [False, True]
    assert evaluate(model, TASK, useless(256))[0] >= 95


def test_names_and_strengths_are_checked() -> None:
    with pytest.raises(CompressError, match=r"'strength' parameter of L1Penalty must be a finite number of at least 0"):
        L1Penalty(-1.0)
    with pytest.raises(CompressError, match="'layers' parameter of L0Penalty must be"):
        L0Penalty(layers="0")
    model = nn.Sequential(OrderedDict(first=nn.Linear(4, 2)))
    for kind in (L1Penalty, GroupLassoPenalty, L0Penalty):
        with pytest.raises(CompressError, match=r"Layer 'frist' is no conv or linear layer.*Did you mean 'first'"):
            finetune_(model, TASK, useless(), hooks=[kind(layers=["frist"])])
    with pytest.raises(CompressError, match="'per' parameter of gates must be one of"):
        L0Penalty(per="row")
    with pytest.raises(CompressError, match="'initial' parameter of gates must be in"):
        L0Penalty(initial=1.0)


def test_the_last_step_counts_not_the_best_validation() -> None:
    model = two_outputs()
    validation = useless(64, 9)
    settings = {**SETTINGS, "epochs": 30, "lr": 0.2}
    # So strong that only the bias is left: every validation before is better.
    report = finetune_(model, TASK, useless(), hooks=[L1Penalty(10.0)], validation=validation, **settings)
    assert report.best_epoch == 30
    assert report.history[0]["epoch"] == 0


def test_every_weight_is_listed_once() -> None:
    model = nn.Sequential(nn.Linear(3, 3), nn.Linear(3, 3), nn.Embedding(4, 3), nn.ConvTranspose2d(3, 5, 2))
    model[1].weight = model[0].weight
    found = layer_weights(model)
    assert [(w.layer, w.axis) for w in found] == [("0", 0), ("3", 1)]
    assert [tuple(w.rows(model).shape) for w in found] == [(3, 3), (5, 12)]
    assert L1Penalty(1.0, ["0"]).penalty(model).item() == pytest.approx(model[0].weight.abs().sum().item())
