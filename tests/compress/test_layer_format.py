"""Formats of layers in a plan: what is refused, and what is written."""

import json

import pytest

from compress.errors import PlanError
from compress.plan import SCHEME_BITS, CompressionPlan, LayerFormat


@pytest.mark.parametrize("scheme", SCHEME_BITS)
def test_each_scheme_has_its_bits(scheme):
    expected = {
        "symmetric": [*range(1, 9)], "affine": [*range(1, 9)], "codebook": [*range(1, 9)],
        "power_of_two": [*range(2, 9)], "ternary": [2], "binary": [1], "float16": [16], "bfloat16": [16],
        "float32": [32],
    }  # fmt: skip
    for bits in range(34):
        if bits in expected[scheme]:
            assert LayerFormat(bits, scheme).bits == bits
        else:
            with pytest.raises(PlanError, match="'bits' parameter of LayerFormat"):
                LayerFormat(bits, scheme)


@pytest.mark.parametrize(
    ("name", "fields"),
    [
        ("bits", {"bits": True}),
        ("bits", {"bits": 4.0}),
        ("scheme", {"scheme": "log"}),
        ("granularity", {"granularity": "row"}),
        ("group_size", {"granularity": "group"}),
        ("group_size", {"granularity": "group", "group_size": 0}),
        ("group_size", {"granularity": "channel", "group_size": 16}),
        ("density", {"density": 0.0}),
        ("density", {"density": 1.5}),
        ("density", {"density": "1"}),
        ("density", {"density": float("nan")}),
        ("pattern", {"pattern": "4:2"}),
        ("pattern", {"pattern": "anywhere"}),
        ("pattern", {"pattern": None}),
        ("rank", {"rank": 0}),
        ("rank", {"rank": True}),
    ],
)
def test_what_is_out_of_range_is_named(name, fields):
    with pytest.raises(PlanError, match=f"The '{name}' parameter of LayerFormat must be"):
        LayerFormat(**{"bits": 4, **fields})


def test_a_plan_comes_back_and_defaults_are_not_written(tmp_path):
    formats = {
        "a": LayerFormat(4),
        "b": LayerFormat(2, "codebook", "group", 32, density=0.25, pattern="2:4", rank=3),
        "c": LayerFormat(32, "float32", density=1, pattern="block4x1"),
    }
    plan = CompressionPlan(layer_formats=formats)
    plan.save(tmp_path / "plan.json")
    written = json.loads((tmp_path / "plan.json").read_text())["layer_formats"]
    assert written["a"] == {"bits": 4, "scheme": "symmetric", "granularity": "channel"}
    assert written["b"].keys() == {"bits", "scheme", "granularity", "group_size", "density", "pattern", "rank"}
    assert "density" not in written["c"]
    assert CompressionPlan.load(tmp_path / "plan.json").layer_formats == formats


def test_integers_are_symmetric_channels_at_widths_that_engines_know():
    assert [bits for bits in range(1, 9) if LayerFormat(bits).on_integers] == [2, 3, 4, 5, 6, 7, 8]
    assert not LayerFormat(8, granularity="tensor").on_integers
    assert not LayerFormat(8, "affine").on_integers
    assert LayerFormat(8, density=0.1, pattern="2:4").on_integers
