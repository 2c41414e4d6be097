"""Integers, scales and ranges against hand-computed values and the properties that define them."""

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from compress.errors import CompressError, DataError
from compress.quantizer import (
    ACTIVATION_LEVELS,
    INTEGER_BITS,
    Histogram,
    affine_parameters,
    dequantize_weight,
    fake_quantize_weight,
    largest_integer,
    quantize_weight,
    weight_scale,
)
from compress.quantizers.minmax import MinMaxQuantizer
from compress.quantizers.mse import MseQuantizer
from compress.quantizers.percentile import PercentileQuantizer

QUANTIZERS = (MinMaxQuantizer(), MseQuantizer())


def test_minmax_integers_by_hand():
    weight = torch.tensor([[0.7, -0.35, 0.1], [2.0, 14.0, -7.0]])
    integers, scale = quantize_weight(weight, 4, MinMaxQuantizer())
    assert torch.allclose(scale, torch.tensor([0.1, 2.0]))
    # 0.35 / 0.1 lies between 3 and 4 by rounding of floats; either is the nearest.
    assert integers[0, 0] == 7
    assert integers[0, 2] == 1
    assert integers[0, 1] in (-3, -4)
    assert integers[1].tolist() == [1, 7, -4]
    assert integers.dtype == torch.int8


def test_channels_lie_along_the_axis():
    weight = torch.tensor([[1.0, 10.0], [-2.0, 5.0]])
    _, scale = quantize_weight(weight, 8, MinMaxQuantizer(), axis=1)
    assert torch.allclose(scale * 127, torch.tensor([2.0, 10.0]))


def test_mse_clips_an_outlier_that_minmax_keeps():
    # Three hundred values up to 1 and one of 3: at 3 bits min-max has steps of 1 for all of them.
    weight = torch.cat([torch.linspace(-1, 1, 300), torch.tensor([3.0])])[None]
    errors = {}
    for quantizer in QUANTIZERS:
        integers, scale = quantize_weight(weight, 3, quantizer)
        errors[quantizer.name] = (dequantize_weight(integers, scale) - weight).square().sum().item()
    assert errors["mse"] < errors["minmax"]


@pytest.mark.parametrize("quantizer", QUANTIZERS, ids=lambda q: q.name)
def test_a_channel_of_zeros_gets_a_harmless_scale(quantizer):
    weight = torch.tensor([[0.0, 0.0], [1.0, -3.0]])
    integers, scale = quantize_weight(weight, 8, quantizer)
    assert (scale > 0).all()
    assert scale[0] == scale[1]
    assert integers[0].tolist() == [0, 0]
    assert (quantize_weight(torch.zeros(2, 3), 2, quantizer)[1] == 1.0).all()


@pytest.mark.parametrize("bits", [0, 1, 9, True])
def test_other_bits_are_refused(bits):
    with pytest.raises(CompressError, match="bits"):
        quantize_weight(torch.ones(1, 1), bits, MinMaxQuantizer())


def test_one_bit_is_refused_with_what_to_use_instead():
    with pytest.raises(CompressError, match=r"Got 1\. A plan can store a layer in one bit: LayerFormat\(1, 'binary'\)"):
        quantize_weight(torch.ones(1, 1), 1, MinMaxQuantizer())


def test_nan_is_refused():
    with pytest.raises(DataError, match="NaN"):
        quantize_weight(torch.tensor([[float("nan")]]), 8, MinMaxQuantizer())
    with pytest.raises(DataError, match="finite"):
        affine_parameters(0.0, float("inf"))


@pytest.mark.parametrize("steps", [0, 1, 2.5, True])
def test_mse_refuses_a_grid_without_points(steps):
    with pytest.raises(CompressError, match="steps"):
        MseQuantizer(steps)


@settings(max_examples=25, derandomize=True, deadline=None)
@given(seed=st.integers(0, 1000), bits=st.sampled_from(INTEGER_BITS), scale=st.sampled_from([1e-12, 1e-3, 1.0, 1e6]))
def test_integers_are_in_range_and_errors_within_half_a_step(seed, bits, scale):
    weight = scale * torch.randn(3, 4, 2, generator=torch.Generator().manual_seed(seed))
    integers, step = quantize_weight(weight, bits, MinMaxQuantizer())
    assert integers.abs().max() <= largest_integer(bits)
    error = (dequantize_weight(integers, step) - weight).abs().flatten(1).amax(1)
    assert (error <= step * 0.5001).all()
    # Quantising what is already on the grid changes nothing.
    again = fake_quantize_weight(dequantize_weight(integers, step), step, largest_integer(bits))
    assert torch.equal(again, dequantize_weight(integers, step))


@settings(max_examples=15, derandomize=True, deadline=None)
@given(seed=st.integers(0, 1000), bits=st.sampled_from(INTEGER_BITS))
def test_mse_is_never_worse_than_minmax(seed, bits):
    weight = torch.randn(4, 30, generator=torch.Generator().manual_seed(seed)) ** 3
    errors = []
    for quantizer in QUANTIZERS:
        integers, step = quantize_weight(weight, bits, quantizer)
        errors.append((dequantize_weight(integers, step) - weight).square().sum(1))
    assert (errors[1] <= errors[0] * 1.0001).all()


def test_the_gradient_passes_straight_through_what_is_not_clipped():
    weight = torch.tensor([[0.2, -0.9, 5.0]], requires_grad=True)
    fake_quantize_weight(weight, torch.tensor([0.1]), 7).sum().backward()
    assert weight.grad.tolist() == [[1.0, 0.0, 0.0]]


def test_reduced_range_halves_the_integers():
    weight = torch.tensor([[1.0, -0.5]])
    assert torch.allclose(weight_scale(weight, 63, MinMaxQuantizer()), torch.tensor([1 / 63]))


@pytest.mark.parametrize(
    ("low", "high", "scale", "zero_point"),
    [(0.0, 2.55, 0.01, 0), (-1.0, 1.55, 0.01, 100), (-2.55, 0.0, 0.01, 255), (0.5, 2.55, 0.01, 0)],
)
def test_affine_parameters_by_hand(low, high, scale, zero_point):
    got_scale, got_zero = affine_parameters(low, high)
    assert got_scale == pytest.approx(scale, rel=1e-6)
    assert got_zero == zero_point


def test_a_constant_zero_activation_has_a_scale():
    scale, zero_point = affine_parameters(0.0, 0.0)
    assert scale > 0
    assert zero_point == 0


@settings(max_examples=40, derandomize=True, deadline=None)
@given(low=st.floats(-1e4, 1e4), high=st.floats(-1e4, 1e4))
def test_zero_is_always_a_level(low, high):
    low, high = min(low, high), max(low, high)
    scale, zero_point = affine_parameters(low, high)
    assert scale > 0
    assert 0 <= zero_point <= ACTIVATION_LEVELS


def _histogram(values: np.ndarray) -> Histogram:
    counts, _ = np.histogram(values, 2048, (values.min(), values.max()))
    return Histogram(float(values.min()), float(values.max()), counts.astype(np.float64))


def test_mse_range_clips_a_rare_outlier_and_keeps_a_uniform_range():
    generator = np.random.default_rng(0)
    bulk = generator.normal(size=200_000)
    low, high = MseQuantizer().activation_range(_histogram(np.append(bulk, 20.0)))
    assert high < 18.0
    assert low < -2.0
    uniform = generator.uniform(0, 1, 100_000)
    low, high = MseQuantizer().activation_range(_histogram(uniform))
    assert low == 0.0
    assert high > 0.97
    assert MinMaxQuantizer().activation_range(_histogram(bulk)) == (bulk.min(), bulk.max())


def test_histogram_centers():
    assert Histogram(0.0, 4.0, np.zeros(4)).centers.tolist() == [0.5, 1.5, 2.5, 3.5]


def test_the_limit_of_a_percentile_is_the_value_of_that_rank():
    weight = torch.stack([torch.arange(1, 21.0), -torch.arange(1, 21.0).flip(0)])
    assert PercentileQuantizer(90).weight_limit(weight, 7).tolist() == [18.0, 18.0]
    assert PercentileQuantizer(91).weight_limit(weight, 7).tolist() == [19.0, 19.0]
    assert PercentileQuantizer(100).weight_limit(weight, 7).tolist() == [20.0, 20.0]
    kept = torch.zeros(2, 20, dtype=torch.bool)
    kept[0, :10] = True
    assert PercentileQuantizer(90).weight_limit(weight, 7, kept).tolist() == [9.0, 0.0]
    low, high = PercentileQuantizer(90).weight_range(weight, 4)
    assert (low.tolist(), high.tolist()) == ([3.0, -18.0], [18.0, -3.0])


def test_a_percentile_of_a_histogram_cuts_off_whole_bins_of_rare_values():
    counts = np.array([1.0, 9.0, 80.0, 9.0, 1.0])
    histogram = Histogram(-5.0, 5.0, counts)
    assert PercentileQuantizer(99).activation_range(histogram) == (-3.0, 3.0)
    assert PercentileQuantizer(99.5).activation_range(histogram) == (-5.0, 5.0)
    assert PercentileQuantizer(100).activation_range(histogram) == (-5.0, 5.0)
    assert PercentileQuantizer().activation_range(Histogram(1.0, 1.0, np.zeros(5))) == (1.0, 1.0)


@pytest.mark.parametrize("percent", [50, 100.1, "99", True, float("nan")])
def test_a_percentile_out_of_range_is_refused(percent):
    with pytest.raises(CompressError, match="'percent' parameter"):
        PercentileQuantizer(percent)


@pytest.mark.parametrize("quantizer", [*QUANTIZERS, PercentileQuantizer()], ids=lambda q: q.name)
def test_only_kept_weights_have_a_say_in_ranges(quantizer):
    weight = torch.randn(3, 30, generator=torch.Generator().manual_seed(0))
    kept = torch.rand(3, 30, generator=torch.Generator().manual_seed(1)) < 0.5
    kept[2] = False
    wild = torch.where(kept, weight, 100.0)
    for row in range(2):
        alone = weight[row][kept[row]][None]
        assert quantizer.weight_limit(wild, 3, kept)[row] == quantizer.weight_limit(alone, 3)[0]
        for end, own in zip(quantizer.weight_range(wild, 4, kept), quantizer.weight_range(alone, 4), strict=True):
            assert end[row] == own[0]
    assert quantizer.weight_limit(wild, 3, kept)[2] == 0
    assert [end[2].item() for end in quantizer.weight_range(wild, 4, kept)] == [0.0, 0.0]


@pytest.mark.parametrize("levels", [2, 3, 4, 8])
def test_mse_finds_about_the_best_pair_of_ends(levels):
    # Sixty values in [0, 1] and one far below, which is worth clipping.
    weight = torch.cat([torch.linspace(0, 1, 60), torch.tensor([-2.0])])[None]

    def error(low, high):
        step = (high - low) / (levels - 1)
        codes = ((weight - low) / step).round().clamp(0, levels - 1)
        return (low + codes * step - weight).square().sum(-1)

    ends = torch.linspace(-2, 1, 91)
    low, high = torch.meshgrid(ends, ends, indexing="ij")
    best = error(low[low < high][:, None], high[low < high][:, None]).min()
    low, high = MseQuantizer().weight_range(weight, levels)
    assert error(low, high) < 1.03 * best
    assert error(low, high) < 0.9 * error(torch.tensor(-2.0), torch.tensor(1.0))
