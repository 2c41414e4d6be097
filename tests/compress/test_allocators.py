"""Allocators on tables made by hand, where the right plan is known or can be enumerated."""

import dataclasses
import itertools
import json

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import nn

from compress.allocation import allocate, check_budget, closest_feasible
from compress.allocator import Constraints
from compress.allocators import GreedyAllocator, KnapsackAllocator, UniformAllocator
from compress.budget import Budget
from compress.costs import CostTable
from compress.counting import unit_costs
from compress.errors import BudgetError, CompressError
from compress.ledger import Ledger
from compress.menu import open_menu
from compress.plan import CompressionPlan
from compress.scores import Scores
from compress.structure import analyze
from compress.units import UnitTable

NO_FLOOR = Constraints(floor=0.0)


def make_units(sizes, n_layers):
    """Groups `conv0:out`, `conv1:out`, ... of these sizes, then layers `conv0`, `conv1`, ..."""
    rows = [(f"conv{g}:out[{i}]", f"conv{g}:out", i, "channel") for g, n in enumerate(sizes) for i in range(n)]
    rows += [(f"conv{layer}", f"conv{layer}", 0, "layer") for layer in range(n_layers)]
    ids, group, index, kind = zip(*rows, strict=True)
    return UnitTable(tuple(ids), np.array(group), np.array(index), np.array(kind))


def make_costs(units, macs, weights, params, outputs, in_share, out_share):
    n = len(units)
    nothing = np.full((n, 1), np.nan)
    layer_unit = np.flatnonzero(units.kind == "layer")
    names = tuple(units.ids[row] for row in layer_unit)
    numbers = [np.asarray(x, dtype=np.float64) for x in (macs, weights, params, outputs)]
    return CostTable(units.ids, ("removed",), nothing, nothing, names, *numbers, in_share, out_share, layer_unit)


def chain(sizes, area=16):
    """A chain of 3x3 convs from 3 inputs over groups of these sizes to 10 outputs: kept inputs x kept outputs."""
    units = make_units(sizes, len(sizes) + 1)
    full = [3, *sizes, 10]
    in_share, out_share = np.zeros((2, len(sizes) + 1, len(units)))
    for g, n in enumerate(sizes):
        members = units.group == f"conv{g}:out"
        out_share[g, members] = in_share[g + 1, members] = 1 / n
    weights = np.array([9 * a * b for a, b in itertools.pairwise(full)])
    return units, make_costs(units, weights * area, weights, full[1:], full[1:], in_share, out_share)


def separate(sizes, unit_macs):
    """Groups that never meet in a layer: the cost of a unit of group g is always `unit_macs[g]`."""
    units = make_units(sizes, len(sizes))
    in_share, out_share = np.zeros((2, len(sizes), len(units)))
    for g, n in enumerate(sizes):
        out_share[g, units.group == f"conv{g}:out"] = 1 / n
    macs = np.array(sizes) * np.array(unit_macs)
    return units, make_costs(units, macs, macs, np.zeros(len(sizes)), np.array(sizes), in_share, out_share)


def make_scores(units, removal, bits=None, scale="nats"):
    """Removal scores of the channels in order; `bits` maps a choice to the scores of the layers in order."""
    choices = ("removed", *(bits or {}))
    values = np.full((len(units), len(choices)), np.nan)
    values[units.removable, 0] = removal
    for column, score in enumerate((bits or {}).values(), start=1):
        values[~units.removable, column] = score
    return Scores(units.ids, choices, values, scale)


def random_scores(units, seed, bits=()):
    rng = np.random.default_rng(seed)
    n_layers = int((~units.removable).sum())
    layers = {f"{b}bit": rng.exponential(0.1, n_layers) * 4.0 ** (4 - b) for b in bits}
    return make_scores(units, rng.exponential(1.0, int(units.removable.sum())) ** 2, layers)


def exact_cost(plan, units, costs):
    """The plan's cost by the cost table alone, from what the plan says."""
    widths = np.array([plan.layer_formats[n].bits if n in plan.layer_formats else 32 for n in costs.layer_names])
    return costs.total(plan.removed_mask(units), widths)


def kept(plan, units):
    return {g: int((units.group == g).sum()) - len(plan.remove_channels.get(g, ())) for g in units.groups}


# -- the plan


def test_uniform_removes_lowest_half_of_every_group():
    units, costs = separate([4, 2], [10, 30])
    scores = make_scores(units, [5, 1, 7, 3, 0.2, 0.1], scale="order")
    plan = allocate(units, scores, costs, Budget(macs=0.5), allocator="uniform")
    assert plan.remove_channels == {"conv0:out": (1, 3), "conv1:out": (1,)}
    assert plan.predicted_cost["macs"] == 50
    assert plan.predicted_damage is None
    assert plan.provenance["stopped_by"] == "macs"
    assert plan.provenance["kept_fraction"] == 0.5


def test_greedy_takes_least_damage_per_cost():
    # Damage per MAC: group 0 has 0.1, 0.2, ...; group 1 has 0.05, 0.3.
    units, costs = separate([4, 2], [10, 20])
    plan = allocate(units, make_scores(units, [1, 2, 3, 4, 1, 6]), costs, Budget(macs=50), constraints=NO_FLOOR)
    assert plan.remove_channels == {"conv0:out": (0,), "conv1:out": (0,)}
    assert plan.predicted_damage == 2
    assert plan.predicted_cost["macs"] == 50


def test_greedy_uses_marginal_costs_of_the_product():
    # What a step saves of conv1 shrinks with what is gone on its other side: no sum of single savings is right.
    units, costs = chain([4, 4])
    ledger = Ledger(open_menu(units, random_scores(units, 0), costs, Budget(macs=0.5), NO_FLOOR))
    for group, level in ((0, 2), (1, 3), (0, 3), (1, 1)):
        before = ledger.exact_cost()
        _, steps = ledger.group_steps(1)
        levels = ledger.group_levels(group)
        ledger.set_group(group, level)
        after = ledger.exact_cost()
        for name in ("macs", "weight_bytes"):
            assert levels[name][level] == pytest.approx(before[name] - after[name], abs=1e-9)
            assert ledger.cost()[name] == pytest.approx(after[name], rel=1e-12)
        assert np.all(steps["macs"] >= 0)


def test_ledger_agrees_with_the_cost_table_on_random_levels():
    units, costs = chain([5, 7, 6])
    rng = np.random.default_rng(0)
    scores = random_scores(units, 1, bits=(8, 4, 2))
    ledger = Ledger(open_menu(units, scores, costs, Budget(weight_bytes=0.5), NO_FLOOR))
    for _ in range(30):
        before = ledger.exact_cost()["weight_bytes"]
        layer, level, damage, saved = ledger.formats()
        row = int(rng.integers(len(layer)))
        now = ledger.damage()
        ledger.set_layer(int(layer[row]), int(level[row]))
        assert saved["weight_bytes"][row] == pytest.approx(before - ledger.exact_cost()["weight_bytes"], abs=1e-6)
        assert damage[row] == pytest.approx(ledger.damage() - now, abs=1e-12)
        group = int(rng.integers(3))
        ledger.set_group(group, int(rng.integers(len(ledger.menu.groups[group].removed))))
        assert ledger.cost() == pytest.approx(ledger.exact_cost())


def test_order_scores_are_refused_where_scores_are_added():
    units, costs = chain([4, 4])
    scores = make_scores(units, np.arange(8.0), scale="order")
    for allocator in ("greedy", "knapsack"):
        with pytest.raises(CompressError, match="uniform"):
            allocate(units, scores, costs, Budget(macs=0.5), allocator=allocator)


@pytest.mark.parametrize("allocator", ["greedy", "knapsack"])
def test_negative_damages_go_first_and_are_no_credit(allocator):
    units, costs = separate([4], [10])
    plan = allocate(units, make_scores(units, [-5.0, 0.1, -1.0, 0.2]), costs, Budget(macs=0.5), allocator=allocator)
    assert plan.remove_channels == {"conv0:out": (0, 2)}
    assert plan.predicted_damage == -6.0
    loose = allocate(units, make_scores(units, [-5.0, 0.1, -1.0, 0.2]), costs, Budget(macs=1.0), allocator=allocator)
    assert loose.remove_channels == {}
    assert loose.provenance["stopped_by"] == "macs"


def test_units_without_scores_stay():
    units, costs = chain([4, 4])
    scores = make_scores(units, np.arange(8.0))
    part = Scores(units.ids[:4], scores.choices, scores.values[:4], "nats")
    plan = allocate(units, part, costs, Budget(macs=0.8))
    assert set(plan.remove_channels) == {"conv0:out"}


def test_tables_in_another_order_give_the_same_plan():
    units, costs = chain([5, 6])
    scores = random_scores(units, 3)
    order = np.random.default_rng(0).permutation(len(units))
    back = np.argsort(order)
    ids = tuple(units.ids[i] for i in order)
    shuffled = dataclasses.replace(
        costs, unit_ids=ids, macs=costs.macs[order], weight_bytes=costs.weight_bytes[order],
        in_share=costs.in_share[:, order], out_share=costs.out_share[:, order], layer_unit=back[costs.layer_unit],
    )  # fmt: skip
    mixed = Scores(ids, scores.choices, scores.values[order], "nats")
    constraints = Constraints(pinned=("conv0:out[1]",))
    plan = allocate(units, scores, costs, Budget(macs=0.5), constraints=constraints)
    other = allocate(units, mixed, shuffled, Budget(macs=0.5), constraints=constraints)
    assert plan.remove_channels == other.remove_channels
    assert 1 not in plan.remove_channels.get("conv0:out", ())


def test_tables_of_different_models_are_refused():
    _, costs = chain([4, 4])
    other, _ = chain([4, 5])
    with pytest.raises(CompressError, match="same units"):
        allocate(other, random_scores(other, 0), costs, Budget(macs=0.5))


def test_unknown_allocator_and_choice():
    units, costs = chain([4, 4])
    with pytest.raises(CompressError, match="'allocator' parameter"):
        allocate(units, random_scores(units, 0), costs, Budget(macs=0.5), allocator="magic")
    with pytest.raises(CompressError, match="12bit"):
        allocate(units, make_scores(units, np.ones(8), {"12bit": np.ones(3)}), costs, Budget(macs=0.5))


# -- bits


@pytest.mark.parametrize("allocator", ["greedy", "knapsack"])
def test_cheap_bits_go_before_channels(allocator):
    units, costs = chain([8, 8])
    scores = make_scores(units, np.full(16, 1.0), {"8bit": np.full(3, 1e-4), "4bit": [0.01, 0.02, 5.0]})
    plan = allocate(units, scores, costs, Budget(weight_bytes=0.3), allocator=allocator)
    assert plan.remove_channels == {}
    assert {f.bits for f in plan.layer_formats.values()} == {8}
    assert plan.predicted_damage == pytest.approx(1e-4 * len(plan.layer_formats))


def test_layers_absent_from_scores_stay_in_float():
    units, costs = chain([8, 8])
    scores = make_scores(units, np.ones(16), {"8bit": [0.0, 0.0, np.nan], "4bit": [0.1, 0.1, np.nan]})
    for allocator in ("uniform", "greedy", "knapsack"):
        plan = allocate(units, scores, costs, Budget(weight_bytes=0.35), allocator=allocator)
        assert "conv2" not in plan.layer_formats
        assert set(plan.layer_formats) == {"conv0", "conv1"}


def test_bits_are_left_alone_without_a_bound_on_bytes():
    units, costs = chain([8, 8])
    scores = random_scores(units, 0, bits=(8, 4))
    assert allocate(units, scores, costs, Budget(macs=0.5)).layer_formats == {}


@pytest.mark.parametrize("kind", [UniformAllocator, GreedyAllocator, KnapsackAllocator])
@pytest.mark.parametrize("bits", [(), (8, 4)])
def test_always_quantize_stores_every_layer_in_8_bits_at_most(kind, bits):
    units, costs = chain([8, 8])
    constraints = Constraints(pinned=("conv2",))
    scores = random_scores(units, 0, bits)
    plan = allocate(
        units, scores, costs, Budget(macs=0.6), allocator=kind(always_quantize=True), constraints=constraints
    )
    assert {name: f.bits for name, f in plan.layer_formats.items()} == {"conv0": 8, "conv1": 8}
    assert plan.provenance["unscored_8bit_layers"] == (0 if bits else 2)
    free = allocate(units, scores, costs, Budget(), allocator=kind(always_quantize=True))
    assert len(free.layer_formats) == 3
    assert free.remove_channels == {}


@pytest.mark.parametrize("kind", [UniformAllocator, GreedyAllocator, KnapsackAllocator])
def test_of_schemes_of_as_many_bits_the_one_that_does_least_damage_is_taken(kind):
    units, costs = chain([8, 8])
    for harm, scheme in ((5.0, "symmetric"), (0.0, "codebook")):
        named = {"8bit_codebook": np.full(3, harm), "8bit": np.full(3, 0.001)}
        plan = allocate(units, make_scores(units, np.ones(16), named), costs, Budget(macs=0.6),
                        allocator=kind(always_quantize=True))  # fmt: skip
        assert {f.scheme for f in plan.layer_formats.values()} == {scheme}


def test_uniform_takes_one_width_for_all_layers():
    units, costs = chain([16, 16])
    scores = make_scores(units, np.arange(32.0), {"8bit": np.zeros(3), "4bit": np.zeros(3)}, scale="order")
    plan = allocate(units, scores, costs, Budget(macs=0.5, weight_bytes=0.15), allocator="uniform")
    assert {f.bits for f in plan.layer_formats.values()} == {8}
    tight = allocate(units, scores, costs, Budget(macs=0.5, weight_bytes=0.1), allocator="uniform")
    assert {f.bits for f in tight.layer_formats.values()} == {4}
    assert tight.remove_channels == plan.remove_channels
    damages = make_scores(units, np.full(32, 1e-3), {"8bit": np.full(3, 1e-4), "4bit": np.full(3, 10.0)})
    wide = allocate(units, damages, costs, Budget(weight_bytes=0.1), allocator="uniform")
    assert {f.bits for f in wide.layer_formats.values()} == {8}
    assert wide.remove_channels


def test_max_bits_only_keeps_layers_from_going_below_8_bits():
    units, costs = chain([8, 8])
    scores = make_scores(units, np.full(16, 5.0), {"8bit": np.full(3, 0.01), "4bit": np.full(3, 0.02)})
    constraints = Constraints(max_bits_only=("conv1",))
    for allocator in ("uniform", "greedy", "knapsack"):
        plan = allocate(units, scores, costs, Budget(weight_bytes=0.2), allocator=allocator, constraints=constraints)
        assert plan.layer_formats["conv1"].bits == 8
        # A scheme that has no 8 bits: the most that it has, at what that was measured to do.
        few = make_scores(units, np.full(16, 5.0), {"2bit": np.full(3, 0.5)})
        always = {"greedy": GreedyAllocator, "uniform": UniformAllocator, "knapsack": KnapsackAllocator}[allocator]
        plan = allocate(units, few, costs, Budget(macs=1.0), allocator=always(always_quantize=True),
                        constraints=constraints)  # fmt: skip
        assert plan.layer_formats["conv1"].bits == 2
        assert plan.predicted_damage == pytest.approx(1.5)
    with pytest.raises(CompressError, match="'max_bits_only' parameter of Constraints names 'conv9'"):
        allocate(units, scores, costs, Budget(macs=0.5), constraints=Constraints(max_bits_only=("conv9",)))


# -- constraints


def test_pins_by_group_unit_layer_and_prefix():
    units, costs = chain([6, 6, 6])
    scores = random_scores(units, 5, bits=(8,))
    plan = allocate(units, scores, costs, Budget(macs=0.7), constraints=Constraints(pinned=("conv1:out",)))
    assert "conv1:out" not in plan.remove_channels
    plan = allocate(units, scores, costs, Budget(macs=0.5), constraints=Constraints(pinned=("conv1:out[2]",)))
    assert 2 not in plan.remove_channels.get("conv1:out", ())
    # A pinned layer keeps its inputs, its outputs and its format.
    plan = allocate(units, scores, costs, Budget(weight_bytes=0.6), constraints=Constraints(pinned=("conv1",)))
    assert "conv0:out" not in plan.remove_channels
    assert "conv1:out" not in plan.remove_channels
    assert "conv1" not in plan.layer_formats


def test_pins_by_prefix():
    ids = ("stage1.a:out[0]", "stage1.a:out[1]", "stage2.a:out[0]", "stage2.a:out[1]", "stage1.a", "stage2.a")
    group = np.array([name.split("[")[0] for name in ids])
    kind = np.array(["channel"] * 4 + ["layer"] * 2)
    units = UnitTable(ids, group, np.array([0, 1, 0, 1, 0, 0]), kind)
    out_share = np.array([[0.5, 0.5, 0, 0, 0, 0], [0, 0, 0.5, 0.5, 0, 0]])
    costs = make_costs(units, [10, 10], [10, 10], [0, 0], [2, 2], np.zeros((2, 6)), out_share)
    scores = make_scores(units, [0.1, 0.2, 5, 6])
    plan = allocate(units, scores, costs, Budget(macs=0.75), constraints=Constraints(pinned=("stage1.",)))
    assert plan.remove_channels == {"stage2.a:out": (0,)}


@pytest.mark.parametrize(
    ("name", "hint"), [("conv1:oot", "conv1:out"), ("conv77", "Did you mean"), ("conv0:out[99]", "conv0:out")]
)
def test_unknown_pinned_name_is_named_with_suggestions(name, hint):
    units, costs = chain([4, 4])
    with pytest.raises(CompressError) as error:
        allocate(units, random_scores(units, 0), costs, Budget(macs=0.5), constraints=Constraints(pinned=(name,)))
    assert repr(name) in str(error.value)
    assert hint in str(error.value)


@pytest.mark.parametrize(
    "constraints",
    [Constraints(floor=1.1), Constraints(floor=-0.1), Constraints(round_to=0), Constraints(round_to=2.0),
     Constraints(pinned="conv0"), Constraints(pinned=None), Constraints(max_bits_only=(1,)), Constraints(floors=None)],
)  # fmt: skip
def test_settings_out_of_range(constraints):
    units, costs = chain([4, 4])
    with pytest.raises(CompressError, match="parameter of Constraints must "):
        allocate(units, random_scores(units, 0), costs, Budget(macs=0.5), constraints=constraints)


@pytest.mark.parametrize("allocator", ["uniform", "greedy", "knapsack"])
def test_round_to_and_floor(allocator):
    units, costs = chain([20, 16, 7])
    constraints = Constraints(floor=0.3, round_to=8)
    plan = allocate(
        units, random_scores(units, 2), costs, Budget(macs=0.45), allocator=allocator, constraints=constraints
    )
    left = kept(plan, units)
    assert left["conv0:out"] in (8, 16, 20)
    assert left["conv1:out"] in (8, 16)
    assert left["conv2:out"] == 7
    assert plan.predicted_cost["macs"] <= 0.45 * costs.dense_macs


def test_a_floor_of_zero_keeps_one_unit():
    units, costs = separate([5, 5], [10, 10])
    plan = allocate(units, random_scores(units, 0), costs, Budget(macs=20), constraints=NO_FLOOR)
    assert kept(plan, units) == {"conv0:out": 1, "conv1:out": 1}


# -- feasibility


def test_where_nothing_can_be_removed_the_reasons_are_told_and_not_the_floor():
    structure = analyze(nn.Linear(16, 4), torch.zeros(2, 16))
    with pytest.raises(BudgetError, match=r"Nothing of this model can be removed \(.*output of the model\)") as error:
        check_budget(structure.units, unit_costs(structure), Budget(macs=0.5), Constraints(round_to=4))
    assert "floor" not in str(error.value)
    assert "round_to" not in str(error.value)


def test_unmeetable_budget_names_bound_and_closest_feasible():
    units, costs = separate([10, 10], [10, 10])
    scores = random_scores(units, 0)
    constraints = Constraints(floor=0.3, pinned=("conv0:out[3]",))
    for allocator in ("uniform", "greedy", "knapsack"):
        with pytest.raises(BudgetError) as error:
            allocate(units, scores, costs, Budget(macs=0.2), allocator=allocator, constraints=constraints)
        text = str(error.value)
        for part in ("'macs'", "needs 60", "0.3000 of dense", "Budget(macs=0.3)", "floor=0.3", "conv0:out[3]"):
            assert part in text
    with pytest.raises(BudgetError, match=r"floor=0\.3"):
        check_budget(units, costs, Budget(macs=0.2), constraints)
    assert closest_feasible(units, costs, Budget(macs=0.2), constraints) == Budget(macs=0.3)
    assert closest_feasible(units, costs, Budget(macs=7), constraints) == Budget(macs=60)
    assert closest_feasible(units, costs, Budget(macs=0.4), constraints) == Budget(macs=0.4)
    assert allocate(units, scores, costs, Budget(macs=0.3), constraints=constraints).predicted_cost["macs"] == 60


def test_offered_widths_make_a_byte_budget_feasible():
    units, costs = chain([8, 8])
    everything_pinned = Constraints(pinned=("conv0:out", "conv1:out"))
    budget = Budget(weight_bytes=0.2)
    closest = closest_feasible(units, costs, budget, everything_pinned, ("removed", "8bit"))
    assert 0.25 < closest.weight_bytes < 0.35
    assert closest_feasible(units, costs, budget, everything_pinned, ("removed", "8bit", "4bit")) == budget
    with pytest.raises(BudgetError, match="fewer bits"):
        check_budget(units, costs, budget, everything_pinned, ("removed", "8bit"))
    check_budget(units, costs, closest, everything_pinned, ("removed",), always_quantize=True)
    with pytest.raises(CompressError, match="'conv5'"):
        check_budget(units, costs, budget, Constraints(pinned=("conv5",)))


def test_coarse_units_say_what_stopped_them():
    units, costs = separate([2], [50])
    plan = allocate(units, make_scores(units, [1, 2]), costs, Budget(macs=0.7))
    assert plan.predicted_cost["macs"] == 50
    assert plan.provenance["stopped_by"] == "step size: no single step back fits into macs"


def test_a_threshold_says_that_a_lower_one_does_not_fit():
    # Units of one score go together: one of them alone could stay.
    units, costs = separate([4], [10])
    plan = allocate(units, make_scores(units, [1, 1, 1, 2]), costs, Budget(macs=0.6), allocator="threshold")
    assert plan.predicted_cost["macs"] == 10
    assert plan.provenance["stopped_by"] == "step size: no lower threshold fits into macs"


# -- the optimum


def enumerate_optimum(units, scores, costs, budget, constraints):
    """Least damage over all combinations of levels, by brute force."""
    menu = open_menu(units, scores, costs, budget, constraints)
    ledger, best = Ledger(menu), np.inf
    for levels in itertools.product(*[range(len(c.damage)) for c in (*menu.groups, *menu.layers)]):
        damage = sum(c.damage[i] for c, i in zip((*menu.groups, *menu.layers), levels, strict=True))
        if damage < best:
            ledger.set_levels(np.array(levels[: len(menu.groups)], int), np.array(levels[len(menu.groups) :], int))
            cost = ledger.exact_cost()
            if all(cost[name] <= bound * (1 + 1e-12) for name, bound in menu.bounds.items()):
                best = damage
    return best


@pytest.mark.parametrize("seed", range(8))
def test_knapsack_is_optimal_where_costs_are_linear(seed):
    rng = np.random.default_rng(seed)
    sizes = rng.integers(2, 8, 4).tolist()
    units, costs = separate(sizes, rng.integers(5, 40, 4).tolist())
    scores = random_scores(units, seed)
    budget = Budget(macs=float(rng.uniform(0.3, 0.9)))
    plan = allocate(units, scores, costs, budget, allocator=KnapsackAllocator(gap=0.0), constraints=NO_FLOOR)
    assert plan.predicted_damage == pytest.approx(enumerate_optimum(units, scores, costs, budget, NO_FLOOR))
    greedy = allocate(units, scores, costs, budget, constraints=NO_FLOOR)
    assert plan.predicted_damage <= greedy.predicted_damage + 1e-12


def test_knapsack_is_optimal_over_widths_alone():
    units, costs = chain([5, 6, 7, 8])
    constraints = Constraints(pinned=tuple(units.groups))
    scores = random_scores(units, 7, bits=(8, 6, 4, 3, 2))
    for fraction in (0.12, 0.17, 0.23, 0.4):
        budget = Budget(weight_bytes=fraction)
        plan = allocate(units, scores, costs, budget, allocator=KnapsackAllocator(gap=0.0), constraints=constraints)
        optimum = enumerate_optimum(units, scores, costs, budget, constraints)
        assert plan.predicted_damage == pytest.approx(optimum)


def test_knapsack_beats_greedy_on_a_trap():
    # The cheapest per MAC alone does not suffice and leaves too much; the optimum is the big one.
    units, costs = separate([2, 2], [60, 40])
    scores = make_scores(units, [1.2, 50, 0.6, 1.0])
    budget = Budget(macs=140)
    plans = {name: allocate(units, scores, costs, budget, allocator=name) for name in ("greedy", "knapsack")}
    assert plans["knapsack"].predicted_damage == 1.2
    assert plans["greedy"].predicted_damage >= 1.2


def test_knapsack_is_near_the_optimum_of_products():
    ratios = []
    for seed in range(8):
        rng = np.random.default_rng(seed)
        units, costs = chain(rng.integers(3, 5, 3).tolist())
        scores = random_scores(units, seed, bits=(8, 4))
        budget = Budget(macs=float(rng.uniform(0.3, 0.9)), weight_bytes=float(rng.uniform(0.08, 0.4)))
        plan = allocate(units, scores, costs, budget, allocator="knapsack")
        ratios.append(plan.predicted_damage / enumerate_optimum(units, scores, costs, budget, Constraints()))
    assert min(ratios) > 1 - 1e-9
    assert np.mean(ratios) < 1.02


def test_knapsack_settings_out_of_range():
    for setting in ({"time_limit_s": 0}, {"gap": 1.5}, {"rounds": 0}):
        with pytest.raises(CompressError, match=next(iter(setting))):
            KnapsackAllocator(**setting)


def test_knapsack_out_of_time_says_so_and_still_meets_the_budget():
    units, costs = chain([16, 16])
    plan = allocate(
        units, random_scores(units, 0), costs, Budget(macs=0.5), allocator=KnapsackAllocator(time_limit_s=1e-9)
    )
    assert plan.provenance["timed_out"] is True
    assert plan.predicted_cost["macs"] <= 0.5 * costs.dense_macs


# -- properties

problems = st.tuples(
    st.lists(st.integers(2, 24), min_size=1, max_size=5),
    st.integers(0, 2**16),
    st.sampled_from(["uniform", "greedy", "knapsack"]),
    st.one_of(st.none(), st.floats(0.05, 1.0)),
    st.one_of(st.none(), st.floats(0.03, 1.0)),
    st.sampled_from([(), (8,), (8, 4, 2)]),
    st.sampled_from([0.0, 0.1, 0.5]),
    st.sampled_from([1, 4]),
)


@settings(max_examples=50, derandomize=True, deadline=None)
@given(problems)
def test_budget_is_met_or_refused_and_constraints_hold(problem):
    sizes, seed, allocator, macs, weight_bytes, bits, floor, round_to = problem
    units, costs = chain(sizes)
    scores = random_scores(units, seed, bits)
    pinned = ("conv0:out[1]", "conv0")[seed % 2]
    budget = Budget(macs=macs, weight_bytes=weight_bytes)
    constraints = Constraints(floor=floor, round_to=round_to, pinned=(pinned,))
    possible = closest_feasible(units, costs, budget, constraints, scores.choices)
    if possible != budget:
        with pytest.raises(BudgetError):
            allocate(units, scores, costs, budget, allocator=allocator, constraints=constraints)
        budget = possible
    plan = allocate(units, scores, costs, budget, allocator=allocator, constraints=constraints)
    cost = dict(zip(("macs", "weight_bytes"), exact_cost(plan, units, costs), strict=True))
    assert plan.predicted_cost == cost
    bounds = budget.absolute(costs.dense)
    assert all(cost[name] <= bound for name, bound in bounds.items())
    close = [name for name, bound in bounds.items() if cost[name] >= 0.99 * bound]
    assert plan.provenance["stopped_by"] == " and ".join(close) or not close
    assert plan.provenance["stopped_by"]
    for group, left in kept(plan, units).items():
        size = int((units.group == group).sum())
        assert left >= max(1, floor * size)
        assert left == size or left % round_to == 0
    assert 1 not in plan.remove_channels.get("conv0:out", ())
    if pinned == "conv0":
        assert "conv0:out" not in plan.remove_channels
        assert "conv0" not in plan.layer_formats
    again = allocate(units, scores, costs, budget, allocator=allocator, constraints=constraints)
    assert again == plan
    json.dumps(dict(plan.provenance), allow_nan=False)


@settings(max_examples=25, derandomize=True, deadline=None)
@given(st.lists(st.integers(2, 12), min_size=1, max_size=4), st.integers(0, 2**16))
def test_looser_budgets_never_do_more_damage(sizes, seed):
    rng = np.random.default_rng(seed)
    units, costs = separate(sizes, rng.integers(5, 40, len(sizes)).tolist())
    scores = random_scores(units, seed)
    start = closest_feasible(units, costs, Budget(macs=0.01)).macs
    damages = [
        allocate(units, scores, costs, Budget(macs=float(m)), allocator=KnapsackAllocator(gap=0.0)).predicted_damage
        for m in np.linspace(start, 1.0, 6)
    ]
    assert all(a >= b - 1e-9 for a, b in itertools.pairwise(damages))


@pytest.mark.parametrize("allocator", ["uniform", "greedy", "knapsack"])
def test_fine_grained_budgets_are_met_to_one_percent(allocator):
    units, costs = chain([64, 48, 64, 32])
    scores = random_scores(units, 11, bits=(8, 6, 4))
    for budget in (Budget(macs=0.5), Budget(macs=0.3), Budget(weight_bytes=0.1), Budget(macs=0.4, weight_bytes=0.12)):
        plan = allocate(units, scores, costs, budget, allocator=allocator)
        bounds = budget.absolute(costs.dense)
        spent = {name: plan.predicted_cost[name] / bound for name, bound in bounds.items()}
        assert max(spent.values()) <= 1
        assert max(spent.values()) >= 0.99
        assert plan.provenance["stopped_by"] == " and ".join(name for name, part in spent.items() if part >= 0.99)


def test_looser_budgets_on_products_do_hardly_more_damage():
    units, costs = chain([12, 16, 12])
    scores = random_scores(units, 4)
    damages = [
        allocate(units, scores, costs, Budget(macs=float(m)), allocator="knapsack").predicted_damage
        for m in np.linspace(0.2, 1.0, 9)
    ]
    assert all(a >= b * 0.999 for a, b in itertools.pairwise(damages))
    assert damages[-1] == 0


def test_plan_survives_its_file(tmp_path):
    units, costs = chain([8, 8])
    plan = allocate(units, random_scores(units, 0, bits=(8, 4)), costs, Budget(macs=0.5, weight_bytes=0.1))
    plan.save(tmp_path / "plan.json")
    loaded = CompressionPlan.load(tmp_path / "plan.json")
    assert loaded == plan


def test_thousands_of_units_take_seconds():
    units, costs = chain([48] * 100)
    plan = allocate(units, random_scores(units, 0, bits=(8, 4)), costs, Budget(macs=0.4, weight_bytes=0.1))
    assert plan.predicted_cost["macs"] <= 0.4 * costs.dense_macs
