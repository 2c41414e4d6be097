"""Steps of the optimizers: what is trained of a number format moves by a part of itself."""

import pytest
import torch
from torch import nn

from compress.formatted_weight import formatted_weights
from compress.graph import trace
from compress.optimizers import make_optimizer, relative_step
from compress.plan import CompressionPlan, LayerFormat
from compress.quantization import prepare_quantized
from compress.quantizers import MinMaxQuantizer

SETTINGS = {"lr": 0.01, "momentum": 0.9, "weight_decay": 0.01, "range_rate": 10.0}


@pytest.fixture(name="model")
def quantised():
    torch.manual_seed(0)
    x = torch.randn(4, 3)
    plan = CompressionPlan(layer_formats={"0": LayerFormat(3, granularity="tensor")})
    traced = trace(nn.Sequential(nn.Linear(3, 3), nn.Linear(3, 2)), (x,)).module
    return prepare_quantized(traced, plan, [(x,)], MinMaxQuantizer(), trained_ranges=True)


def test_adamw_steps_of_scales_are_parts_of_them(model):
    (entry,) = formatted_weights(model)
    scale, weight = entry.module.scale, model.get_parameter(entry.parameter)
    with torch.no_grad():
        scale.fill_(0.02)
    optimizer = make_optimizer(model, list(model.parameters()), {**SETTINGS, "optimizer": "adamw"})
    assert sorted(id(p) for g in optimizer.param_groups for p in g["params"]) == sorted(map(id, model.parameters()))
    assert [g["weight_decay"] for g in optimizer.param_groups] == [0.01, 0.0, 0.0]
    before = weight.detach().clone()
    for group in optimizer.param_groups:
        group["lr"] = SETTINGS["lr"] * relative_step(group)
    for parameter in model.parameters():
        parameter.grad = torch.full_like(parameter, 1e-4)
    optimizer.step()
    # The first step of Adam is the learning rate itself, that of a scale ten times as much of it.
    torch.testing.assert_close(scale.detach(), torch.tensor([0.02 * 0.9]), rtol=1e-3, atol=0)
    torch.testing.assert_close(weight.detach(), before * (1 - 0.01 * 0.01) - 0.01, rtol=1e-3, atol=1e-5)


def test_sgd_follows_gradients_of_scales_as_they_are(model):
    optimizer = make_optimizer(model, list(model.parameters()), {**SETTINGS, "optimizer": "sgd"})
    assert [relative_step(group) for group in optimizer.param_groups] == [1.0, 1.0]
