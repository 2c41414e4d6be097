"""Channels, bits, densities and ranks in one solve: proofs against brute force, budgets met or truly refused."""

import dataclasses
import itertools

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from compress.allocation import allocate, closest_feasible
from compress.allocator import Constraints
from compress.allocators import GreedyAllocator, KnapsackAllocator, ThresholdAllocator, UniformAllocator
from compress.budget import Budget
from compress.costs import CostTable, RankCosts
from compress.errors import BudgetError, CompressError
from compress.layer_choice import choice_of
from compress.ledger import Ledger
from compress.menu import open_menu
from compress.outer_approximation import approximate
from compress.pareto import pareto_front
from compress.plan import LayerFormat
from compress.scores import Scores
from compress.spending import settle
from compress.strictest_plan import take_strictest
from compress.units import UnitTable

NO_FLOOR = Constraints(floor=0.0)
MENU = ("8bit", "4bit", "4bit_d0.25", "2bit", "32bit_r0.5", "4bit_r0.3")
COSTS = ("macs", "weight_bytes", "coded_bytes", "bit_operations", "latency_ms")


def chain(sizes, seed, choices):
    """`(units, costs)` of a chain of 3 x 3 convs over groups of these sizes: every layer a product of two groups."""
    rng = np.random.default_rng(seed)
    groups = [(f"conv{g}:out", n) for g, n in enumerate(sizes)]
    rows = [(f"{name}[{i}]", name, i, "channel") for name, n in groups for i in range(n)]
    rows += [(f"conv{layer}", f"conv{layer}", 0, "layer") for layer in range(len(sizes) + 1)]
    ids, group, index, kind = zip(*rows, strict=True)
    units = UnitTable(tuple(ids), np.array(group), np.array(index), np.array(kind))
    full, n = np.array([3, *sizes, 10], dtype=float), len(sizes) + 1
    in_share, out_share = np.zeros((2, n, len(units)))
    for g, size in enumerate(sizes):
        out_share[g, units.group == f"conv{g}:out"] = in_share[g + 1, units.group == f"conv{g}:out"] = 1 / size
    weights = 9 * full[:-1] * full[1:]
    latency = {name: weights * choice_of(name).bits_per_weight * (choice_of(name).rank or 1) * rng.uniform(0.5, 1.5, n)
               for name in ("32bit", *choices)}  # fmt: skip
    coded = {name: choice_of(name).bits_per_weight * rng.uniform(0.5, 1.0, n) for name in choices}
    latency["8bit"] = latency.get("8bit", weights)  # what `always_quantize` may take
    nothing = np.full((len(units), 1), np.nan)
    per_rank = np.stack([9 * full[:-1], full[1:]], axis=1)
    useful = np.maximum(np.ceil(weights / per_rank.sum(1)) - 1, 0).astype(int)
    low_rank = {"channel": RankCosts(useful, per_rank, 16 * per_rank)}
    return units, CostTable(units.ids, ("removed",), nothing, nothing, tuple(ids[-n:]), weights * 16, weights, full[1:],
                            full[1:], in_share, out_share, np.flatnonzero(units.kind == "layer"), coded_bits=coded,
                            latency_ms=latency, low_rank=low_rank)  # fmt: skip


def random_scores(units, seed, choices):
    """Removals of random damage; of choices the more, the less they keep."""
    rng = np.random.default_rng(seed)
    values = np.full((len(units), 1 + len(choices)), np.nan)
    values[units.removable, 0] = rng.exponential(1.0, int(units.removable.sum())) ** 2
    for column, name in enumerate(choices, start=1):
        choice, n = choice_of(name), int((~units.removable).sum())
        harm = 4.0 ** (2 - choice.bits) + (1 - choice.density) ** 2 + 2 * (1 - (choice.rank or 1.0))
        values[~units.removable, column] = harm * rng.exponential(1.0, n)
    return Scores(units.ids, ("removed", *choices), values, "nats")


def problem(seed):
    """`(units, scores, costs, budget)`: two or three groups, random choices, one or two bounds."""
    rng = np.random.default_rng(seed)
    sizes = rng.integers(2, 5, 2 if seed % 3 else 3).tolist()
    choices = tuple(rng.permutation(MENU)[: 4 if len(sizes) == 2 else 2].tolist())
    units, costs = chain(sizes, seed, choices)
    bounded = rng.permutation(COSTS)[: 1 + seed % 2].tolist()
    low = {"macs": 0.2, "weight_bytes": 0.1, "coded_bytes": 0.1, "bit_operations": 0.05, "latency_ms": 0.1}
    budget = Budget(**{name: float(rng.uniform(low[name], 0.8)) for name in bounded})
    budget = closest_feasible(units, costs, budget, NO_FLOOR, ("removed", *choices))
    return units, random_scores(units, seed, choices), costs, budget


def enumerate_plans(menu):
    """`(damages, costs)` of all combinations of levels: `(n_plans,)` and name -> `(n_plans,)`."""
    layers, damages, columns = len(menu.costs.layer_names), [], []
    kept_in, kept_out = [], []
    for levels in itertools.product(*[range(len(c.damage)) for c in (*menu.groups, *menu.layers)]):
        a, b, column = np.ones(layers), np.ones(layers), np.zeros(layers, dtype=int)
        for choices, level in zip(menu.groups, levels, strict=False):
            a[choices.layers] -= choices.in_gone[level]
            b[choices.layers] -= choices.out_gone[level]
        for choices, level in zip(menu.layers, levels[len(menu.groups) :], strict=True):
            column[choices.layers] = choices.columns[level]
        damages.append(sum(c.damage[i] for c, i in zip((*menu.groups, *menu.layers), levels, strict=True)))
        kept_in.append(a)
        kept_out.append(b)
        columns.append(column)
    shape = len(damages), layers
    every = np.tile(np.arange(layers), len(damages))
    flat = [np.concatenate(part) for part in (kept_in, kept_out, columns)]
    return np.array(damages), {n: menu.prices.cost(n, every, *flat).reshape(shape).sum(1) for n in menu.bounds}


def optimum(menu):
    damages, costs = enumerate_plans(menu)
    fits = np.all([costs[name] <= bound * (1 + 1e-12) for name, bound in menu.bounds.items()], axis=0)
    return damages[fits].min()


def test_the_best_of_two_by_hand():
    # Bits buy bytes, a rank buys MACs; both bounds together need the rank in few bits, or channels.
    units, costs = chain([4], 0, ("8bit", "8bit_r0.5"))
    values = np.full((6, 3), np.nan)
    values[:4, 0] = [5, 6, 7, 8]
    values[4:, 1:] = [[0.1, 1.0], [0.2, 9.0]]
    scores = Scores(units.ids, ("removed", "8bit", "8bit_r0.5"), values, "nats")
    # conv0: 108 weights of 27 inputs, rank 1 of 3: 31; conv1: 360 of 36 inputs, rank 3 of 7: 138.
    dense = 16 * (108 + 360)
    for macs, weight_bytes, damage in (
        (dense, 4 * (108 + 360 + 14), 0.0),
        (dense, 4 * 108 + 360 + 4 * 24, 0.2),
        (dense, 108 + 360 + 4 * 28, 0.1 + 0.2),
        (16 * (31 + 360), 31 + 360 + 4 * 29, 1.0 + 0.2),
        (16 * (108 + 138), 108 + 138 + 4 * 31, 0.1 + 9.0),
    ):
        budget = Budget(macs=macs, weight_bytes=weight_bytes)
        constraints = Constraints(pinned=("conv0:out",))
        plan = allocate(units, scores, costs, budget, allocator="knapsack", constraints=constraints)
        assert plan.predicted_damage == pytest.approx(damage)
        assert plan.provenance["gap"] <= 1e-4


@pytest.mark.parametrize("seed", range(24))
def test_bounds_are_below_the_optimum_and_closed_gaps_are_it(seed):
    units, scores, costs, budget = problem(seed)
    best = optimum(open_menu(units, scores, costs, budget, NO_FLOOR))
    plan = allocate(units, scores, costs, budget, allocator="knapsack", constraints=NO_FLOOR)
    told = plan.provenance
    assert told["lower_bound"] <= best * (1 + 1e-6) + 1e-9
    assert plan.predicted_damage >= best * (1 - 1e-9)
    assert told["gap"] == pytest.approx(1 - told["lower_bound"] / plan.predicted_damage if best else 0.0, abs=1e-9)
    assert told["gap"] <= 1e-3, "a problem as small as this is solved"
    if told["gap"] <= 1e-4:
        assert plan.predicted_damage == pytest.approx(best, rel=2e-4)


@pytest.mark.parametrize("seed", range(6))
def test_relaxed_bounds_alone_are_below_the_optimum_and_not_far(seed):
    units, scores, costs, budget = problem(seed + 100)
    menu = open_menu(units, scores, costs, budget, NO_FLOOR)
    best = optimum(menu)
    ledger = Ledger(menu)
    settle(ledger)
    before = ledger.levels()
    proof = approximate(ledger, 60.0, 0.0, relaxed_rounds=20, whole_rounds=0)
    assert 0.2 * best <= proof.lower_bound <= best * (1 + 1e-6)
    for old, new in zip(before, ledger.levels(), strict=True):
        np.testing.assert_array_equal(old, new)


@pytest.mark.parametrize("seed", range(12))
def test_a_budget_is_refused_only_if_no_plan_meets_it(seed):
    rng = np.random.default_rng(seed)
    units, costs = chain([3, 3], seed, MENU)
    scores = random_scores(units, seed, MENU)
    names = rng.permutation(COSTS)[:2].tolist()
    menu = open_menu(units, scores, costs, Budget(**dict.fromkeys(names, 1.0)), NO_FLOOR)
    ledger = Ledger(menu)
    for group, choices in enumerate(menu.groups):
        ledger.set_group(group, len(choices.removed) - 1)
    # What any layers cost with the fewest channels: the two costs against each other, and a target between them.
    found = []
    for levels in itertools.product(*[range(len(c.damage)) for c in menu.layers]):
        ledger.set_levels(ledger.group_level, np.array(levels))
        found.append([ledger.cost()[name] for name in names])
    found = np.array(found)
    target = found[rng.integers(len(found))] * rng.uniform(0.97, 1.03, 2)
    bounds = dict(zip(names, target.tolist(), strict=True))
    tight = dataclasses.replace(menu, bounds=bounds)
    ledger = Ledger(tight)
    take_strictest(ledger)
    excess = max(ledger.exact_cost()[name] / bound - 1 for name, bound in bounds.items())
    least = (found / target - 1).max(axis=1).min()
    assert max(excess, 0.0) == pytest.approx(max(least, 0.0), abs=2e-3)
    if least <= 0:
        assert excess <= 0


def test_ranks_for_one_layer_and_bits_for_the_other_meet_what_neither_meets_alone():
    # The second layer's rank is worth more MACs than the first one's, but the first has no cheap bits otherwise.
    units, costs = chain([4], 0, ("2bit", "32bit_r0.3"))
    scores = random_scores(units, 0, ("2bit", "32bit_r0.3"))
    pinned = Constraints(pinned=("conv0:out",))
    # 2 bits in conv0 and rank 2 of 7 in conv1: 16 (108 + 92) MACs; 27 + 4 * 92 bytes, 4 scales and 14 biases.
    budget = Budget(macs=16 * (108 + 92), weight_bytes=27 + 4 * 92 + 4 * 18)
    assert closest_feasible(units, costs, budget, pinned, ("removed", "2bit", "32bit_r0.3")) == budget
    for kind in (UniformAllocator, GreedyAllocator, ThresholdAllocator, KnapsackAllocator):
        plan = kind().allocate(units, scores, costs, budget, pinned)
        assert {name: (f.bits, f.rank) for name, f in plan.layer_formats.items()} == {"conv0": (2, None),
                                                                                      "conv1": (32, 2)}  # fmt: skip
    with pytest.raises(BudgetError, match="Closest feasible"):
        allocate(units, scores, costs, dataclasses.replace(budget, macs=budget.macs - 1), constraints=pinned)


@pytest.mark.parametrize("kind", [UniformAllocator, ThresholdAllocator])
def test_who_goes_by_bits_alone_takes_no_rank_of_the_same_size(kind):
    choices = ("4bit_r0.3", "8bit", "8bit_r0.5", "4bit")
    units, costs = chain([8, 8], 0, choices)
    scores = random_scores(units, 0, choices)
    pinned = Constraints(pinned=("conv0:out", "conv1:out"))
    for bytes_, bits in ((0.35, 8), (0.2, 4)):
        plan = kind().allocate(units, scores, costs, Budget(weight_bytes=bytes_), pinned)
        assert {(f.bits, f.rank) for f in plan.layer_formats.values()} == {(bits, None)}


def test_a_rank_of_few_weights_by_hand():
    choices = ("8bit", "8bit_d0.25", "8bit_r0.5", "8bit_d0.25_r0.5")
    units, costs = chain([4], 0, choices)
    values = np.full((6, 5), np.nan)
    values[4:, 1:] = [[0.1, 5, 5, 9], [0.2, 1, 1, 1.5]]
    scores = Scores(units.ids, ("removed", *choices), values, "nats")
    costs = dataclasses.replace(costs, coded_bits={})
    # Of 468 weights conv0 has 108 and conv1 has 360, or 138 at a rank of 3 of 7. Of 1928 bytes conv0 in 8 bits takes
    # 140; conv1 takes 440, 207 with a quarter of the weights, 230 at the rank and 141 with both.
    for bounds, damage in (({"macs": 0.53}, 1.0), ({"macs": 0.53, "coded_bytes": 0.15}, 1.6)):
        for kind in (GreedyAllocator, KnapsackAllocator):
            plan = kind().allocate(units, scores, costs, Budget(**bounds), NO_FLOOR)
            assert plan.predicted_damage == pytest.approx(damage)
            told = plan.layer_formats["conv1"]
            assert (told.rank, told.density) == (3, 0.25 if "coded_bytes" in bounds else 1.0)


@pytest.mark.parametrize("kind", [GreedyAllocator, KnapsackAllocator])
def test_schemes_compete_by_hand(kind):
    choices = ("4bit", "4bit_codebook")
    units, costs = chain([4], 0, choices)
    values = np.full((6, 3), np.nan)
    values[4:, 1:] = [[5, 1], [1, 0.5]]
    scores = Scores(units.ids, ("removed", *choices), values, "nats")
    # Of 1928 bytes conv0 takes 448, or 54 with 4 biases and 4 scales, 86, or with 4 codebooks of 16 centroids, 326;
    # conv1 takes 1480, or 260, or 860.
    for share, damage, schemes in (
        (0.31, 2.0, {"conv0": "codebook", "conv1": "symmetric"}),
        (0.37, 1.0, {"conv1": "symmetric"}),
        (0.62, 1.5, {"conv0": "codebook", "conv1": "codebook"}),
    ):
        budget = Budget(weight_bytes=share)
        plan = kind(always_quantize=damage != 1.0).allocate(units, scores, costs, budget, NO_FLOOR)
        assert {name: layer_format.scheme for name, layer_format in plan.layer_formats.items()} == schemes
        assert plan.predicted_damage == pytest.approx(damage)


mixtures = st.tuples(
    st.integers(0, 2**16),
    st.lists(st.integers(2, 9), min_size=1, max_size=3),
    st.dictionaries(st.sampled_from(COSTS), st.floats(0.02, 1.0), min_size=1, max_size=5),
    st.sets(st.sampled_from(MENU), max_size=4),
    st.sampled_from([GreedyAllocator, KnapsackAllocator, UniformAllocator, ThresholdAllocator]),
    st.booleans(),
)


@settings(max_examples=40, derandomize=True, deadline=None)
@given(mixtures)
def test_any_mixture_of_bounds_is_met_or_refused(mixture):
    seed, sizes, bounds, choices, kind, always = mixture
    choices = tuple(name for name in MENU if name in choices)
    units, costs = chain(sizes, seed, choices)
    scores, budget = random_scores(units, seed, choices), Budget(**bounds)
    allocator = kind(always_quantize=always)
    names = ("removed", *choices)
    possible = closest_feasible(units, costs, budget, Constraints(), names, always_quantize=always)
    if possible != budget:
        with pytest.raises(BudgetError, match="Closest feasible"):
            allocator.allocate(units, scores, costs, budget, Constraints())
    plan = allocator.allocate(units, scores, costs, possible, Constraints())
    for name, bound in possible.absolute(costs.dense).items():
        assert plan.predicted_cost[name] <= bound
    assert allocator.allocate(units, scores, costs, possible, Constraints()) == plan
    if kind is KnapsackAllocator:
        greedy = GreedyAllocator(always_quantize=always).allocate(units, scores, costs, possible, Constraints())
        assert plan.predicted_damage <= greedy.predicted_damage * (1 + 1e-9) + 1e-12
        assert plan.provenance["lower_bound"] <= plan.predicted_damage * (1 + 1e-9) + 1e-12


def test_nothing_is_called_proven_that_was_not():
    units, costs = chain([6, 8], 3, MENU)
    scores, budget = random_scores(units, 3, MENU), Budget(weight_bytes=0.1)
    plans = {rounds: allocate(units, scores, costs, budget, allocator=KnapsackAllocator(proof_rounds=rounds))
             for rounds in (0, 10)}  # fmt: skip
    assert not plans[0].provenance["linear"]
    assert plans[0].provenance["gap"] is None
    assert plans[0].provenance["lower_bound"] is None
    assert plans[10].provenance["gap"] <= 1e-3
    # Costs that add: one solve is a proof, unless there was no time for it.
    units, costs = chain([6], 3, MENU)
    removal = dataclasses.replace(scores := random_scores(units, 3, MENU),
                                  values=np.where(units.removable[:, None], scores.values, np.nan))  # fmt: skip
    for seconds, proven in ((60.0, True), (1e-9, False)):
        told = allocate(units, removal, costs, Budget(macs=0.5),
                        allocator=KnapsackAllocator(time_limit_s=seconds, proof_rounds=0)).provenance  # fmt: skip
        assert told["timed_out"] != proven
        assert (told["gap"] is not None) == (told["lower_bound"] is not None) == proven


def test_a_bound_is_of_the_sum_without_credit_for_what_seems_to_help():
    units, costs = chain([6, 8], 3, ())
    values = random_scores(units, 3, ()).values
    values[units.removable] = np.linspace(-0.2, 1.0, int(units.removable.sum()))[:, None]
    scores = Scores(units.ids, ("removed",), values, "nats")
    plan = allocate(units, scores, costs, Budget(macs=0.5), allocator="knapsack")
    told, gone = plan.provenance, values[plan.removed_mask(units), 0]
    assert gone.min() < 0
    assert told["solved_damage"] == pytest.approx(np.maximum(gone, 0).sum())
    assert told["solved_damage"] > plan.predicted_damage == pytest.approx(gone.sum())
    assert told["gap"] == pytest.approx(1 - told["lower_bound"] / told["solved_damage"], abs=1e-9)


# -- the front


def front_case():
    units, costs = chain([6, 8], 3, MENU)
    return units, random_scores(units, 3, MENU), costs


def ends(front, cost):
    return [plan.predicted_cost[cost] for plan in front], [plan.predicted_damage for plan in front]


@pytest.mark.parametrize("cost", COSTS)
def test_a_front_goes_from_dense_to_the_strictest_plan(cost):
    units, scores, costs = front_case()
    front = pareto_front(units, scores, costs, cost, points=6)
    spent, damages = ends(front, cost)
    assert 4 <= len(front) <= 6
    assert front[0].remove_channels == {}
    assert front[0].layer_formats == {}
    assert (spent[0], damages[0]) == (pytest.approx(costs.dense[cost]), 0.0)
    menu = open_menu(units, scores, costs, Budget(**{cost: 1.0}), Constraints())
    strictest = Ledger(menu)
    take_strictest(strictest)
    assert spent[-1] == pytest.approx(strictest.exact_cost()[cost], rel=2e-4)
    assert all(a > b for a, b in itertools.pairwise(spent))
    assert all(a < b for a, b in itertools.pairwise(damages))
    assert pareto_front(units, scores, costs, cost, points=6) == front
    alone = allocate(units, scores, costs, Budget(**front[2].provenance["budget"]), allocator="knapsack")
    assert alone == front[2]


def test_a_front_of_given_budgets_leaves_out_what_is_beaten():
    units, scores, costs = front_case()
    values = np.where(units.removable[:, None], scores.values, np.nan)
    removal = dataclasses.replace(scores, values=values)
    # Between 0.999 and 0.9999 of the MACs there is no plan of its own: the same one comes twice.
    front = pareto_front(units, removal, costs, "macs", budgets=(0.5, 0.9999, 0.999, 0.7))
    spent, _ = ends(front, "macs")
    assert len(front) == 3
    assert [plan.provenance["budget"]["macs"] for plan in front][1:] == [0.7, 0.5]
    assert spent[1] <= 0.7 * costs.dense["macs"]
    with pytest.raises(BudgetError, match="Closest feasible"):
        pareto_front(units, removal, costs, "macs", budgets=(0.5, 1e-6))


def test_a_front_within_other_bounds():
    units, scores, costs = front_case()
    front = pareto_front(units, scores, costs, "coded_bytes", points=5, within=Budget(macs=0.4))
    assert len(front) >= 3
    assert all(plan.predicted_cost["macs"] <= 0.4 * costs.dense["macs"] for plan in front)
    with pytest.raises(BudgetError, match="'macs'"):
        pareto_front(units, scores, costs, within=Budget(macs=1e-6))


def test_what_has_no_front():
    units, scores, costs = front_case()
    for arguments, words in (
        ({"cost": "grams"}, "'cost'"), ({"within": Budget(coded_bytes=0.5)}, "'within' leaves free"),
        ({"points": 1}, "'points'"),
    ):  # fmt: skip
        with pytest.raises(CompressError, match=words):
            pareto_front(units, scores, costs, **arguments)
    with pytest.raises(CompressError, match="nats"):
        pareto_front(units, dataclasses.replace(scores, scale="order"), costs)


@pytest.mark.parametrize("kind", [UniformAllocator, ThresholdAllocator, GreedyAllocator, KnapsackAllocator])
def test_a_layer_of_most_bits_only_stays_one_layer(kind):
    choices = ("8bit", "8bit_r0.5")
    units, costs = chain([8, 8], 0, choices)
    values = np.full((len(units), 3), np.nan)
    values[units.removable, 0], values[~units.removable, 1:] = 5.0, (0.01, 0.001)
    scores = Scores(units.ids, ("removed", *choices), values, "nats")
    for names in ((), ("conv1",)):
        plan = kind().allocate(units, scores, costs, Budget(weight_bytes=0.2), Constraints(max_bits_only=names))
        ranked = plan.layer_formats.get("conv1", LayerFormat(32, "float32")).rank is not None
        assert ranked == (not names)
