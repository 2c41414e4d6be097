"""Costs in closed form, and predicted costs of plans against a recount of the sliced model."""

import numpy as np
import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional as F
from zoo import ZOO, build

import compress
from compress.application import slice_model
from compress.costs import CostTable
from compress.counting import count_macs
from compress.errors import CompressError, DataError
from compress.graph import as_inputs
from compress.low_rank import Factorization, factorize
from compress.menu import pinned_units
from compress.structure import analyze_changed

SLICED = (
    "residual_projection",
    "resnext",
    "mobilenet_v2",
    "dense_concat",
    "SharedConv",
    "TiedGPT",
    "gqa_sdpa",
    "MlpMixer",
)


def costs_of(model: nn.Module, *shape: int) -> CostTable:
    return compress.unit_costs(model, None, torch.zeros(*shape))


def layer(costs: CostTable, name: str) -> tuple[float, float, float]:
    """`(macs, weights, other parameters)` of a layer."""
    row = costs.layer_names.index(name)
    return costs.layer_macs[row], costs.layer_weights[row], costs.layer_params[row]


def saved(costs: CostTable, unit: str, choice: str = "removed") -> tuple[float, float]:
    cell = costs.unit_ids.index(unit), costs.choices.index(choice)
    return costs.macs[cell], costs.weight_bytes[cell]


@pytest.mark.parametrize("batch", [1, 5])
def test_linear_layers(batch: int) -> None:
    costs = costs_of(nn.Sequential(nn.Linear(7, 5), nn.ReLU(), nn.Linear(5, 3, bias=False)), batch, 7)
    assert layer(costs, "0") == (35, 35, 5)
    assert layer(costs, "2") == (15, 15, 0)
    assert (costs.dense_macs, costs.dense_weight_bytes) == (50, 4 * 55)
    assert saved(costs, "0:out[2]") == pytest.approx((7 + 3, 4 * (7 + 1 + 3)))
    assert costs.uncounted == (("relu", 1),)


def test_linear_layer_on_a_sequence_counts_every_position() -> None:
    costs = costs_of(nn.Sequential(nn.Linear(7, 5), nn.Linear(5, 3)), 2, 6, 7)
    assert costs.dense_macs == 6 * (35 + 15)


def test_convolutions_and_norms() -> None:
    model = nn.Sequential(nn.Conv2d(3, 4, 3, stride=2, padding=1), nn.BatchNorm2d(4), nn.Conv2d(4, 2, 1)).eval()
    costs = costs_of(model, 2, 3, 8, 8)
    assert layer(costs, "0") == (16 * 4 * 3 * 9, 4 * 3 * 9, 4)
    assert layer(costs, "1.weight") == layer(costs, "1.bias") == (0, 0, 4)
    assert layer(costs, "2") == (16 * 2 * 4, 8, 2)
    assert saved(costs, "0:out[0]") == pytest.approx((16 * (27 + 2), 4 * (27 + 1 + 2 + 2)))
    assert costs.uncounted == (("batch_norm", 1),)


def test_grouped_and_depthwise_convolutions() -> None:
    model = nn.Sequential(nn.Conv2d(3, 4, 1), nn.Conv2d(4, 8, 3, groups=2), nn.Conv2d(8, 8, 3, groups=8),
                          nn.Conv2d(8, 2, 1))  # fmt: skip
    costs = costs_of(model, 1, 3, 9, 9)
    assert layer(costs, "1") == (49 * 8 * 2 * 9, 8 * 2 * 9, 8)
    assert layer(costs, "2") == (25 * 8 * 9, 8 * 9, 8)
    assert layer(costs, "3") == (25 * 16, 16, 2)


def test_a_depthwise_channel_goes_with_its_filter() -> None:
    model = nn.Sequential(nn.Conv2d(3, 4, 1), nn.Conv2d(4, 4, 3, groups=4), nn.Conv2d(4, 2, 1))
    costs = costs_of(model, 1, 3, 5, 5)
    assert saved(costs, "0:out[1]") == pytest.approx((25 * 3 + 9 * 9 + 9 * 2, 4 * (3 + 1 + 9 + 1 + 2)))


def test_transposed_convolutions() -> None:
    model = nn.Sequential(nn.Conv2d(1, 3, 1), nn.ConvTranspose2d(3, 4, 2, stride=2), nn.Conv2d(4, 1, 1))
    costs = costs_of(model, 2, 1, 5, 5)
    assert layer(costs, "1") == (25 * 3 * 4 * 4, 3 * 4 * 4, 4)
    assert saved(costs, "1:out[0]") == pytest.approx((25 * 3 * 4 + 100, 4 * (12 + 1 + 1)))


class Attention(nn.Module):
    """Two heads of three dimensions over six features."""

    def __init__(self, width: int = 6, heads: int = 2) -> None:
        super().__init__()
        self.heads = heads
        self.qkv, self.out = nn.Linear(width, 3 * width, bias=False), nn.Linear(width, 5, bias=False)

    def forward(self, x: Tensor) -> Tensor:
        n, length, width = x.shape
        q, k, v = self.qkv(x).view(n, length, 3, self.heads, width // self.heads).permute(2, 0, 3, 1, 4)
        return self.out(F.scaled_dot_product_attention(q, k, v).transpose(1, 2).reshape(n, length, width))


def test_attention_and_its_heads() -> None:
    costs = costs_of(Attention(), 3, 4, 6)
    products = 2 * (2 * 4 * 4 * 3)  # scores and weighted values, per head
    assert costs.dense_macs == 4 * 6 * 18 + products + 4 * 6 * 5
    heads = [unit for unit in costs.unit_ids if "head" in unit]
    assert len(heads) == 2
    for head in heads:
        assert saved(costs, head) == pytest.approx((4 * 6 * 9 + products / 2 + 4 * 3 * 5, 4 * (6 * 9 + 3 * 5)))


def test_tied_weights_are_stored_once_and_multiplied_often() -> None:
    class Tied(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.embed, self.head = nn.Embedding(9, 4), nn.Linear(4, 9, bias=False)
            self.head.weight = self.embed.weight
            self.middle = nn.Linear(4, 4, bias=False)

        def forward(self, x: Tensor) -> Tensor:
            x = self.embed(x)
            return self.head(self.middle(self.middle(x)))

    costs = compress.unit_costs(Tied(), None, torch.zeros(2, 3, dtype=torch.long))
    assert costs.dense_macs == 3 * (16 + 16 + 36)
    assert costs.dense_weight_bytes == 4 * (36 + 16)


def test_formats_save_bytes_and_keep_a_scale_per_channel() -> None:
    costs = costs_of(nn.Sequential(nn.Linear(7, 5), nn.Linear(5, 3)), 1, 7)
    for bits in (8, 4, 3):
        assert saved(costs, "0", f"{bits}bit") == (0, 4 * 35 - int(np.ceil(35 * bits / 8)) - 4 * 5)
    assert np.isnan(saved(costs, "0:out[0]", "8bit")).all()
    assert np.isnan(saved(costs, "0")).all()
    nothing = np.zeros(len(costs.unit_ids), dtype=bool)
    assert costs.total(nothing, np.array([4, 0]))[1] == np.ceil(35 * 4 / 8) + 4 * (5 + 5 + 15 + 3)


def test_units_of_another_model_are_refused() -> None:
    model, x = nn.Sequential(nn.Linear(2, 3), nn.Linear(3, 1)), torch.zeros(1, 2)
    other = compress.find_units(nn.Sequential(nn.Linear(2, 4), nn.Linear(4, 1)), x)
    with pytest.raises(CompressError, match=r"Unknown unit '0:out\[3\]'"):
        compress.unit_costs(model, other, x)
    assert count_macs(model, x) == 9


def test_a_product_written_out_shrinks_on_both_sides() -> None:
    class Written(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.first, self.last = nn.Linear(3, 4), nn.Linear(5, 2, bias=False)
            self.bias, self.weight = nn.Parameter(torch.ones(5)), nn.Parameter(torch.ones(4, 5))

        def forward(self, x: Tensor) -> Tensor:
            return self.last(torch.addmm(self.bias, self.first(x), self.weight))

    structure = compress.analyze(Written(), torch.zeros(2, 3))
    costs = compress.unit_costs(structure)
    assert (costs.dense_macs, costs.dense_weight_bytes) == (12 + 20 + 10, 4 * (12 + 4 + 20 + 5 + 10))
    removed = np.array(["[0]" in unit for unit in structure.units.ids])
    macs, weight_bytes = costs.total(removed)
    assert macs == pytest.approx(count_macs(slice_model(structure, removed), torch.zeros(2, 3)))
    assert weight_bytes == pytest.approx(4 * sum(p.numel() for p in slice_model(structure, removed).parameters()))


class Experts(nn.Module):
    """The weights of three experts in one parameter, which could shrink on three sides."""

    def __init__(self) -> None:
        super().__init__()
        self.i, self.g, self.o = nn.Linear(4, 5), nn.Linear(5, 3), nn.Linear(5, 2)
        self.w1, self.w2 = nn.Parameter(torch.randn(3, 5, 6)), nn.Parameter(torch.randn(3, 6, 5))

    def forward(self, x: Tensor) -> Tensor:
        x = self.i(x)
        h = F.relu(torch.einsum("btd,edh->beth", x, self.w1))
        return self.o(torch.einsum("bte,betd->btd", self.g(x).softmax(-1), torch.einsum("beth,ehd->betd", h, self.w2)))


class Standardised(nn.Module):
    """Weights that are computed from parameters, of every kind of layer."""

    def __init__(self) -> None:
        super().__init__()
        self.a, self.b, self.c = nn.Conv1d(2, 6, 3), nn.ConvTranspose1d(6, 5, 3), nn.Linear(5, 4)
        self.out = nn.Linear(4, 2)

    def forward(self, x: Tensor) -> Tensor:
        x = F.relu(F.conv1d(x, 2 * self.a.weight, self.a.bias))
        x = F.relu(F.conv_transpose1d(x, 2 * self.b.weight, self.b.bias)).mean(2)
        return self.out(F.relu(F.linear(x, 2 * self.c.weight, self.c.bias)))


@pytest.mark.parametrize(
    ("model", "shape", "macs"),
    [(Experts, (2, 7, 4), 7 * (20 + 15 + 90 + 90 + 15 + 10)), (Standardised, (2, 2, 8), 36 * 6 + 6 * 90 + 20 + 8)],
)
def test_products_with_computed_weights_and_experts_are_counted(model, shape, macs) -> None:
    torch.manual_seed(0)
    structure = compress.analyze(model().eval(), torch.randn(shape))
    costs = compress.unit_costs(structure)
    assert costs.dense_macs == macs
    removed = np.array([unit.endswith(("[0]", "[1]")) for unit in structure.units.ids])
    assert removed.sum() >= 4
    small = slice_model(structure, removed)
    assert costs.total(removed)[0] == pytest.approx(count_macs(small, torch.randn(shape)), rel=1e-12)
    assert costs.total(removed)[1] == pytest.approx(4 * sum(p.numel() for p in small.parameters()), rel=1e-12)


class LinearAttention(nn.Module):
    """Keys times values: both of its sides may shrink."""

    def __init__(self) -> None:
        super().__init__()
        self.q, self.k, self.v, self.o = nn.Linear(5, 8), nn.Linear(5, 8), nn.Linear(5, 6), nn.Linear(6, 3)

    def forward(self, x: Tensor) -> Tensor:
        context = self.k(x).softmax(1).transpose(1, 2) @ self.v(x)
        return self.o(self.q(x).softmax(-1) @ context)


class ChannelAttention(LinearAttention):
    """Channels times the same channels."""

    def forward(self, x: Tensor) -> Tensor:
        v = self.v(x)
        return self.o(v @ (v.transpose(1, 2) @ v))


class OneHead(LinearAttention):
    """Queries and keys are of another width than values."""

    def forward(self, x: Tensor) -> Tensor:
        return self.o(F.scaled_dot_product_attention(self.q(x), self.k(x), self.v(x)))


class ThreeOperands(LinearAttention):
    """Multiplied two by two."""

    def forward(self, x: Tensor) -> Tensor:
        q, k, v = self.q(x).softmax(-1), self.k(x).softmax(1), self.v(x)
        return self.o(torch.einsum("bqe,bke,bkd->bqd", q, k, v))


@pytest.mark.parametrize(
    ("model", "products"),
    [(LinearAttention, 7 * 8 * 6 * 2), (ChannelAttention, 7 * 6 * 6 * 2), (OneHead, 7 * 7 * (8 + 6)),
     (ThreeOperands, 7 * 7 * (8 + 6))],
)  # fmt: skip
def test_each_side_of_a_product_shrinks_by_itself(model, products) -> None:
    torch.manual_seed(0)
    x = torch.randn(2, 7, 5)
    structure = compress.analyze(model().eval(), x)
    costs = compress.unit_costs(structure)
    used = 2 * 8 + 6 if model is not ChannelAttention else 6
    assert costs.dense_macs == 7 * (5 * used + 6 * 3) + products
    for width in (1, 3, 5):
        removed = np.array([unit.endswith(tuple(f"[{i}]" for i in range(width))) for unit in structure.units.ids])
        small = slice_model(structure, removed)
        assert costs.total(removed)[0] == pytest.approx(count_macs(small, x), rel=1e-12)


def test_a_pinned_product_pins_all_that_it_multiplies() -> None:
    structure = compress.analyze(OneHead().eval(), torch.randn(2, 7, 5))
    costs = compress.unit_costs(structure)
    pinned = pinned_units(structure.units, costs, ("scaled_dot_product_attention",))
    assert all(pinned[structure.units.removable])


def test_queries_that_all_examples_share_are_multiplied_with_each() -> None:
    class Pooling(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.latents, self.k, self.v = nn.Parameter(torch.randn(1, 3, 4)), nn.Linear(5, 4), nn.Linear(5, 6)

        def forward(self, x: Tensor) -> Tensor:
            return F.scaled_dot_product_attention(self.latents, self.k(x), self.v(x))

    for batch in (2, 4):
        assert costs_of(Pooling(), batch, 7, 5).dense_macs == 7 * 5 * (4 + 6) + 3 * 7 * (4 + 6)


def test_products_with_an_ellipsis_and_a_bias() -> None:
    class Model(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.i, self.o = nn.Linear(5, 4), nn.Linear(4, 3)

        def forward(self, x: Tensor) -> Tensor:
            x = self.i(x)
            scores = torch.baddbmm(torch.zeros(1, 7, 7), x, x.transpose(1, 2))
            return self.o(torch.einsum("...ij,...jd->...id", scores, x))

    costs = costs_of(Model(), 2, 7, 5)
    assert costs.dense_macs == 7 * (5 * 4 + 4 * 3) + 2 * 7 * 7 * 4


def test_mixers_with_units_on_three_sides_are_never_told_too_cheap() -> None:
    class Mixer(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.i, self.a, self.b, self.o = nn.Linear(5, 8), nn.Linear(7, 6), nn.Linear(6, 9), nn.Linear(8, 3)

        def forward(self, x: Tensor) -> Tensor:
            x = self.b(F.relu(self.a(F.relu(self.i(x)).transpose(1, 2))))
            return self.o(x.transpose(1, 2)).relu().mean(1)

    x = torch.randn(2, 7, 5)
    structure = compress.analyze(Mixer().eval(), x)
    costs = compress.unit_costs(structure)
    removed = np.array([unit.endswith(("[0]", "[1]", "[2]")) for unit in structure.units.ids])
    assert costs.dense_macs == 7 * 5 * 8 + 8 * 7 * 6 + 8 * 6 * 9 + 9 * 8 * 3
    told, true = costs.total(removed)[0], count_macs(slice_model(structure, removed), x)
    assert true <= told < costs.dense_macs


def test_a_parameter_shrinks_on_two_sides_at_most() -> None:
    units = compress.find_units(Experts(), torch.randn(2, 7, 4))
    assert set(units.groups) == {"i:out", "w1:out", "w2:out"}
    assert "two longer sides" in dict(units.blocked)["g"]


@pytest.mark.parametrize("name", SLICED)
def test_predicted_cost_of_a_plan_is_that_of_the_sliced_model(name: str) -> None:
    architecture = ZOO[name]
    inputs = architecture.inputs(2)
    structure = compress.analyze(build(architecture), inputs)
    costs = compress.unit_costs(structure)
    rng = np.random.default_rng(0)
    removed = np.zeros(len(structure.units), dtype=bool)
    for group in structure.units.groups:
        rows = np.flatnonzero((structure.units.group == group) & structure.units.removable)
        removed[rng.choice(rows, len(rows) // 2, replace=False)] = True
    assert removed.any()
    small = slice_model(structure, removed)
    macs, weight_bytes = costs.total(removed)
    assert weight_bytes == pytest.approx(4 * sum(p.numel() for p in small.parameters()), rel=1e-12)
    args, kwargs = as_inputs(inputs)
    traced = compress.analyze(small, kwargs or args)
    assert macs == pytest.approx(count_macs(traced), rel=1e-12)
    # Its own graph, not traced once more, tells the same.
    own = analyze_changed(small, structure)
    assert count_macs(own) == count_macs(traced)
    assert (own.units.ids, own.units.fingerprint) == (traced.units.ids, traced.units.fingerprint)
    single = compress.unit_costs(structure).macs[np.flatnonzero(removed), 0]
    assert (single >= 0).all()


@pytest.mark.parametrize("scheme", ["channel", "spatial"])
def test_a_layer_that_became_two_is_counted_from_its_own_graph(scheme: str) -> None:
    x = torch.randn(2, 3, 8, 8)
    structure = compress.analyze(nn.Sequential(nn.Conv2d(3, 6, 3), nn.ReLU(), nn.Conv2d(6, 4, 3)), x)
    low = factorize(structure.traced.module, {"2": Factorization(2, scheme)})
    own = count_macs(analyze_changed(low, structure))
    # Per example: 6 x 6 outputs of the first layer, then those of the two.
    first, middle, last = 36 * 3 * 9 * 6, (16 * 6 * 9 * 2, 24 * 6 * 3 * 2), (16 * 2 * 4, 16 * 2 * 3 * 4)
    spatial = scheme == "spatial"
    assert own == count_macs(compress.analyze(low, x)) == first + middle[spatial] + last[spatial]


def test_what_a_traced_network_became_is_traced_anew_where_it_calls_modules() -> None:
    x = torch.randn(2, 5)
    structure = compress.analyze(nn.Sequential(nn.Linear(5, 4), nn.ReLU(), nn.Linear(4, 3)), x)
    module = slice_model(structure, np.zeros(len(structure.units), dtype=bool))
    first = next(node for node in module.graph.nodes if node.op == "call_function")
    module.add_module("added", nn.Linear(5, 5))
    with module.graph.inserting_before(first):
        first.replace_input_with(first.args[0], module.graph.call_module("added", (first.args[0],)))
    module.recompile()
    assert count_macs(analyze_changed(module, structure)) == count_macs(structure) + 5 * 5
    with torch.no_grad():
        next(module.parameters()).fill_(torch.nan)
    with pytest.raises(DataError, match="NaN"):
        analyze_changed(module, structure)
    plain = slice_model(structure, np.zeros(len(structure.units), dtype=bool))
    with torch.no_grad():
        next(plain.parameters()).fill_(torch.nan)
    with pytest.raises(DataError, match="NaN"):
        analyze_changed(plain, structure)


class _Positions(nn.Module):
    """Adds a product of weights alone to one of its inputs."""

    def __init__(self) -> None:
        super().__init__()
        self.positions, self.a, self.b = nn.Parameter(torch.zeros(5, 6)), nn.Linear(4, 8), nn.Linear(6, 8)

    def forward(self, x: Tensor) -> Tensor:
        return self.a(x) + self.b(self.positions)


@pytest.mark.parametrize("batch", [1, 2, 8])
def test_what_does_not_depend_on_the_inputs_is_done_once_for_each_example(batch: int) -> None:
    assert costs_of(_Positions(), batch, 5, 4).dense_macs == 5 * 4 * 8 + 5 * 6 * 8
