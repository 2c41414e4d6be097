"""What holds of every number format in `compress.weight_formats`, found by walking the package."""

import inspect
import re

import pytest
import torch
from implementations import implementations

import compress.weight_formats
from compress.errors import DataError
from compress.formatted_weight import make_format
from compress.plan import SCHEME_BITS, LayerFormat
from compress.quantization import prepare_quantized
from compress.quantizers import MinMaxQuantizer, MseQuantizer, PercentileQuantizer
from compress.weight_format import WeightFormat, straight_through

# A number, or authors and a year.
PAPER = re.compile(r"arXiv:\d{4}\.\d{4,5}\b|\b[A-Z][a-z][\w-]*(?: et al\.)? (?:19|20)\d\d\b")
QUANTIZERS = (MinMaxQuantizer(), MseQuantizer(steps=20), PercentileQuantizer(99))


FORMATS = implementations(compress.weight_formats, "encode")
CASES = [(kind.name, bits, masked) for kind in FORMATS for bits in SCHEME_BITS[kind.name] for masked in (False, True)]


def awkward_rows():
    """Two wild rows, one of a heavy tail, a constant, a dead and a tiny one, one all positive; and who is kept."""
    generator = torch.Generator().manual_seed(3)
    rows = torch.randn(7, 40, generator=generator)
    rows[2], rows[3], rows[4], rows[5], rows[6] = rows[2] ** 5, 0.7, 0.0, rows[5] * 1e-30, rows[6].abs() + 5
    kept = torch.rand(7, 40, generator=generator) < 0.4
    kept[1] = False
    kept[0, :2] = True
    return rows, kept


def made(scheme, bits, masked, quantizer=QUANTIZERS[0]):
    form = make_format(scheme, bits, masked)
    rows, kept = awkward_rows()
    kept = kept if masked else torch.ones_like(kept)
    return form, rows, kept, form.fit(rows, kept, quantizer)


def test_the_package_is_walked():
    assert {kind.name for kind in FORMATS} == set(SCHEME_BITS)
    assert {kind.__name__ for kind in FORMATS} == set(compress.weight_formats.__all__)


@pytest.mark.parametrize("kind", FORMATS, ids=lambda kind: kind.name)
def test_satisfies_the_seam(kind):
    form = kind(SCHEME_BITS[kind.name][0], False)
    assert isinstance(form, WeightFormat)
    assert kind.__module__.rpartition(".")[2] == kind.name
    # Its own: one that a parent left to it says nothing of this format.
    assert vars(kind)["__doc__"]
    assert kind.name == "float32" or PAPER.search(kind.__doc__), "no paper in the docstring: who made the format, when?"


@pytest.mark.parametrize(("text", "cites"), [
    ("Whole multiples: round(w / s), by the formula.", False), ("IEEE 754 binary16.", False),
    ("arXiv:1603.01025", True), ("(Li et al. 2016)", True), ("Bengio, Leonard, Courville 2013", True),
])  # fmt: skip
def test_a_paper_is_an_author_and_a_year_or_a_number(text, cites):
    assert bool(PAPER.search(text)) == cites


@pytest.mark.parametrize(("scheme", "bits", "masked"), CASES)
class TestFormat:
    def test_shapes_and_stored_bits(self, scheme, bits, masked):
        for quantizer in QUANTIZERS:
            form, rows, kept, fitted = made(scheme, bits, masked, quantizer)
            assert all(len(value) == len(rows) for value in fitted.values())
            symbols = form.encode(rows, kept, fitted)
            values = form.decode(symbols, fitted)
            assert symbols.shape == values.shape == rows.shape
            assert values.dtype == torch.float32
            assert torch.isfinite(values).all()
            if symbols.is_floating_point():
                assert symbols.element_size() * 8 == form.stored_bits == bits
                continue
            assert symbols.dtype == torch.int16
            half = 2 ** (form.stored_bits - 1)
            low, high = (-half, half - 1) if form.signed else (0, 2 * half - 1)
            assert low <= symbols.min() <= symbols.max() <= high
            assert form.stored_bits == bits or (masked and bits == 1 and form.stored_bits == 2)

    def test_is_deterministic_and_changes_nothing(self, scheme, bits, masked):
        form, rows, kept, fitted = made(scheme, bits, masked)
        state = torch.get_rng_state()
        again = make_format(scheme, bits, masked).fit(rows, kept, QUANTIZERS[0])
        assert all(torch.equal(fitted[name], again[name]) for name in fitted)
        assert torch.equal(form.encode(rows, kept, fitted), form.encode(rows, kept, again))
        assert torch.equal(rows, awkward_rows()[0])
        assert torch.equal(torch.get_rng_state(), state)

    def test_values_are_their_own_rounding(self, scheme, bits, masked):
        form, rows, kept, fitted = made(scheme, bits, masked)
        values = form.decode(form.encode(rows, kept, fitted), fitted)
        assert torch.equal(form.decode(form.encode(values, kept, fitted), fitted), values)

    def test_the_simulation_is_what_is_decoded_bit_for_bit(self, scheme, bits, masked):
        form, rows, kept, fitted = made(scheme, bits, masked)
        values = form.decode(form.encode(rows, kept, fitted), fitted)
        assert torch.equal(form.simulate(rows, kept, fitted)[kept], values[kept])
        assert torch.equal(form.simulate(rows, kept, fitted).view(torch.int32), values.view(torch.int32))

    def test_what_is_masked_is_zero(self, scheme, bits, masked):
        if not masked:
            pytest.skip("without a mask")
        form, rows, kept, fitted = made(scheme, bits, masked)
        symbols = form.encode(rows, kept, fitted)
        assert (symbols[~kept] == 0).all()
        assert (form.decode(symbols, fitted)[~kept] == 0).all()
        # It has no say in the parameters either.
        wild = torch.where(kept, rows, torch.full_like(rows, 1e6))
        other = form.fit(wild, kept, QUANTIZERS[0])
        assert all(torch.equal(fitted[name], other[name]) for name in fitted)
        assert torch.equal(form.encode(wild, kept, other), symbols)

    def test_gradients_reach_what_is_kept(self, scheme, bits, masked):
        form, rows, kept, fitted = made(scheme, bits, masked)
        rows = rows.requires_grad_()
        fitted = {name: v.clone().requires_grad_(v.is_floating_point()) for name, v in fitted.items()}
        weights = torch.randn(rows.shape, generator=torch.Generator().manual_seed(0))
        (form.simulate(rows, kept, fitted) * weights).sum().backward()
        assert (rows.grad[~kept] == 0).all()
        # Straight through: a range by min-max clips nothing; that of a row without kept weights does not matter.
        assert torch.allclose(rows.grad[kept], weights[kept])
        trained = {name: value.grad for name, value in fitted.items() if value.is_floating_point()}
        for name, gradient in trained.items():
            assert gradient.shape == fitted[name].shape
            assert torch.isfinite(gradient).all()
            assert gradient[0].any() or name == "low"  # an offset moves what is clipped, and nothing is

    @pytest.mark.parametrize("bad", [float("nan"), float("inf")])
    def test_what_is_not_finite_is_refused(self, scheme, bits, masked, bad):
        form, rows, kept, _ = made(scheme, bits, masked)
        rows[0, 0] = bad
        with pytest.raises(DataError, match="NaN or infinite"):
            form.fit(rows, kept, QUANTIZERS[0])

    def test_rows_do_not_know_of_each_other(self, scheme, bits, masked):
        form, rows, kept, fitted = made(scheme, bits, masked)
        values = form.decode(form.encode(rows, kept, fitted), fitted)
        for r in (0, 2, 3, 6):
            one, own = rows[r : r + 1], kept[r : r + 1]
            alone = form.fit(one, own, QUANTIZERS[0])
            assert torch.equal(form.decode(form.encode(one, own, alone), alone), values[r : r + 1])


@pytest.mark.parametrize("scheme", [name for name, bits in SCHEME_BITS.items() if len(bits) > 1])
@pytest.mark.parametrize("masked", [False, True])
def test_more_bits_are_never_further_off(scheme, masked):
    for seed in range(4):
        generator = torch.Generator().manual_seed(seed)
        rows = torch.randn(3, 300, generator=generator) ** (1 + 2 * (seed % 2))
        kept = torch.rand(3, 300, generator=generator) < (0.5 if masked else 2.0)
        errors = []
        for bits in SCHEME_BITS[scheme]:
            form = make_format(scheme, bits, masked)
            fitted = form.fit(rows, kept, QUANTIZERS[0])
            values = form.decode(form.encode(rows, kept, fitted), fitted)
            errors.append((values - rows)[kept].double().square().sum().item())
        assert errors == sorted(errors, reverse=True), (scheme, seed)


@pytest.mark.parametrize(("scheme", "bits"), [(s, b) for s, b, masked in CASES if not masked])
def test_constant_and_dead_rows(scheme, bits):
    form, rows, kept, fitted = made(scheme, bits, False)
    values = form.decode(form.encode(rows, kept, fitted), fitted)
    if scheme == "power_of_two":
        assert (values[3] == 0.5).all()  # 0.7 lies below 0.75
    else:
        assert torch.allclose(values[3], rows[3], rtol=2e-3)
    if (scheme, bits) != ("symmetric", 1):  # whose dead row takes the scale of the others, and has no zero
        assert (values[4] == 0).all()


@pytest.mark.parametrize("source", [straight_through, prepare_quantized])
def test_the_straight_through_estimator_has_its_paper(source):
    assert "Bengio, Leonard, Courville 2013" in inspect.getdoc(source)
    assert "arXiv:1308.3432" in inspect.getdoc(source)


def test_a_layer_format_makes_its_number_format():
    for scheme, bits in ((s, b) for s, b, _ in CASES):
        assert make_format(LayerFormat(bits, scheme).scheme, bits, False).name == scheme
