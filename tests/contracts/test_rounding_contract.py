"""What holds of every rounding in `compress.roundings`, found by walking the package."""

import dataclasses
import inspect
import re
from pathlib import Path

import pytest
import torch
from implementations import implementations

import compress.roundings
import conf
from compress.quantizer import fake_quantize_weight
from compress.rounding import Grid, Rounding, SymmetricGrid
from compress.second_order_update import output_error

ROUNDINGS = implementations(compress.roundings, "round")
LEARNED = [kind for kind in ROUNDINGS if kind.name != "nearest"]


def layer(seed, groups=(), rows=6, n=20, largest=3):
    """Weights, their grid and the second moment of correlated inputs."""
    g = torch.Generator().manual_seed(seed)
    x = torch.randn(*groups, 300, n // 2, generator=g) @ torch.randn(*groups, n // 2, n, generator=g)
    x = x + 0.3 * torch.randn(x.shape, generator=g)
    weight = torch.randn(*groups, rows, n, generator=g)
    return weight, SymmetricGrid(weight.abs().amax(-1) / largest, largest), x.mT.double() @ x.double() / 300


def test_the_package_is_walked():
    assert {kind.name for kind in ROUNDINGS} >= {"nearest", "gptq", "adaround"}
    assert {kind.__name__ for kind in ROUNDINGS} == set(compress.roundings.__all__)


@pytest.mark.parametrize("kind", ROUNDINGS)
class TestRounding:
    def test_satisfies_the_seam(self, kind):
        assert isinstance(kind(), Rounding)
        assert isinstance(SymmetricGrid(torch.ones(1), 1), Grid)
        assert kind.__module__.rpartition(".")[2] == kind.name

    @pytest.mark.parametrize("groups", [(), (3,)])
    def test_gives_values_of_the_grid(self, kind, groups):
        weight, grid, moment = layer(0, groups)
        before = weight.clone()
        rounded = kind().round(weight, grid, moment)
        assert rounded.shape == weight.shape
        assert rounded.dtype == weight.dtype
        assert torch.equal(weight, before)
        integers = grid.integers(rounded)
        assert integers.abs().max() <= grid.largest
        assert torch.equal(integers.float() * grid.scale[..., None], rounded)
        # The fake-quantiser leaves them where they are.
        flat, scale = rounded.flatten(0, -2), grid.scale.flatten()
        assert torch.equal(fake_quantize_weight(flat, scale, grid.largest), flat)

    def test_is_nearest_where_inputs_are_uncorrelated(self, kind):
        weight, grid, _ = layer(1)
        nearest = fake_quantize_weight(weight, grid.scale, grid.largest)
        assert torch.equal(kind().round(weight, grid, torch.eye(20, dtype=torch.float64)), nearest)

    def test_is_deterministic_and_draws_nothing(self, kind):
        weight, grid, moment = layer(2)
        state = torch.get_rng_state()
        first = kind().round(weight, grid, moment)
        with torch.no_grad():
            assert torch.equal(first, kind().round(weight, grid, moment))
        assert torch.equal(state, torch.get_rng_state())

    def test_keeps_what_is_on_the_grid(self, kind):
        weight, grid, moment = layer(3)
        weight = fake_quantize_weight(weight, grid.scale, grid.largest)
        assert torch.equal(kind().round(weight, grid, moment), weight)

    def test_holds_zeros(self, kind):
        weight, grid, moment = layer(5)
        mask = layer(6)[0] > 0
        rounded = kind().round(weight.where(mask, 0.0), grid, moment)
        assert (rounded[~mask] == 0).all()
        assert (rounded[mask] != 0).any()

    @pytest.mark.parametrize("spoil", ["dead", "zero", "few"])
    def test_degenerate_inputs(self, kind, spoil):
        weight, grid, moment = layer(4)
        if spoil == "dead":
            moment[:5], moment[:, :5] = 0.0, 0.0
        elif spoil == "zero":
            moment = torch.zeros_like(moment)
        else:
            x = torch.randn(4, 20, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
            moment = x.T @ x / 4
        rounded = kind().round(weight, grid, moment)
        assert torch.isfinite(rounded).all()
        nearest = fake_quantize_weight(weight, grid.scale, grid.largest)
        assert output_error(rounded - weight, moment).sum() <= output_error(nearest - weight, moment).sum()

    def test_clipped_weights_stay_at_the_end(self, kind):
        weight = torch.tensor([[9.0, 0.2], [-9.0, 0.2]])
        rounded = kind().round(weight, SymmetricGrid(torch.ones(2), 3), torch.eye(2))
        assert rounded.tolist() == [[3.0, 0.0], [-3.0, 0.0]]

    def test_names_its_paper_and_has_a_config_with_all_its_settings(self, kind):
        if kind.name != "nearest":
            assert re.search(r"arXiv:\d{4}\.\d{5}", inspect.getdoc(kind))
        lines = (Path(conf.__file__).parent / "rounding" / f"{kind.name}.yaml").read_text().splitlines()
        values = dict(line.split(": ") for line in lines)
        assert values.pop("_target_") == f"{kind.__module__}.{kind.__name__}"
        assert values == {field.name: str(field.default).lower() for field in dataclasses.fields(kind)}


@pytest.mark.parametrize("kind", LEARNED)
def test_loses_less_than_nearest_on_correlated_inputs(kind):
    ratios = []
    for seed in range(6):
        weight, grid, moment = layer(seed, rows=12, n=24, largest=(1, 3, 7)[seed % 3])
        errors = [
            float(output_error(rounding.round(weight, grid, moment) - weight, moment).sum())
            for rounding in (kind(), compress.roundings.NearestRounding())
        ]
        ratios.append(errors[0] / errors[1])
    assert max(ratios) < 1
    assert sum(ratios) / len(ratios) < 0.6


def test_adaround_by_hand():
    # Two inputs that are one: of two weights of 0.4 one goes up, or 0.8 in all would become 0.
    ones = torch.ones(2, 2)
    rounded = compress.roundings.AdaRounding().round(torch.tensor([[0.4, 0.41]]), SymmetricGrid(torch.ones(1), 3), ones)
    assert rounded.tolist() == [[0.0, 1.0]]


@pytest.mark.parametrize("bad", [{"steps": 0}, {"lr": 0.0}, {"regularization": -1.0}, {"warmup": 1.0}])
def test_adaround_refuses_settings_out_of_range(bad):
    with pytest.raises(compress.CompressError, match=f"'{next(iter(bad))}' parameter of AdaRounding"):
        compress.roundings.AdaRounding(**bad)
