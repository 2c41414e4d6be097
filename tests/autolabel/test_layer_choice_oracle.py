"""The measured damage of a layer's choice is that of the model that is divided, pruned and quantised so."""

import copy
from dataclasses import asdict, replace

import numpy as np
import pytest
import torch
from torch import nn

from autolabel.measuring import measure
from autolabel.oracles import LayerChoiceOracle
from compress.errors import CompressError
from compress.factor_formats import factorize_plan, part_formats
from compress.factorizers import SpatialFactorizer
from compress.input_moments import collect_input_moments
from compress.layer_choice import LayerChoice, choice_of
from compress.layer_trial import coded_bits, keep_largest, try_choices
from compress.number_format import SYMMETRIC, NumberFormat
from compress.plan import CompressionPlan, LayerFormat
from compress.quantization import prepare_quantized
from compress.quantizers.minmax import MinMaxQuantizer
from compress.splitting import find_splits
from compress.structure import analyze
from compress.task import ClassificationTask

TASK = ClassificationTask()


@pytest.fixture(name="case", scope="module")
def a_net_and_batches():
    with torch.random.fork_rng():
        torch.manual_seed(0)
        model = nn.Sequential(
            nn.Conv2d(2, 8, 3, padding=1), nn.ReLU(), nn.Conv2d(8, 8, 3, padding=1, groups=8), nn.ReLU(),
            nn.Conv2d(8, 6, 3), nn.ReLU(), nn.Flatten(), nn.Linear(96, 4)).eval()  # fmt: skip
        batches = [(torch.randn(n, 2, 6, 6), torch.randint(0, 4, (n,))) for n in (10, 6)]
    return analyze(model, batches[0][0]), batches


def mean_loss(module, batches):
    with torch.no_grad():
        return float(torch.cat([TASK.loss(module(x), (x, y)) for x, y in batches]).double().mean())


def stored(module, name, choice, second, number_format=SYMMETRIC):
    """The module with one layer as the choice leaves it, by the road that a plan takes."""
    rank = choice.rank_of(find_splits(module, choice.rank_scheme)[0][name].useful_rank)
    scheme = "float32" if choice.bits == 32 else "symmetric"
    own = LayerFormat(choice.bits, scheme, density=choice.density, rank=rank, rank_scheme=choice.rank_scheme)
    plan = CompressionPlan(layer_formats={name: number_format.applied(own)})
    low = factorize_plan(copy.deepcopy(module), plan, second)
    with torch.no_grad():
        for part in part_formats(plan):
            weight = low.get_parameter(f"{part}.weight")
            weight.copy_(keep_largest(weight, choice.density))
    return low if choice.bits == 32 else prepare_quantized(low, plan, [], MinMaxQuantizer(), reduce_range=False)


@pytest.mark.parametrize("aware", [True, False])
@pytest.mark.parametrize(("factorizer", "letter"), [(None, "r"), (SpatialFactorizer(), "s")])
def test_the_damage_of_a_rank_is_that_of_the_divided_model(case, aware, factorizer, letter):
    structure, batches = case
    oracle = LayerChoiceOracle(
        (32, 4), MinMaxQuantizer(), ranks=(0.7, 0.4), activation_aware=aware, factorizer=factorizer
    )
    labels = measure(structure, None, TASK, batches, oracle)
    assert labels.choices == ("4bit", *(f"{bits}bit_{letter}{rank}" for bits in (32, 4) for rank in (0.7, 0.4)))
    module = structure.traced.module
    second = collect_input_moments(module, [(x,) for x, _ in batches]) if aware else None
    for row, name in enumerate(labels.unit_ids):
        for column, choice in enumerate(labels.choices):
            if name in ("0", "4", "7"):
                low = stored(module, name, choice_of(choice), second)
                expected = mean_loss(low, batches) - mean_loss(module, batches)
                assert abs(expected) > 1e-6
                assert labels.damage[row, column] == pytest.approx(expected, abs=1e-6)
            elif name != "2" or f"_{letter}" in choice:
                assert np.isnan(labels.damage[row, column]), "no label where nothing can be divided"
            else:
                assert np.isfinite(labels.damage[row, column])


def test_every_rank_goes_with_every_density(case):
    structure, batches = case
    oracle = LayerChoiceOracle((32, 4), MinMaxQuantizer(), (1.0, 0.5), ranks=(0.7,))
    labels = measure(structure, None, TASK, batches, oracle)
    assert labels.choices == ("32bit_d0.5", "4bit", "4bit_d0.5", "32bit_r0.7", "32bit_d0.5_r0.7", "4bit_r0.7",
                              "4bit_d0.5_r0.7")  # fmt: skip
    module = structure.traced.module
    second = collect_input_moments(module, [(x,) for x, _ in batches])
    for row, name in enumerate(labels.unit_ids):
        for column, choice in enumerate(labels.choices):
            if name in ("0", "4", "7"):
                expected = mean_loss(stored(module, name, choice_of(choice), second), batches)
                expected -= mean_loss(module, batches)
                assert labels.damage[row, column] == pytest.approx(expected, abs=1e-6)


@pytest.mark.parametrize(
    "number_format",
    [
        NumberFormat("affine"), NumberFormat("codebook", "tensor"), NumberFormat("power_of_two"),
        NumberFormat("binary", "group", 8), NumberFormat("bfloat16"),
    ],
    ids=str,
)  # fmt: skip
def test_the_damage_is_that_of_the_number_format(case, number_format):
    structure, batches = case
    choices = {"densities": (1.0, 0.5), "ranks": (0.7,)}
    oracle = LayerChoiceOracle((4, 2), MinMaxQuantizer(), **choices, **asdict(number_format))
    labels = measure(structure, None, TASK, batches, oracle, ["0", "4", "7"])
    plain = measure(structure, None, TASK, batches, LayerChoiceOracle((4, 2), MinMaxQuantizer(), **choices))
    module = structure.traced.module
    second = collect_input_moments(module, [(x,) for x, _ in batches])
    for name in ("0", "4", "7"):
        row = labels.unit_ids.index(name)
        for column, choice in enumerate(labels.choices):
            expected = mean_loss(stored(module, name, choice_of(choice), second, number_format), batches)
            expected -= mean_loss(module, batches)
            assert labels.damage[row, column] == pytest.approx(expected, abs=1e-6)
            assert abs(expected - plain.damage[row, plain.choices.index(choice)]) > 1e-7


def test_symbols_of_number_formats_by_hand():
    weight = torch.tensor([[1.0, 1, 5, 5], [-2, 6, -2, 6]])
    for number_format, name, values, bits in (
        (NumberFormat("codebook"), "1bit", weight, 1),
        # One codebook for both: the means of -2, -2, 1, 1 and of 5, 5, 6, 6.
        (NumberFormat("codebook", "tensor"), "1bit", [[-0.5, -0.5, 5.5, 5.5], [-0.5, 5.5, -0.5, 5.5]], 1),
        # Of magnitudes above 0.7 times their mean, 2.1 and 2.8, the mean; 4 zeros and 4 ones.
        (NumberFormat("ternary"), "2bit", [[0, 0, 5, 5], [0, 6, 0, 6]], 1),
        # The four largest stay, each row alone: nothing but their sign is left beside zero.
        (NumberFormat("binary"), "1bit_d0.5", [[0, 0, 5, 5], [0, 6, 0, 6]], 1),
        (NumberFormat("bfloat16"), "8bit", weight, 16),
    ):
        ((found, coded),) = try_choices(weight, [choice_of(name)], MinMaxQuantizer(), 0, None, number_format)
        assert found.tolist() == torch.as_tensor(values).tolist(), number_format
        assert coded == bits


def test_widths_that_a_scheme_stores_alike_are_measured_once():
    alike = {"symmetric": ("8bit", "4bit", "2bit"), "ternary": ("2bit",), "binary": ("2bit",), "bfloat16": ("8bit",)}
    for scheme, choices in alike.items():
        assert LayerChoiceOracle((8, 4, 2), scheme=scheme).choices == choices
    assert LayerChoiceOracle((32, 8, 2), densities=(1.0, 0.5), scheme="ternary").choices == (
        "32bit_d0.5", "2bit", "2bit_d0.5",
    )  # fmt: skip
    with pytest.raises(CompressError, match="'scheme' parameter of NumberFormat"):
        LayerChoiceOracle(scheme="nothing")


def test_schemes_that_compete_are_each_measured(case):
    structure, batches = case
    oracle = LayerChoiceOracle((4, 2), MinMaxQuantizer(), (1.0, 0.5), ranks=(0.7,), schemes=("codebook", "ternary"))
    of_scheme = ("2bit", "2bit_d0.5", "2bit_r0.7", "2bit_d0.5_r0.7")
    assert oracle.choices[-4:] == tuple(name.replace("bit", "bit_ternary") for name in of_scheme)
    assert len(oracle.choices) == 8 + 8 + 4
    labels = measure(structure, None, TASK, batches, oracle, ["4"])
    row, labels_of = (
        labels.unit_ids.index("4"),
        {None: LayerChoiceOracle((4, 2), MinMaxQuantizer(), (1.0, 0.5), (0.7,))},
    )
    for scheme in ("codebook", "ternary"):
        labels_of[scheme] = LayerChoiceOracle((4, 2), MinMaxQuantizer(), (1.0, 0.5), (0.7,), scheme=scheme)
    labels_of = {scheme: measure(structure, None, TASK, batches, own, ["4"]) for scheme, own in labels_of.items()}
    for column, name in enumerate(labels.choices):
        choice = choice_of(name)
        alone = labels_of[choice.scheme]
        expected = alone.damage[row, alone.choices.index(replace(choice, scheme=None).name)]
        assert labels.damage[row, column] == expected
    for schemes in (("symmetric",), ("affine",), ("codebook", "codebook")):
        with pytest.raises(CompressError, match="'schemes' parameter of LayerChoiceOracle"):
            LayerChoiceOracle(scheme="affine", schemes=schemes)


def test_two_factors_that_keep_half_of_their_weights_by_hand():
    # Of rank one: whatever scales the two factors have, the larger half of each stays.
    left, right = torch.tensor([1.0, -4, 3, 2]), torch.tensor([6.0, 2, -8, 1])
    choice = LayerChoice(32, 0.5, 0.9)
    ((values, bits),) = try_choices(torch.outer(left, right), [choice], MinMaxQuantizer(), 0)
    expected = torch.outer(torch.tensor([0.0, -4, 3, 0]), torch.tensor([6.0, 0, -8, 0]))
    torch.testing.assert_close(values, expected)
    assert bits == choice.bits_per_weight == 32 / 2 + 1


def test_knowing_the_inputs_is_worth_it(case):
    structure, batches = case
    module = structure.traced.module
    x = torch.cat([x for x, _ in batches])
    second = collect_input_moments(module, [(x * torch.tensor([1.0, 0.01]).reshape(1, 2, 1, 1),)], ["0"])["0"]
    weight = module.get_parameter("0.weight").detach()
    choice = choice_of("32bit_r0.4")
    (plain, _), (aware, _) = (next(try_choices(weight, [choice], MinMaxQuantizer(), 0, s)) for s in (None, second))

    def errors(values):
        gap = (values - weight).flatten(1).double()
        return float((gap @ second * gap).sum()), float(gap.square().sum())

    assert errors(aware)[0] < 0.8 * errors(plain)[0]
    assert errors(aware)[1] > errors(plain)[1]


def test_choices_tried_together_are_those_tried_alone(case):
    structure, batches = case
    second = collect_input_moments(structure.traced.module, [(x,) for x, _ in batches])
    choices = [choice_of(name) for name in ("4bit_r0.7", "8bit_d0.5", "32bit_r0.4", "2bit", "4bit_r0.4")]
    weight = structure.traced.module.get_parameter("4.weight").detach()
    together = list(try_choices(weight, choices, MinMaxQuantizer(), 0, second["4"]))
    for choice, (values, bits) in zip(choices, together, strict=True):
        ((alone, same),) = try_choices(weight, [choice], MinMaxQuantizer(), 0, second["4"])
        assert torch.equal(values, alone)
        assert bits == same
        found = coded_bits(structure, [choice], MinMaxQuantizer(), ["4", "no layer"], second)
        np.testing.assert_array_equal(found[choice.name], [bits, choice.bits_per_weight])


def test_the_largest_weights_stay():
    weight = torch.tensor([[3.0, -4, 1], [2, -1, 0.5]])
    assert keep_largest(weight, 0.5).tolist() == [[3, -4, 0], [2, 0, 0]]
    assert keep_largest(weight, 0.01).tolist() == [[0, -4, 0], [0, 0, 0]], "one stays"
    assert keep_largest(weight, 1.0) is not weight


@pytest.mark.parametrize("setting", [{"ranks": (1.0,)}, {"ranks": (0.0,)}, {"densities": (1.5,)}])
def test_numbers_out_of_range_are_refused_at_once(setting):
    with pytest.raises(CompressError, match=next(iter(setting))):
        LayerChoiceOracle(**setting)
