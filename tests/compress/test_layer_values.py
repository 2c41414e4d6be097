"""A traced module gives the same values under the same names as the module it was traced from."""

import pytest
import torch
from torch import nn
from zoo import ZOO, build

from compress.errors import CompressError
from compress.graph import trace
from compress.layer_values import LayerValues, value_points

# In-place activations, blocks that are called inside blocks, tied embeddings, channels last, modules called twice.
NAMES = ("residual_projection", "mobilenet_v2", "ViT", "TiedGPT", "SharedConv", "conv1d", "MlpMixer")


@pytest.mark.parametrize("name", NAMES)
def test_graph_and_module_agree(name: str) -> None:
    architecture = ZOO[name]
    model, x = build(architecture), architecture.inputs(3)
    traced = trace(model, x).module
    points = value_points(model, (x,)), value_points(traced, (x,))
    both = [name for name in points[0] if name in points[1]]
    assert len(both) >= 0.9 * len(points[0])
    assert [name for name in points[1] if name in points[0]] == both
    found = []
    with torch.no_grad():
        for whole, own in zip((model, traced), points, strict=True):
            outputs, values = LayerValues(whole, {name: own[name].channel_dim for name in both})(x)
            torch.testing.assert_close(outputs, model(x))
            found.append(values)
    for name in both:
        torch.testing.assert_close(found[0][name], found[1][name], msg=name)
        assert points[0][name] == points[1][name]


def test_channels_come_second_and_positions_are_the_rest() -> None:
    model = nn.Sequential(nn.Conv1d(2, 5, 3), nn.ReLU(), nn.Flatten(), nn.Linear(20, 4), nn.Linear(4, 3))
    points = value_points(model, (torch.randn(2, 2, 6),))
    assert [(name, point.channels, point.positions) for name, point in points.items()] == [
        ("0", 5, (4,)), ("1", 5, (4,)), ("2", 20, ()), ("3", 4, ()), ("4", 3, ())
    ]  # fmt: skip
    assert [point.is_output for point in points.values()] == [False] * 4 + [True]
    assert [point.is_layer for point in points.values()] == [True, False, False, True, True]
    tokens = nn.Sequential(nn.Linear(3, 7), nn.GELU())
    points = value_points(tokens, (torch.randn(2, 5, 3),))
    assert (points["1"].channels, points["1"].positions) == (7, (5,))
    assert LayerValues(tokens, {"1": points["1"].channel_dim})(torch.randn(2, 5, 3))[1]["1"].shape == (2, 7, 5)


def test_gradients_pass_modes_stay_and_no_hook_is_left() -> None:
    model = nn.Sequential(nn.Linear(3, 4), nn.BatchNorm1d(4), nn.ReLU(inplace=True), nn.Linear(4, 2)).train()
    model[1].eval()
    mean = model[1].running_mean.clone()
    x = torch.randn(5, 3)
    value_points(model, (x,))
    assert (model.training, model[1].training) == (True, False)
    assert torch.equal(model[1].running_mean, mean)
    _, values = LayerValues(model, {"1": 1})(x)
    assert (values["1"] < 0).any(), "the value before the activation that works in place"
    values["1"].sum().backward()
    assert model[0].weight.grad is not None
    assert not any(module._forward_hooks for module in model.modules())
    with pytest.raises(CompressError, match="'9' of Sequential gave no tensor"):
        LayerValues(model, {"9": 1})(x)
