"""What other budgets would cost: fronts of plans that meet them, and where the run's own plan lies."""

from dataclasses import replace
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from torch import nn

from autolabel.learning import join_scores
from autolabel.tables import LabelTable
from compress.allocation import allocate
from compress.allocator import Constraints
from compress.allocators import GreedyAllocator, KnapsackAllocator
from compress.budget import Budget
from compress.counting import unit_costs
from compress.plan import CompressionPlan, LayerFormat
from compress.structure import analyze
from experiments.front import added_damage, solve_front
from experiments.front_table import FrontRow
from experiments.raw_table import read_raw, to_csv

CHOICES = ("8bit", "4bit")
FACTORS = (0.5, 1.5, 9.0, 1e-6)


def table(ids, choices, damage):
    return LabelTable(ids, choices, damage, *np.full((3, *damage.shape), np.nan), np.full(len(ids), "measured"))


@pytest.fixture(scope="module")
def case():
    """`(bench, labels, formats)` of a perceptron of 4 inputs, 6 hidden units and 3 outputs; one unit seems to help."""
    model = nn.Sequential(nn.Linear(4, 6), nn.ReLU(), nn.Linear(6, 3)).eval()
    structure = analyze(model, torch.zeros(2, 4))
    units = structure.units
    damage = np.full((len(units), 1), np.nan)
    damage[units.removable, 0] = [0.1, -0.05, 0.2, 0.3, 0.4, 0.5]
    layers = tuple(unit for unit, kind in zip(units.ids, units.kind, strict=True) if kind == "layer")
    formats = table(layers, CHOICES, np.array([[0.01, 0.07], [0.02, 0.15]]))
    budget = Budget(macs=0.5, weight_bytes=0.3)
    parts = SimpleNamespace(allocator=KnapsackAllocator(), budget=budget, constraints=Constraints())
    bench = SimpleNamespace(structure=structure, costs=unit_costs(structure), parts=parts)
    return bench, table(units.ids, ("removed",), damage), formats


def chosen_by(bench, labels, formats, allocator="knapsack"):
    parts, scores = bench.parts, join_scores(bench.structure, labels, formats)
    plan = allocate(bench.structure.units, scores, bench.costs, parts.budget, allocator=allocator,
                    constraints=parts.constraints)  # fmt: skip
    return replace(plan, provenance={**plan.provenance, "method": "some/method"})


def test_every_bound_has_a_front_through_the_run_s_budget(case, tmp_path):
    bench, labels, formats = case
    plan, told = chosen_by(bench, labels, formats), []
    rows = solve_front(bench, labels, formats, plan, FACTORS, lambda *done: told.append(done))
    *front, own = rows
    assert {row.bound for row in front} == {"macs", "weight_bytes"}
    dense = bench.costs.dense
    for bound, held in (("macs", "weight_bytes"), ("weight_bytes", "macs")):
        of_bound = [row for row in front if row.bound == bound]
        assert len(of_bound) >= 2
        for row in of_bound:
            assert getattr(row, bound) <= row.fraction * dense[bound] * (1 + 1e-9)
            assert getattr(row, held) <= getattr(bench.parts.budget, held) * dense[held] * (1 + 1e-9)
            assert row.lower_bound <= row.solved_damage * (1 + 1e-9)
            assert row.gap == pytest.approx(1 - row.lower_bound / row.solved_damage)
        damages = [row.predicted_damage for row in of_bound]
        assert damages == sorted(damages), "the most expensive plan first"
        same = [row for row in of_bound if row.fraction == pytest.approx(getattr(bench.parts.budget, bound))]
        assert [row.predicted_damage for row in same] == [pytest.approx(plan.predicted_damage)]
        # Nothing is above the dense model, and nothing that no plan meets.
        assert 1e-3 < min(row.fraction for row in of_bound) <= max(row.fraction for row in of_bound) <= 1
    assert (own.bound, own.plan, own.fraction) == ("", "some/method", None)
    assert own.predicted_damage == pytest.approx(plan.predicted_damage)
    assert own.solved_damage == pytest.approx(plan.provenance["solved_damage"])
    # The unit that seems to help was taken: a bound is of the sum without its credit.
    assert own.solved_damage == pytest.approx(own.predicted_damage + 0.05)
    # Each budget once: the run's own, three along the MACs, and two along the bytes (biases alone are above half).
    assert told == [(done, 6) for done in range(1, 7)]
    text = to_csv(list(vars(own)), map(vars, rows))
    (tmp_path / "front.csv").write_text(text)
    again = read_raw(tmp_path / "front.csv", FrontRow)
    assert to_csv(list(vars(own)), map(vars, again)) == text


def test_bits_are_counted_over_the_weights_that_stay(case):
    bench, labels, formats = case
    units = bench.structure.units
    first, second = formats.unit_ids
    hidden = [unit for unit, gone in zip(units.ids, units.removable, strict=True) if gone]
    plan = CompressionPlan.removing(units, hidden[:3], layer_formats={first: LayerFormat(4)})
    own = solve_front(bench, labels, formats, plan, [])[-1]
    # 4 x 3 weights of 4 bits, 3 x 3 of 32.
    assert own.mean_bits == pytest.approx((12 * 4 + 9 * 32) / 21)
    assert own.units_removed == 3
    assert own.predicted_damage == pytest.approx(0.1 - 0.05 + 0.2 + 0.07)
    assert own.solved_damage == pytest.approx(0.1 + 0.2 + 0.07)
    assert second not in plan.layer_formats


def test_a_plan_with_a_choice_that_was_not_labelled_is_not_placed(case):
    bench, labels, formats = case
    units, costs = bench.structure.units, bench.costs
    scores, layer = join_scores(bench.structure, labels, formats), formats.unit_ids[0]
    for layer_format, damage in (
        (LayerFormat(8), 0.01), (LayerFormat(3), None), (LayerFormat(4, density=0.5), None), (LayerFormat(4), 0.07),
        (LayerFormat(4, "codebook"), None), (LayerFormat(8, "codebook"), None),
    ):  # fmt: skip
        plan = CompressionPlan(layer_formats={layer: layer_format}, fingerprint=units.fingerprint)
        assert added_damage(units, costs, scores, plan) == (damage, damage)
    # Plain 8 bits that nobody scored are harmless to allocators, too.
    plan = CompressionPlan(layer_formats={layer: LayerFormat(8)}, fingerprint=units.fingerprint)
    assert added_damage(units, costs, join_scores(bench.structure, labels), plan) == (0.0, 0.0)


def test_schemes_are_found_again(case):
    bench, labels, _ = case
    formats = table(("0", "2"), ("4bit", "4bit_codebook"), np.array([[0.3, 0.1], [0.2, np.nan]]))
    units, scores = bench.structure.units, join_scores(bench.structure, labels, formats)
    for layer, scheme, damage in (("0", "codebook", 0.1), ("0", "symmetric", 0.3), ("2", "codebook", None)):
        plan = CompressionPlan(layer_formats={layer: LayerFormat(4, scheme)}, fingerprint=units.fingerprint)
        assert added_damage(units, bench.costs, scores, plan) == (damage, damage)


def test_ranks_are_found_again(case):
    bench, labels, _ = case
    layers = ("0", "2")
    formats = table(layers, ("32bit_r0.6", "32bit"), np.array([[0.3, 0.0], [np.nan, 0.0]]))
    units, scores = bench.structure.units, join_scores(bench.structure, labels, formats)
    plan = CompressionPlan(layer_formats={"0": LayerFormat(32, "float32", rank=1)}, fingerprint=units.fingerprint)
    assert added_damage(units, bench.costs, scores, plan) == (0.3, 0.3)
    other = replace(plan, layer_formats={"2": LayerFormat(32, "float32", rank=1)})
    assert added_damage(units, bench.costs, scores, other) == (None, None)


def test_a_run_without_the_knapsack_is_solved_for_all_the_same(case):
    bench, labels, formats = case
    parts = SimpleNamespace(**{**vars(bench.parts), "allocator": GreedyAllocator(always_quantize=True)})
    bench = SimpleNamespace(**{**vars(bench), "parts": parts})
    *front, own = solve_front(bench, labels, formats, chosen_by(bench, labels, formats, parts.allocator), [1.5])
    assert all(row.mean_bits <= 8 for row in front)
    at_budget = [row for row in front if row.fraction == pytest.approx(0.5) and row.bound == "macs"]
    assert at_budget[0].solved_damage <= own.solved_damage + 1e-12
