"""A traced graph answers as its model does or refuses the size: branches on sizes, sizes as numbers, round trips."""

import pytest
import torch
import torch.nn.functional as F
from torch import nn

import compress
from compress.artifact import load_artifact, save_artifact
from compress.exporters.onnx import export_onnx
from compress.graph import trace
from compress.plan import CompressionPlan
from compress.runtimes.onnxruntime import run_onnx


class Net(nn.Module):
    """Two linears with a way of its own in front of them."""

    def __init__(self, way):
        super().__init__()
        self.a, self.b, self.way = nn.Linear(6, 8), nn.Linear(8, 3), way

    def forward(self, x):
        return self.b(self.a(self.way(x)).relu())


def mean_over_length(x):
    return x.sum(1) / x.shape[1]


def other_branch_for_many(x):
    return 5 * x if x.shape[0] > 8 else x


def other_branch_for_one(x):
    return 5 * x if x.shape[0] > 1 else x


def cut_tokens(x):
    return F.one_hot(x[:, :10] if x.shape[1] > 10 else x, 6).float().sum(1)


CASES = {
    "a number": (mean_over_length, (2, 7, 6), (5, 7, 6), (2, 14, 6), "size in dimension 1 of x of 7 alone"),
    "many": (other_branch_for_many, (2, 6), (8, 6), (9, 6), "first dimension of at most 8"),
    "one": (other_branch_for_one, (3, 6), (4, 6), (1, 6), "first dimension of at least 2"),
    "one, traced with one": (other_branch_for_one, (1, 6), (4, 6), (1, 6), "first dimension of at least 2"),
    "tokens": (cut_tokens, (2, 7), (3, 10), (2, 11), "size in dimension 1 of x of at most 10"),
}


def values(way, shape):
    generator = torch.Generator().manual_seed(sum(shape))
    if way is cut_tokens:
        return torch.randint(0, 6, shape, generator=generator)
    return torch.randn(shape, generator=generator)


@pytest.mark.parametrize(("way", "example", "good", "bad", "message"), CASES.values(), ids=list(CASES))
def test_what_would_be_answered_otherwise_is_refused(way, example, good, bad, message, tmp_path):
    torch.manual_seed(0)
    model = Net(way).eval()
    structure = compress.analyze(model, values(way, example))
    plan = CompressionPlan.removing(structure.units, ["a:out[0]"])
    small = compress.apply_plan(structure, plan)
    masked = Net(way).eval()
    masked.load_state_dict(model.state_dict())
    masked.a.weight.data[0], masked.a.bias.data[0] = 0, 0
    save_artifact(tmp_path / "artifact", small, plan, values(way, example))
    again = trace(small, values(way, good)).module
    for one in (small, load_artifact(tmp_path / "artifact", Net(way)), again):
        torch.testing.assert_close(one(values(way, good)), masked(values(way, good)))
        with pytest.raises((AssertionError, RuntimeError), match=message):
            one(values(way, bad))
    path = tmp_path / "small.onnx"
    export_onnx(small, values(way, good), path)
    torch.testing.assert_close(torch.as_tensor(run_onnx(path, values(way, good))[0]), masked(values(way, good)))


def test_sizes_that_may_change_stay_free():
    torch.manual_seed(0)
    model = nn.Sequential(nn.Conv2d(1, 3, 3), nn.ReLU(), nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(3, 2)).eval()
    traced = trace(model, torch.randn(2, 1, 8, 8))
    assert not any(node.target is torch._assert for node in traced.graph.nodes)
    for shape in ((1, 1, 8, 8), (5, 1, 16, 12)):
        torch.testing.assert_close(traced.module(torch.ones(shape)), model(torch.ones(shape)))


def test_a_model_that_answers_by_chance_is_not_limited():
    class Noisy(nn.Module):
        def forward(self, x):
            return x + torch.rand_like(x)

    traced = trace(nn.Sequential(nn.Linear(4, 4), Noisy()).eval(), torch.randn(3, 4))
    assert traced.module(torch.randn(1, 4)).shape == (1, 4)
