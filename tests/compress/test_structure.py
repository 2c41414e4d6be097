"""Groups, names and reasons on networks small enough to work them out by hand."""

import numpy as np
import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional as F

import compress
from compress.structure import FIXED


def sizes(units: compress.UnitTable) -> dict[str, int]:
    return {group: int(((units.group == group) & units.removable).sum()) for group in units.groups}


def test_ids_are_readable_and_in_graph_order() -> None:
    model = nn.Sequential(nn.Conv2d(3, 2, 1), nn.ReLU(), nn.Conv2d(2, 2, 1))
    units = compress.find_units(model, torch.randn(1, 3, 4, 4))
    assert units.ids == ("0:out[0]", "0:out[1]", "0", "2")
    assert units.kind.tolist() == ["channel", "channel", "layer", "layer"]
    assert units.index.tolist() == [0, 1, 0, 0]
    assert units.blocked == (("2", "it is an output of the model"),)


def test_rows_of_every_parameter() -> None:
    model = nn.Sequential(nn.Conv2d(1, 2, 1), nn.BatchNorm2d(2), nn.Flatten(), nn.Linear(8, 3))
    structure = compress.analyze(model, torch.randn(1, 1, 2, 2))
    assert structure.n_removable == 2
    rows = {name: [dim.tolist() for dim in dims] for name, dims in structure.parameters.items()}
    assert rows["0.weight"][:2] == [[0, 1], [FIXED]]
    assert rows["0.bias"] == rows["1.weight"] == rows["1.bias"] == rows["1.running_mean"] == [[0, 1]]
    assert rows["3.weight"] == [[FIXED] * 3, [0] * 4 + [1] * 4]
    assert rows["3.bias"] == [[FIXED] * 3]


def test_a_residual_stream_is_one_group() -> None:
    class Residual(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.stem, self.a, self.b = nn.Linear(3, 4), nn.Linear(4, 5), nn.Linear(5, 4)
            self.out = nn.Linear(4, 2)

        def forward(self, x: Tensor) -> Tensor:
            x = self.stem(x)
            return self.out(x + self.b(F.relu(self.a(x))))

    structure = compress.analyze(Residual(), torch.randn(2, 3))
    assert sizes(structure.units) == {"stem:out": 4, "a:out": 5}
    stem = structure.units.positions([f"stem:out[{i}]" for i in range(4)])
    for name, dim in (("stem.weight", 0), ("a.weight", 1), ("b.weight", 0), ("b.bias", 0), ("out.weight", 1)):
        np.testing.assert_array_equal(structure.parameters[name][dim], stem)


def test_parts_of_one_layer_with_several_fates() -> None:
    """Rows 0-2 are a gate and rows 3-5 its value; row 6 is an output: one layer, one group and one fixed channel."""

    class Parts(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.fc1, self.fc2 = nn.Linear(4, 7), nn.Linear(3, 2)

        def forward(self, x: Tensor) -> tuple[Tensor, Tensor]:
            gate, value, rest = self.fc1(x).split([3, 3, 1], dim=-1)
            return self.fc2(torch.sigmoid(gate) * value), rest

    structure = compress.analyze(Parts(), torch.randn(2, 4))
    assert sizes(structure.units) == {"fc1:out": 3}
    assert structure.parameters["fc1.weight"][0].tolist() == [0, 1, 2, 0, 1, 2, FIXED]
    assert dict(structure.units.blocked)["fc1"] == "1 of 4 channels: it is an output of the model"
    x = torch.randn(5, 4)
    small = compress.apply_plan(structure, compress.CompressionPlan.removing(structure.units, ["fc1:out[1]"]))
    assert small.get_parameter("fc1.weight").shape == (5, 4)
    assert [out.shape for out in small(x)] == [(5, 2), (5, 1)]


def test_two_groups_of_one_producer_get_two_names() -> None:
    class Halves(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.fc, self.a, self.b = nn.Linear(3, 4), nn.Linear(2, 2), nn.Linear(2, 2)

        def forward(self, x: Tensor) -> Tensor:
            left, right = self.fc(x).chunk(2, dim=1)
            return self.a(torch.tanh(left)) + self.b(right)

    units = compress.find_units(Halves(), torch.randn(2, 3))
    assert sizes(units) == {"fc:out": 2, "fc:out/2": 2}
    assert units.ids[:4] == ("fc:out[0]", "fc:out[1]", "fc:out/2[2]", "fc:out/2[3]")


def test_a_single_unit_is_no_group() -> None:
    model = nn.Sequential(nn.Linear(3, 1), nn.ReLU(), nn.Linear(1, 2))
    units = compress.find_units(model, torch.randn(2, 3))
    assert units.groups == ()
    assert dict(units.blocked)["0"] == "its group has a single unit"


def test_what_is_read_by_its_number_stays() -> None:
    class Reads(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.fc1, self.fc2 = nn.Linear(3, 4), nn.Linear(4, 2)

        def forward(self, x: Tensor) -> tuple[Tensor, Tensor]:
            x = self.fc1(x)
            return self.fc2(x), x[:, 2]

    structure = compress.analyze(Reads(), torch.randn(2, 3))
    assert structure.units.ids[:3] == ("fc1:out[0]", "fc1:out[1]", "fc1:out[3]")
    small = compress.apply_plan(structure, compress.CompressionPlan.removing(structure.units, ["fc1:out[0]"]))
    x = torch.randn(4, 3)
    torch.testing.assert_close(small(x)[1], structure.traced.module(x)[1])


def test_an_operation_that_is_not_understood_blocks_what_enters_it() -> None:
    class Sorts(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.a, self.b, self.c = nn.Linear(3, 4), nn.Linear(4, 5), nn.Linear(5, 2)

        def forward(self, x: Tensor) -> Tensor:
            return self.c(F.relu(self.b(self.a(x).sort(dim=-1).values)))

    units = compress.find_units(Sorts(), torch.randn(2, 3))
    assert sizes(units) == {"b:out": 5}
    assert "sort" in dict(units.blocked)["a"]


@pytest.mark.parametrize(("groups", "channels", "expected"), [(4, 8, 4), (2, 8, 4), (8, 8, 8), (1, 8, 8)])
def test_group_norm_takes_the_finer_cut(groups: int, channels: int, expected: int) -> None:
    model = nn.Sequential(
        nn.Conv1d(3, channels, 1), nn.GroupNorm(groups, channels), nn.ReLU(), nn.Conv1d(channels, 2, 1)
    )
    structure = compress.analyze(model, torch.randn(2, 3, 5))
    assert sizes(structure.units) == {"0:out": expected}


def test_heads_and_not_channels_of_heads() -> None:
    """Twelve channels as 2 heads of 6: what is attended over goes by heads, however few they are."""

    class Attention(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.q, self.k, self.v, self.o = (nn.Linear(12, 12) for _ in range(4))

        def forward(self, x: Tensor) -> Tensor:
            q, k, v = (layer(x).unflatten(-1, (2, 6)).transpose(1, 2) for layer in (self.q, self.k, self.v))
            return self.o(F.scaled_dot_product_attention(q, k, v).transpose(1, 2).flatten(2))

    units = compress.find_units(Attention(), torch.randn(2, 5, 12))
    assert sizes(units) == {"q:head": 2}
    assert units.kind[0] == "head"


def test_tied_weights_have_one_name_and_stay_tied() -> None:
    class Tied(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.embed, self.mix, self.head = nn.Embedding(7, 6), nn.Linear(6, 6), nn.Linear(6, 7)
            self.head.weight = self.embed.weight

        def forward(self, x: Tensor) -> Tensor:
            return self.head(torch.tanh(self.mix(self.embed(x))))

    structure = compress.analyze(Tied(), torch.zeros(2, 3, dtype=torch.long))
    # The embedding's columns are the head's columns, so what enters `mix` and what leaves it are the same channels.
    assert sizes(structure.units) == {"embed:out": 6}
    small = compress.apply_plan(structure, compress.CompressionPlan.removing(structure.units, ["embed:out[2]"]))
    assert small.get_parameter("head.weight") is small.get_parameter("embed.weight")
    assert small.get_parameter("mix.weight").shape == (5, 5)
    assert set(small.state_dict()) == {"embed.weight", "mix.weight", "mix.bias", "head.weight", "head.bias"}


def test_sizes_in_the_forward_are_rewritten() -> None:
    class HardCoded(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.conv, self.fc = nn.Conv2d(1, 4, 3), nn.Linear(4 * 4, 2)

        def forward(self, x: Tensor) -> Tensor:
            return self.fc(F.max_pool2d(self.conv(x), 2).view(-1, 4 * 2 * 2))

    model = HardCoded()
    x = torch.randn(2, 1, 6, 6)
    units = compress.find_units(model, x)
    small = compress.apply_plan(model, compress.CompressionPlan.removing(units, ["conv:out[0]", "conv:out[3]"]), x)
    assert small.get_parameter("fc.weight").shape == (2, 8)
    assert small(torch.randn(7, 1, 6, 6)).shape == (7, 2)


def test_the_scale_of_attention_is_that_of_the_dense_model() -> None:
    """A cut across the head size must not change the temperature of the softmax."""

    class OneHead(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.q, self.k, self.v, self.o = (nn.Linear(6, 6, bias=False) for _ in range(4))

        def forward(self, x: Tensor) -> Tensor:
            return self.o(F.scaled_dot_product_attention(self.q(x), self.k(x), self.v(x)))

    structure = compress.analyze(OneHead(), torch.randn(2, 5, 6))
    assert sizes(structure.units) == {"q:out": 6, "v:out": 6}
    plan = compress.CompressionPlan.removing(structure.units, ["q:out[0]", "v:out[1]", "v:out[2]"])
    compress.apply_plan(structure, plan)


def test_a_fixed_batch_is_traced_with_its_size() -> None:
    class FixedBatch(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.a, self.b = nn.Linear(3, 6), nn.Linear(6, 2)

        def forward(self, x: Tensor) -> Tensor:
            return self.b(F.relu(self.a(x)).view(2, 1, 6)[:, 0])

    structure = compress.analyze(FixedBatch(), torch.randn(2, 3))
    assert sizes(structure.units) == {"a:out": 6}
    compress.apply_plan(structure, compress.CompressionPlan.removing(structure.units, ["a:out[5]"]))


def test_a_computed_weight_is_named_by_its_parameter() -> None:
    class Scaled(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.a, self.scale, self.b = nn.Linear(3, 6), nn.Parameter(torch.rand(6, 1)), nn.Linear(6, 2)

        def forward(self, x: Tensor) -> Tensor:
            return self.b(F.relu(F.linear(x, 0.5 * self.a.weight * self.scale, self.a.bias)))

    structure = compress.analyze(Scaled(), torch.randn(2, 3))
    assert sizes(structure.units) == {"a:out": 6}
    small = compress.apply_plan(structure, compress.CompressionPlan.removing(structure.units, ["a:out[5]"]))
    assert small.get_parameter("scale").shape == (5, 1)


def test_normalised_weights_keep_their_inputs() -> None:
    """The length of a row would change if one of its inputs went: the outputs of the first layer stay."""
    norm = nn.utils.parametrizations.weight_norm
    model = nn.Sequential(norm(nn.Linear(3, 4)), nn.ReLU(), norm(nn.Linear(4, 5)), nn.ReLU(), nn.Linear(5, 2))
    structure = compress.analyze(model, torch.randn(2, 3))
    assert [int(n) for n in sizes(structure.units).values()] == [5]
    assert any("fold the parametrization" in reason for _, reason in structure.units.blocked)
    row = int(np.flatnonzero(structure.units.removable)[0])
    compress.apply_plan(structure, compress.CompressionPlan.removing(structure.units, [structure.units.ids[row]]))


def test_a_sliced_model_can_be_cut_again() -> None:
    model = nn.Sequential(nn.Linear(3, 6), nn.BatchNorm1d(6), nn.Dropout(0.5), nn.ReLU(), nn.Linear(6, 2)).eval()
    x = torch.randn(4, 3)
    small = compress.apply_plan(
        model, compress.CompressionPlan.removing(compress.find_units(model, x), ["0:out[1]"]), x
    )
    units = compress.find_units(small, x)
    assert sizes(units) == {"0:out": 5}
    smaller = compress.apply_plan(small, compress.CompressionPlan.removing(units, ["0:out[0]"]), x)
    assert smaller.get_parameter("4.weight").shape == (2, 4)
    assert set(smaller.state_dict()) == set(model.state_dict())
    torch.manual_seed(0)
    assert not torch.equal(smaller.train()(x), smaller(x))
    assert torch.equal(smaller.eval()(x), smaller(x))
