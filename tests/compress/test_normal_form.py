"""The normal form of a trace: values stay what they were, nothing asserts, sections are part of the graph."""

import pytest
import torch
from torch import Tensor, fx, nn

from compress.graph import ATEN, trace


class _Function(nn.Module):
    def __init__(self, function) -> None:
        super().__init__()
        self.function, self.scale = function, nn.Parameter(torch.tensor([2.0, -1.0, 0.5]))

    def forward(self, x: Tensor) -> Tensor:
        return self.function(x * self.scale)


def traced(function) -> fx.GraphModule:
    return trace(_Function(function), torch.randn(4, 3)).module


def names(module: fx.GraphModule) -> list[str]:
    return [node.target.__name__ for node in module.graph.nodes if node.op == "call_function"]


def _chain(x: Tensor) -> Tensor:
    y = x.relu_().add_(1.0)
    x *= 3
    return x + y


def _through_a_view(x: Tensor) -> Tensor:
    x[:, 0].mul_(2.0)
    return x + 1


def _view_of_a_changed_value(x: Tensor) -> Tensor:
    first = x[:, 0]
    x.add_(5.0)
    return x * first[:, None]


def _slice_assignment(x: Tensor) -> Tensor:
    x[:, 1] = x[:, 2]
    return x.exp()


def _promotion(x: Tensor) -> Tensor:
    y = x.half()
    y += x
    return y.float()


@pytest.mark.parametrize("function", [_chain, _through_a_view, _view_of_a_changed_value, _slice_assignment, _promotion])
def test_computes_the_same(function) -> None:
    model = _Function(function)
    module = trace(model, torch.randn(4, 3)).module
    x = torch.randn(6, 3)
    before = x.clone()
    torch.testing.assert_close(module(x), model(x), rtol=0, atol=0)
    assert torch.equal(x, before)


def test_in_place_becomes_out_of_place() -> None:
    assert not [name for name in names(traced(_chain)) if name.split(".")[0].endswith("_")]


def test_in_place_through_a_view_is_left() -> None:
    assert "mul_.Tensor" in names(traced(_through_a_view)) or "mul_.Scalar" in names(traced(_through_a_view))


def test_the_input_is_not_changed() -> None:
    class InPlace(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.fc = nn.Linear(3, 2)

        def forward(self, x: Tensor) -> Tensor:
            return self.fc(x.relu_())

    x = torch.full((2, 3), -1.0)
    module = trace(InPlace(), torch.randn(2, 3)).module
    module(x)
    assert (x == -1).all()


def test_no_grad_sections_are_inlined_without_gradient() -> None:
    class Section(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.frozen, self.free = nn.Linear(3, 3), nn.Linear(3, 3)

        def forward(self, x: Tensor) -> Tensor:
            with torch.no_grad():
                y = self.frozen(x)
                with torch.enable_grad():
                    z = self.free(x)
            return y * z

    model = Section()
    module = trace(model, torch.randn(2, 3)).module
    assert not [name for name in names(module) if "wrap" in name]
    x = torch.randn(5, 3)
    torch.testing.assert_close(module(x), model(x))
    module(x).sum().backward()
    assert model.frozen.weight.grad is None


def test_assertions_go_and_the_module_casts() -> None:
    class Cast(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.fc = nn.Linear(3, 3)

        def forward(self, x: Tensor) -> Tensor:
            return self.fc(x.to(torch.float32)) + torch.zeros(3) + torch.ones(x.shape[0], 1)

    module = trace(Cast(), torch.randn(2, 3)).module
    assert not [name for name in names(module) if "assert" in name]
    assert ATEN.new_zeros.default in [node.target for node in module.graph.nodes]
    assert trace(nn.Linear(3, 3), torch.randn(2, 3)).module.double()(torch.randn(4, 3).double()).dtype == torch.float64
