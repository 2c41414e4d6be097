"""Prices of a layer's choices: by hand, and against what divided, coded and packed layers really take."""

import dataclasses

import numpy as np
import pytest
import torch
from torch import nn

import compress
from compress.counting import count_macs
from compress.errors import CompressError
from compress.factor_formats import factorize_plan, part_formats
from compress.factors import useful_rank
from compress.layer_choice import LayerChoice, choice_of
from compress.layer_prices import price_layers, ranks_of
from compress.layer_trial import coded_bits, keep_largest
from compress.low_rank import Factorization, factorize
from compress.number_format import SYMMETRIC, NumberFormat
from compress.plan import CompressionPlan
from compress.quantizers.minmax import MinMaxQuantizer
from compress.splitting import SCHEMES, find_splits


def one_layer(**more):
    """6 inputs, 10 outputs, 5 positions: 60 weights, 10 biases, 300 MACs."""
    empty, nothing = np.empty((0, 1)), np.empty((1, 0))
    numbers = [np.array([value]) for value in (300.0, 60.0, 10.0, 10.0)]
    ranks = compress.costs.RankCosts(np.array([3]), np.array([[6.0, 10.0]]), np.array([[30.0, 50.0]]))
    more = {"low_rank": {"channel": ranks}} | more
    return compress.costs.CostTable((), ("removed",), empty, empty, ("fc",), *numbers, nothing, nothing,
                                    np.array([-1]), **more)  # fmt: skip


def cost(costs, choice, name, kept_in=0.5, kept_out=0.4):
    prices = price_layers(costs, [choice_of(choice)])
    column = prices.choices.index(choice_of(choice))
    (found,) = prices.cost(name, np.array([0]), np.array([kept_in]), np.array([kept_out]), np.array([column]))
    return pytest.approx(found, abs=1e-9)


def test_prices_by_hand():
    costs = one_layer()
    # A fifth of the weights stays, and 4 of the 10 outputs with a bias each, and with a scale each below 16 bits.
    for choice, macs, weight_bytes, coded_bytes, bits in (
        ("32bit", 60, 4 * 12 + 16, 4 * 12 + 16, 32 * 32),
        ("16bit", 60, 2 * 12 + 32, 2 * 12 + 32, 16 * 32),
        ("4bit", 60, 6 + 32, 6 + 32, 4 * 8),
        # Half of the weights and a mask of one bit each: 3 bits.
        ("4bit_d0.5", 60, 6 + 32, 12 * 3 / 8 + 32, 4 * 8),
    ):
        assert cost(costs, choice, "macs") == macs
        assert cost(costs, choice, "weight_bytes") == weight_bytes
        assert cost(costs, choice, "coded_bytes") == coded_bytes
        assert cost(costs, choice, "bit_operations") == macs * bits


def test_prices_of_ranks_by_hand():
    costs = one_layer()
    assert useful_rank((10, 6), ()) == 3  # 3 * (6 + 10) = 48 < 60 <= 4 * 16
    assert LayerChoice(rank=0.5).rank_of(3) == 1
    # One channel between 3 of 6 inputs and 4 of 10 outputs, at 5 positions.
    assert cost(costs, "32bit_r0.5", "macs") == 5 * (3 + 4)
    assert cost(costs, "32bit_r0.5", "weight_bytes") == 4 * (3 + 4) + 16
    assert cost(costs, "4bit_r0.5", "coded_bytes") == (3 + 4) * 4 / 8 + 32 + 4  # and a scale between the two
    assert cost(costs, "4bit_r0.5", "bit_operations") == 5 * (3 + 4) * 4 * 8
    # Half of the weights of both and a mask of one bit each: 3 bits. Without coding zeros take as much as the others.
    assert cost(costs, "4bit_d0.5_r0.5", "coded_bytes") == (3 + 4) * 3 / 8 + 32 + 4
    for name in ("macs", "weight_bytes", "bit_operations"):
        assert cost(costs, "4bit_d0.5_r0.5", name) == cost(costs, "4bit_r0.5", name).expected


@pytest.mark.parametrize(
    ("number_format", "choice", "packed", "rows"),
    [
        # 16 centroids of 4 bytes for each of 4 outputs, or 15 beside zeros; for all; for groups of 4 and 2 inputs each.
        (NumberFormat("codebook"), "4bit", 6, 4 * 64),
        (NumberFormat("codebook"), "4bit_d0.5", 6, 4 * 60),
        (NumberFormat("codebook", "tensor"), "4bit", 6, 64),
        (NumberFormat("codebook", "tensor"), "4bit_r0.5", 3.5, 2 * 64),
        (NumberFormat("codebook", "group", 4), "4bit", 6, 0.5 * 4 * 2 * 64),
        (NumberFormat("codebook", "group", 4), "4bit_r0.5", 3.5, (0.5 * 2 + 4) * 64),
        (NumberFormat("affine"), "4bit", 6, 4 * 8),
        (NumberFormat("affine"), "4bit_r0.5", 3.5, (4 + 1) * 8),
        (NumberFormat("power_of_two"), "4bit", 6, 4 * 1),
        (NumberFormat("ternary"), "4bit", 3, 4 * 4),
        (NumberFormat("bfloat16"), "4bit", 24, 0),
        # In a scheme of its own.
        (SYMMETRIC, "4bit_codebook", 6, 4 * 64),
        (SYMMETRIC, "4bit_codebook_r0.5", 3.5, (4 + 1) * 64),
        (NumberFormat("affine", "tensor"), "4bit_ternary", 3, 4),
    ],
)
def test_prices_of_number_formats_by_hand(number_format, choice, packed, rows):
    costs = one_layer(number_format=number_format)
    # With 4 biases.
    assert cost(costs, choice, "weight_bytes") == packed + rows + 16
    mask = 12 * (3 - 4) / 8 if "_d" in choice else 0  # 3 bits each as coded, zeros in a mask
    assert cost(costs, choice, "coded_bytes") == packed + mask + rows + 16
    macs = cost(costs, choice, "macs").expected
    # None of these is computed on as integers: activations stay floats beside it.
    assert cost(costs, choice, "bit_operations") == macs * number_format.of(choice_of(choice)).bits_of(4) * 32


def test_a_table_that_knows_no_ranks_is_refused():
    with pytest.raises(CompressError, match=r"scheme 'spatial'.*unit_costs"):
        price_layers(one_layer(), [choice_of("32bit_s0.5")])


@pytest.mark.parametrize(
    "name",
    [
        "4bit",
        "3bit_d0.25",
        "32bit_r0.5",
        "4bit_s0.38",
        "2bit_d0.1_r0.5",
        "4bit_codebook",
        "3bit_power_of_two_d0.25",
        "2bit_ternary_d0.5_s0.5",
    ],
)
def test_choices_are_read_from_their_names(name):
    assert choice_of(name).name == name
    scheme = next((scheme for scheme in ("codebook", "power_of_two", "ternary") if f"_{scheme}" in name), None)
    assert choice_of(name).scheme == scheme
    assert choice_of(name).rank_scheme == ("spatial" if "_s" in name else "channel")


def test_coded_bits_and_latencies_are_those_of_the_tables():
    costs = one_layer(coded_bits={"4bit": np.array([2.5])}, latency_ms={"32bit": np.array([3.0]),
                                                                        "4bit": np.array([1.0])})  # fmt: skip
    assert cost(costs, "4bit", "coded_bytes") == 12 * 2.5 / 8 + 32
    assert cost(costs, "4bit", "weight_bytes") == 6 + 32
    assert cost(costs, "4bit", "latency_ms") == 0.2
    assert costs.dense["latency_ms"] == 3.0
    with pytest.raises(CompressError, match="'8bit'"):
        price_layers(costs, [LayerChoice(8)])


@pytest.fixture(name="net", scope="module")
def a_conv_net():
    with torch.random.fork_rng():
        torch.manual_seed(0)
        return nn.Sequential(nn.Conv2d(3, 16, 3, padding=1), nn.ReLU(), nn.Conv2d(16, 32, 3, 2), nn.ReLU(),
                             nn.Flatten(), nn.Linear(32 * 9, 80), nn.ReLU(), nn.Linear(80, 10)).eval()  # fmt: skip


X = torch.zeros(1, 3, 8, 8)


@pytest.fixture(scope="module")
def structure(net):
    return compress.analyze(net, X)


def planned(structure, choices, removed=(), number_format=SYMMETRIC):
    """`(prices' costs by name, plan)` when the layers take these choices and the units are removed."""
    costs = compress.unit_costs(structure)
    taken = {name: choice_of(choice) for name, choice in choices.items()}
    own = tuple(dict.fromkeys(taken.values()))
    bits = coded_bits(structure, own, MinMaxQuantizer(), costs.layer_names, number_format=number_format)
    costs = dataclasses.replace(costs, coded_bits=bits, number_format=number_format)
    prices = price_layers(costs, own)
    column = np.zeros(len(costs.layer_names), dtype=int)
    formats = {}
    for row, name in enumerate(costs.layer_names):
        if name in taken:
            choice = taken[name]
            column[row] = prices.choices.index(choice)
            rank = choice.rank and int(ranks_of(costs, choice)[row])
            scheme = "float32" if choice.bits == 32 else "symmetric"
            formats[name] = number_format.applied(compress.LayerFormat(
                choice.bits, scheme=scheme, density=choice.density, rank=rank, rank_scheme=choice.rank_scheme
            ))  # fmt: skip
    plan = CompressionPlan.removing(structure.units, removed, layer_formats=formats)
    mask = plan.removed_mask(structure.units)
    return {name: prices.total(name, costs, mask, column) for name in prices.product}, plan


@pytest.mark.parametrize("removed", [(), tuple(f"2:out[{i}]" for i in range(8))])
@pytest.mark.parametrize("rank", ["r0.7", "r0.2", "s0.7", "s0.2"])
def test_macs_and_weights_of_ranks_are_those_of_the_divided_model(structure, rank, removed):
    predicted, plan = planned(structure, dict.fromkeys(("0", "2", "5"), f"32bit_{rank}"), removed)
    low = factorize_plan(compress.apply_plan(structure, plan), plan)
    assert predicted["macs"] == pytest.approx(count_macs(low, X), rel=1e-12)
    assert predicted["macs"] < count_macs(structure)
    assert predicted["weight_bytes"] == pytest.approx(4 * sum(p.numel() for p in low.parameters()), rel=1e-12)


def test_the_useful_rank_is_the_last_that_saves_macs_and_weights(structure):
    module, seen = structure.traced.module, 0
    for scheme in SCHEMES:
        for name, split in find_splits(module, scheme)[0].items():
            for rank, smaller in ((split.useful_rank, True), (split.useful_rank + 1, False)):
                if 1 <= rank <= split.full_rank:
                    low = factorize(module, {name: Factorization(rank, scheme)})
                    if scheme == "channel" or name != "2":  # of a stride, the first of two has one dimension only
                        assert (count_macs(low, X) < count_macs(structure)) == smaller
                    weights = [sum(p.numel() for p in m.parameters()) for m in (low, module)]
                    assert (weights[0] < weights[1]) == smaller
                    seen += 1
    assert seen == 16
    assert useful_rank((1, 2), ()) == 0
    assert useful_rank((0, 0), ()) == 0


def test_coded_bits_are_the_entropy_of_the_symbols():
    # 8 of 16 weights stay: zeros half the time, and each of -7, -5, 5 and 7 an eighth of it.
    net = nn.Sequential(nn.Linear(4, 4, bias=False), nn.ReLU(), nn.Linear(4, 2)).eval()
    with torch.no_grad():
        net[0].weight.copy_(torch.tensor([[7.0, -5, 0.1, 0.1], [-7, 5, 0.1, 0.1]] * 2))
    structure = compress.analyze(net, torch.zeros(1, 4))
    choice = LayerChoice(4, density=0.5)
    (bits,) = coded_bits(structure, [choice], MinMaxQuantizer(), ["0"]).values()
    assert bits == pytest.approx([0.5 * 1 + 4 * 3 / 8])
    assert choice.bits_per_weight == 3.0


@pytest.mark.parametrize(
    ("choices", "removed"),
    [
        (("4bit", "4bit", "4bit", "8bit"), 0),
        (("8bit", "4bit_d0.25", "3bit_d0.1", "8bit"), 0),
        (("8bit", "4bit", "4bit_r0.3", "8bit"), 0),
        (("8bit", "4bit_d0.5_r0.7", "4bit_d0.25_s0.5", "8bit"), 0),
        (("8bit", "4bit_d0.5", "3bit", "8bit"), 12),
    ],
)
def test_coded_bytes_are_those_of_the_packed_file(structure, choices, removed, tmp_path):
    removed = [f"2:out[{i}]" for i in range(removed)]
    size, predicted = packed(structure, choices, removed, SYMMETRIC, tmp_path)
    assert size == pytest.approx(predicted, rel=0.03)


@pytest.mark.parametrize(
    ("number_format", "most"),
    [
        (NumberFormat("affine"), 1.05),
        # Of centroids many are alike where there are more of them than weights, and what is coded knows it.
        (NumberFormat("codebook"), 1.2),
        (NumberFormat("codebook", "tensor"), 1.05),
        (NumberFormat("codebook", "group", 48), 1.2),
        (NumberFormat("ternary"), 1.07),
        (NumberFormat("power_of_two", "group", 16), 1.3),
        (NumberFormat("bfloat16"), 1.3),
    ],
)
def test_what_is_priced_is_what_is_stored(structure, number_format, most, tmp_path):
    size, predicted = packed(structure, ("8bit", "4bit_d0.25", "4bit_r0.3", "3bit"), (), number_format, tmp_path)
    assert 0.99 * size <= predicted <= most * size


def packed(structure, choices, removed, number_format, folder):
    """Bytes of the file of a network whose layers take these choices, and what they were priced at."""
    choices = dict(zip(("0", "2", "5", "7"), choices, strict=True))
    predicted, plan = planned(structure, choices, removed, number_format)
    low = factorize_plan(compress.apply_plan(structure, plan), plan)
    with torch.no_grad():
        for name, layer_format in part_formats(plan).items():
            weight = low.get_parameter(f"{name}.weight")
            weight.copy_(keep_largest(weight, layer_format.density))
    low = compress.prepare_quantized(low, plan, [], MinMaxQuantizer(), reduce_range=False)
    compress.save_artifact(folder, low, plan, X)
    compress.pack_artifact(folder)
    x = torch.randn(2, 3, 8, 8)
    for path in (folder, folder / "weights.packed"):
        assert compress.load_artifact(path, structure)(x).equal(low(x))
    return (folder / "weights.packed").stat().st_size, predicted["coded_bytes"]


class Tokens(nn.Module):
    def __init__(self):
        super().__init__()
        self.up, self.out = nn.Linear(12, 20), nn.Linear(20, 6, bias=False)

    def forward(self, x):
        return self.out(torch.relu(self.up(x)))


class Unbatched(nn.Module):
    def __init__(self):
        super().__init__()
        self.conv = nn.Conv2d(3, 8, 3, stride=2)

    def forward(self, x):
        return self.conv(x[0]).mean()


KINDS = {
    "conv1d": (lambda: nn.Sequential(nn.Conv1d(6, 10, 5, stride=2, padding=1)), (2, 6, 17)),
    "conv3d": (lambda: nn.Sequential(nn.Conv3d(4, 9, (3, 2, 3), stride=(1, 2, 2))), (2, 4, 5, 6, 7)),
    "uneven": (lambda: nn.Sequential(nn.Conv2d(4, 9, (5, 3), stride=(2, 1), padding=(2, 0))), (2, 4, 9, 8)),
    "dilated": (lambda: nn.Sequential(nn.Conv2d(4, 9, 3, dilation=(1, 2), stride=(1, 3))), (2, 4, 9, 11)),
    "same": (lambda: nn.Sequential(nn.Conv2d(4, 9, 3, padding="same")), (2, 4, 7, 6)),
    "valid": (lambda: nn.Sequential(nn.Conv2d(4, 9, (3, 5), padding="valid")), (2, 4, 7, 6)),
    "pointwise": (lambda: nn.Sequential(nn.Conv2d(8, 9, 1, stride=2)), (2, 8, 7, 6)),
    "tokens": (Tokens, (2, 5, 12)),
    "unbatched": (Unbatched, (1, 3, 9, 9)),
}


@pytest.mark.parametrize("scheme", SCHEMES)
@pytest.mark.parametrize("kind", KINDS)
def test_ranks_are_priced_as_what_they_become(kind, scheme):
    make, shape = KINDS[kind]
    x = torch.zeros(shape)
    structure = compress.analyze(make().eval(), x)
    costs = compress.unit_costs(structure)
    table, splits = costs.low_rank[scheme], find_splits(structure.traced.module, scheme)[0]
    assert splits
    for row, name in enumerate(costs.layer_names):
        assert (table.useful_rank[row] > 0) == (name in splits and splits[name].useful_rank > 0)
        if name in splits:
            low = factorize(structure.traced.module, {name: Factorization(2, scheme)})
            others = costs.layer_macs.sum() - costs.layer_macs[row]
            assert count_macs(low, x) == pytest.approx(others + 2 * table.macs[row].sum(), rel=1e-12)
            sizes = [sum(p.numel() for p in m.parameters()) for m in (structure.traced.module, low)]
            assert sizes[1] - sizes[0] == 2 * table.weights[row].sum() - costs.layer_weights[row]


def test_a_rank_that_saves_nothing_that_is_bounded_is_not_offered():
    # Of a conv with a stride, the first of two runs at twice as many positions.
    net, x = nn.Sequential(nn.Conv2d(16, 32, 3, stride=2, padding=1)), torch.zeros(1, 16, 8, 8)
    structure = compress.analyze(net.eval(), x)
    choices = ("32bit_s0.95", "32bit_s0.5")
    values = np.full((len(structure.units), 2), np.nan)
    values[~structure.units.removable] = 0.1, 1.0
    scores = compress.Scores(structure.units.ids, choices, values, "nats")
    costs = compress.unit_costs(structure)
    for allocator in ("uniform", "knapsack", "greedy"):
        for budget, rank in ((compress.Budget(macs=0.99), 15), (compress.Budget(weight_bytes=0.99), 29)):
            plan = compress.allocate(structure.units, scores, costs, budget, allocator=allocator)
            assert plan.layer_formats["0"].rank == rank


@pytest.mark.parametrize("settings", [{"bits": 16, "scheme": "codebook"}, {"bits": 8, "scheme": "float16"}])
def test_schemes_are_of_few_bits(settings):
    with pytest.raises(CompressError, match="'scheme' parameter of LayerChoice"):
        LayerChoice(**settings)
    with pytest.raises(CompressError, match="A choice of a layer is called like"):
        choice_of("8bit_float16")


@pytest.mark.parametrize("settings", [{"rank": 0.5, "rank_scheme": "tucker"}, {"rank_scheme": "spatial"}])
def test_unknown_schemes_and_those_without_a_rank_are_refused(settings):
    with pytest.raises(CompressError, match="'rank_scheme' parameter of LayerChoice"):
        LayerChoice(8, **settings)
