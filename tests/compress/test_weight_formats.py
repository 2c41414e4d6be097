"""Number formats against values and gradients computed by hand."""

import math

import pytest
import torch
from torch import Tensor

from compress.quantizers import MinMaxQuantizer, MseQuantizer, PercentileQuantizer
from compress.weight_format import mean_magnitude
from compress.weight_formats import (
    AffineFormat,
    Bfloat16Format,
    BinaryFormat,
    CodebookFormat,
    Float16Format,
    PowerOfTwoFormat,
    SymmetricFormat,
    TernaryFormat,
)

MINMAX = MinMaxQuantizer()


def row(*values: float) -> Tensor:
    return torch.tensor([values])


def keep(*values: int) -> Tensor:
    return torch.tensor([values], dtype=torch.bool)


def all_of(rows: Tensor) -> Tensor:
    return torch.ones_like(rows, dtype=torch.bool)


def coded(form, rows, kept=None, quantizer=MINMAX):
    kept = all_of(rows) if kept is None else kept
    fitted = form.fit(rows, kept, quantizer)
    symbols = form.encode(rows, kept, fitted)
    return fitted, symbols, form.decode(symbols, fitted)


def gradients(form, rows, parameters, kept=None, weights=None):
    """Gradients of the weighted sum of the simulation: of the rows, and of each parameter."""
    kept = all_of(rows) if kept is None else kept
    rows = rows.clone().requires_grad_()
    parameters = {name: value.clone().requires_grad_() for name, value in parameters.items()}
    value = form.simulate(rows, kept, parameters)
    (value * (1.0 if weights is None else weights)).sum().backward()
    return rows.grad[0].tolist(), {name: p.grad.flatten().tolist() for name, p in parameters.items()}


def test_symmetric():
    fitted, symbols, values = coded(SymmetricFormat(3), row(1.5, -0.6, 0.2, -3.0))
    assert fitted["scale"].item() == 1.0
    assert symbols.tolist() == [[2, -1, 0, -3]]
    assert values.tolist() == [[2.0, -1.0, 0.0, -3.0]]


def test_symmetric_of_one_bit_is_a_sign_times_the_limit():
    fitted, symbols, values = coded(SymmetricFormat(1), row(1.5, -0.5, 0.0, -2.0))
    assert fitted["scale"].item() == 2.0
    assert symbols.tolist() == [[1, 0, 1, 0]]
    assert values.tolist() == [[2.0, -2.0, 2.0, -2.0]]
    # Least squares: the mean magnitude, here 1; the grid has it at 40 of 80 steps.
    fitted, _, _ = coded(SymmetricFormat(1), row(1.5, -0.5, 0.0, -2.0), quantizer=MseQuantizer())
    assert fitted["scale"].item() == pytest.approx(1.0)


def test_learned_step_size_by_hand():
    # w / s = 1.2, -4, 0.6 on the integers -3 to 3; n = 3, Q = 3.
    of_rows, of = gradients(SymmetricFormat(3), row(0.6, -2.0, 0.3), {"scale": torch.tensor([0.5])})
    assert of_rows == [1.0, 0.0, 1.0]
    assert of["scale"] == pytest.approx([((1 - 1.2) - 3 + (1 - 0.6)) / math.sqrt(3 * 3)])
    # A masked weight takes no part, and is not counted in n.
    of_rows, of = gradients(
        SymmetricFormat(3, True), row(0.6, -2.0, 0.3), {"scale": torch.tensor([0.5])}, keep(1, 1, 0)
    )
    assert of_rows == [1.0, 0.0, 0.0]
    assert of["scale"] == pytest.approx([((1 - 1.2) - 3) / math.sqrt(2 * 3)])


def test_affine_is_the_formula_of_minmax():
    rows = row(-1.0, -0.6, 0.0, 0.45, 2.0)
    fitted, symbols, values = coded(AffineFormat(2), rows)
    expected = torch.round((rows - rows.min()) / (rows.max() - rows.min()) * (2**2 - 1))
    assert symbols.tolist() == expected.tolist() == [[0, 0, 1, 1, 3]]
    assert (fitted["low"].item(), fitted["step"].item()) == (-1.0, 1.0)
    assert values.tolist() == [[-1.0, -1.0, 0.0, 0.0, 2.0]]


def test_affine_of_one_bit_has_the_two_ends():
    _, symbols, values = coded(AffineFormat(1), row(0.5, 0.9, 1.5, 0.6))
    assert symbols.tolist() == [[0, 0, 1, 0]]
    assert values.tolist() == [[0.5, 0.5, 1.5, 0.5]]


def test_affine_under_a_mask_keeps_a_code_for_zero():
    # Three levels are left of four: -1, 0.5, 2; the masked 9 is no end of the range.
    fitted, symbols, values = coded(AffineFormat(2, True), row(-1.0, 9.0, 0.4, 2.0), keep(1, 0, 1, 1))
    assert fitted["step"].item() == 1.5
    assert symbols.tolist() == [[1, 0, 2, 3]]
    assert values.tolist() == [[-1.0, 0.0, 0.5, 2.0]]


def test_gradients_of_both_ends_by_hand():
    # (w - low) / step = -0.4, 0.8, 2.8, 4 on the levels 0 to 3; n = 4, Q = 3.
    parameters = {"low": torch.tensor([-1.0]), "step": torch.tensor([0.5])}
    of_rows, of = gradients(AffineFormat(2), row(-1.2, -0.6, 0.4, 1.0), parameters)
    assert of_rows == [0.0, 1.0, 1.0, 0.0]
    factor = 1 / math.sqrt(4 * 3)
    assert of["low"] == pytest.approx([2 * factor], abs=1e-6)
    assert of["step"] == pytest.approx([((1 - 0.8) + (3 - 2.8) + 3) * factor], abs=1e-6)


def test_powers_of_two():
    # Limit 1.4: floor(log2(4/3 1.4)) = 0. Levels 1, 1/2, 1/4; half of the way to zero and between them is linear.
    fitted, symbols, values = coded(PowerOfTwoFormat(3), row(1.4, -0.76, 0.74, 0.376, -0.3, 0.124, 0.126, 0.0))
    assert fitted["exponent"].tolist() == [0]
    assert values.tolist() == [[1.0, -1.0, 0.5, 0.5, -0.25, 0.0, 0.25, 0.0]]
    assert symbols.tolist() == [[1, -1, 2, 2, -3, 0, 3, 0]]
    assert coded(PowerOfTwoFormat(2), row(1.6, 0.1))[0]["exponent"].tolist() == [1]
    assert coded(PowerOfTwoFormat(4), row(0.375, -0.1))[0]["exponent"].tolist() == [-1]


def test_powers_of_two_reach_to_the_smallest_number():
    rows = row(2.0**-120, 2.0**-126, -(2.0**-60), 0.0)
    fitted, _, values = coded(PowerOfTwoFormat(8), rows)
    assert fitted["exponent"].tolist() == [-60]
    assert values.tolist() == rows.tolist()


def test_codebook_by_hand():
    # Linear start 0, 10: means 1 and 9.
    fitted, symbols, values = coded(CodebookFormat(1), row(0.0, 2.0, 8.0, 10.0, 1.0))
    assert fitted["centroids"].tolist() == [[1.0, 9.0]]
    assert symbols.tolist() == [[0, 0, 1, 1, 0]]
    assert values.tolist() == [[1.0, 1.0, 9.0, 9.0, 1.0]]


def test_codebook_of_a_masked_weight():
    fitted, symbols, values = coded(
        CodebookFormat(2, True), row(0.0, 100.0, 1.0, 5.0, 6.0, 3.0), keep(1, 0, 1, 1, 1, 1)
    )
    # Three centroids from 0, 3, 6.
    assert fitted["centroids"].tolist() == [[0.5, 3.0, 5.5]]
    assert symbols.tolist() == [[1, 0, 1, 3, 3, 2]]
    assert values.tolist() == [[0.5, 0.0, 0.5, 5.5, 5.5, 3.0]]


def test_kmeans_ends_where_every_centroid_is_the_mean_of_its_weights():
    rows = torch.randn(3, 500, generator=torch.Generator().manual_seed(0)) ** 3
    fitted, symbols, values = coded(CodebookFormat(3), rows)
    for r in range(3):
        for level in range(8):
            mine = rows[r][symbols[r] == level]
            if mine.numel():
                assert mine.double().mean().item() == pytest.approx(fitted["centroids"][r, level].item(), rel=1e-5)
    distances = (rows[:, :, None] - fitted["centroids"][:, None, :]).abs().amin(2)
    assert torch.allclose((rows - values).abs(), distances)


def test_gradient_of_a_centroid_is_the_sum_over_its_weights():
    parameters = {"centroids": torch.tensor([[1.0, -1.0]])}  # out of order, as training may leave them
    of_rows, of = gradients(CodebookFormat(1), row(-0.9, -2.0, 0.3), parameters, weights=row(1.0, 2.0, 4.0))
    assert of_rows == [1.0, 2.0, 4.0]
    assert of["centroids"] == [4.0, 3.0]


def test_ternary_by_hand():
    # Mean magnitude 1, threshold 0.7; the scale is the mean of 2 and 1.2.
    fitted, symbols, values = coded(TernaryFormat(), row(2.0, -1.2, 0.6, -0.2))
    assert fitted["scale"].item() == pytest.approx(1.6)
    assert symbols.tolist() == [[1, -1, 0, 0]]
    assert values.tolist() == [[fitted["scale"].item(), -fitted["scale"].item(), 0.0, 0.0]]
    of_rows, of = gradients(TernaryFormat(), row(2.0, -1.2, 0.6, -0.2), fitted, weights=row(1.0, 3.0, 5.0, 7.0))
    assert of_rows == [1.0, 3.0, 5.0, 7.0]
    assert of["scale"] == pytest.approx([(1 - 3) / math.sqrt(4)])


def test_binary_by_hand():
    fitted, symbols, values = coded(BinaryFormat(), row(2.0, -1.0, 0.0, -1.0))
    assert fitted["scale"].item() == 1.0
    assert symbols.tolist() == [[1, 0, 1, 0]]
    assert values.tolist() == [[1.0, -1.0, 1.0, -1.0]]
    of_rows, of = gradients(BinaryFormat(), row(2.0, -1.0, 0.0, -1.0), fitted, weights=row(1.0, 2.0, 4.0, 8.0))
    assert of_rows == [1.0, 2.0, 4.0, 8.0]
    assert of["scale"] == pytest.approx([(1 - 2 + 4 - 8) / math.sqrt(4)])


def test_binary_under_a_mask_has_three_symbols():
    form = BinaryFormat(masked=True)
    _, symbols, values = coded(form, row(3.0, 9.0, -1.0), keep(1, 0, 1))
    assert form.stored_bits == 2
    assert symbols.tolist() == [[2, 0, 1]]
    assert values.tolist() == [[2.0, 0.0, -2.0]]
    assert BinaryFormat().stored_bits == 1


def test_the_scale_of_binary_is_that_of_least_squares():
    rows = torch.randn(1, 64, generator=torch.Generator().manual_seed(0))
    fitted, _, values = coded(BinaryFormat(), rows)
    error = (rows - values).square().sum()
    for factor in (0.98, 1.02):
        assert (rows - values * factor).square().sum() > error
    assert fitted["scale"] == mean_magnitude(rows, all_of(rows))


def test_halves():
    _, symbols, values = coded(Float16Format(), row(1.0 + 2**-11, 1e6, -1.0, 1 / 3))
    assert symbols.dtype == torch.float16
    assert values.tolist() == [[1.0, 65504.0, -1.0, 0.333251953125]]
    _, symbols, values = coded(Bfloat16Format(), row(1.0 + 2**-8, 3.4e38, -1.0, 1 / 3))
    assert symbols.dtype == torch.bfloat16
    assert values[0, 0].item() == 1.0
    assert torch.isfinite(values).all()
    assert values[0, 3].item() == 0.333984375


def test_ranges_by_percentile_clip_what_is_rare():
    rows = torch.arange(1, 101.0)[None]
    cut = PercentileQuantizer(90)
    assert coded(SymmetricFormat(2), rows, quantizer=cut)[0]["scale"].item() == 90.0
    fitted, symbols, _ = coded(AffineFormat(1), rows, quantizer=cut)
    assert (fitted["low"].item(), fitted["step"].item()) == (11.0, 79.0)
    assert set(symbols.flatten().tolist()) == {0, 1}


@pytest.mark.parametrize("bits", [1, 2, 4])
@pytest.mark.parametrize("kind", [SymmetricFormat, AffineFormat])
def test_ranges_by_least_squares_beat_the_others(kind, bits):
    rows = torch.randn(4, 200, generator=torch.Generator().manual_seed(bits)) ** 3
    errors = {}
    for quantizer in (MinMaxQuantizer(), MseQuantizer(), PercentileQuantizer(99)):
        _, _, values = coded(kind(bits), rows, quantizer=quantizer)
        errors[quantizer.name] = (rows - values).square().sum(1)
    assert (errors["mse"] <= errors["minmax"]).all()
    # The search is one end after the other: of tails as heavy as these it may miss the best pair of ends by a little.
    assert (errors["mse"] <= errors["percentile"] * 1.2).all()
    assert bits > 1 or (errors["percentile"] < errors["minmax"]).all()
