"""The normal form of a trace: values stay what they were, nothing asserts, sections are part of the graph."""

import contextlib

import pytest
import torch
from torch import Tensor, fx, nn
from torch.nn import functional as F

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


def _piece_of_a_split(x: Tensor) -> Tensor:
    y = x.detach().clone()
    a, b = y.split([1, 2], dim=1)
    b.mul_(a)
    a.add_(1.0)
    return x * y * b.sum(1, keepdim=True)


def _unbound(x: Tensor) -> Tensor:
    y = x.detach().clone()
    first, _, last = y.unbind(1)
    last.sub_(first)
    return x * y * first[:, None]


def _through_several_views(x: Tensor) -> Tensor:
    y = x.exp().t().reshape(-1).view(3, -1)
    x.unsqueeze(0).transpose(1, 2)[0, 1].clamp_(min=0.2).mul_(3.0)
    y[1:].neg_()
    y.permute(1, 0)[:, 2].add_(x[:, 0])
    return x + y.t()


def _prepared_output(x: Tensor) -> Tensor:
    out = torch.zeros_like(x)
    out[:, 1:] = x[:, :-1]
    out[:, :1].fill_(2.0)
    out[0] = 7.0
    return out


def _twice_through_the_same_view(x: Tensor) -> Tensor:
    part = x[:, 1]
    part += 1
    x *= 2.0
    part.mul_(2.0)
    return x.sum(0) + part.sum()


def _behind_a_copy(x: Tensor) -> Tensor:
    return x.t().contiguous().view(-1).relu_().view(3, -1)


def _plainer(x: Tensor) -> Tensor:
    y = torch.max(x, 1, keepdim=True)[0].repeat(1, 3) + torch.cat([x[:, :1]] * 3, 1)
    return y + x.min(1)[0][:, None]


def _places_are_read(x: Tensor) -> Tensor:
    values, places = torch.max(x, 1)
    return values + places


FUNCTIONS = [_chain, _through_a_view, _view_of_a_changed_value, _slice_assignment, _promotion, _piece_of_a_split,
             _unbound, _through_several_views, _prepared_output, _twice_through_the_same_view,
             _behind_a_copy, _plainer, _places_are_read]  # fmt: skip


@pytest.mark.parametrize("function", FUNCTIONS)
def test_computes_the_same(function) -> None:
    model = _Function(function)
    module = trace(model, torch.randn(4, 3)).module
    if function is not _promotion:
        assert not [name for name in names(module) if name.split(".")[0].endswith("_")]
    x = torch.randn(6, 3)
    before = x.clone()
    module(x).square().sum().backward()
    found, model.scale.grad = model.scale.grad, None
    with contextlib.suppress(RuntimeError):  # torch itself refuses a gradient through some of these
        model(x).square().sum().backward()
        torch.testing.assert_close(found, model.scale.grad)
    torch.testing.assert_close(module(x), model(x), rtol=0, atol=0)
    assert torch.equal(x, before)


def test_a_buffer_that_the_forward_counts_in_is_left_to_it() -> None:
    class Counts(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.fc = nn.Linear(3, 2)
            self.register_buffer("calls", torch.zeros(()))

        def forward(self, x: Tensor) -> Tensor:
            self.calls += 1
            return self.fc(x)

    model = Counts()
    module = trace(model, torch.randn(2, 3)).module
    assert model.calls.item() == 0
    module(torch.randn(2, 3))
    assert model.calls.item() == 1


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


def test_operations_are_written_with_plainer_ones() -> None:
    found = names(traced(_plainer))
    assert not {"repeat.default", "cat.default", "max.dim", "min.dim"} & set(found)
    assert found.count("expand.default") == 2
    assert "max.dim" in names(traced(_places_are_read))


def test_a_cosine_is_written_out_with_its_bound() -> None:
    def cosine(x: Tensor) -> Tensor:
        return F.cosine_similarity(x, x.exp(), dim=-1) + F.cosine_similarity(x, x - x.detach(), eps=0.1)

    module, x = traced(cosine), torch.randn(6, 3)
    assert "cosine_similarity.default" not in names(module)
    torch.testing.assert_close(module(x), _Function(cosine)(x))
