"""The threshold allocator: one score cuts all groups alike, and costs only say where."""

import numpy as np
import torch
from torch import nn

import compress
from compress.allocation import allocate
from compress.allocator import Constraints
from compress.budget import Budget
from compress.scores import Scores


def make_problem(values: np.ndarray, scale: str = "order"):
    model = nn.Sequential(nn.Linear(4, 6), nn.ReLU(), nn.Linear(6, 5), nn.ReLU(), nn.Linear(5, 3))
    structure = compress.analyze(model, torch.zeros(1, 4))
    table = np.full((len(structure.units), 1), np.nan)
    table[:11, 0] = values
    return structure.units, Scores(structure.units.ids, ("removed",), table, scale), compress.unit_costs(structure)


def removed(problem, budget, **settings) -> set[str]:
    units = problem[0]
    plan = allocate(*problem, budget, allocator="threshold", constraints=Constraints(floor=0.0, **settings))
    return {units.ids[row] for row in np.flatnonzero(plan.removed_mask(units))}


def test_the_lowest_scores_of_the_whole_network_go():
    problem = make_problem(np.array([1, 9, 3, 8, 7, 10, 2, 6, 11, 4, 5], dtype=float))
    # Dense 24 + 30 + 15 = 69 MACs. Without scores 1, 2: 5 x (4 + 4) + 4 x 3 = 52; without 3, 4 too: 16 + 12 + 9 = 37.
    assert removed(problem, Budget(macs=52)) == {"0:out[0]", "2:out[0]"}
    assert removed(problem, Budget(macs=37)) == {"0:out[0]", "0:out[2]", "2:out[0]", "2:out[3]"}
    assert removed(problem, Budget(macs=1.0)) == set()


def test_only_the_order_of_scores_matters():
    values = np.random.default_rng(0).normal(size=11)
    first = removed(make_problem(values), Budget(macs=0.5))
    assert removed(make_problem(np.exp(3 * values), "nats"), Budget(macs=0.5)) == first


def test_equal_scores_stay_or_go_together_and_no_group_is_emptied():
    values = np.array([0.0] * 6 + [1.0] * 5)
    units = removed(make_problem(values), Budget(macs=0.5))
    assert {unit.split("[")[0] for unit in units} == {"0:out"}
    assert len(units) == 5


def test_pinned_units_stay_whatever_they_score():
    values = np.arange(11, dtype=float)
    assert "0:out[0]" in removed(make_problem(values), Budget(macs=0.6))
    assert "0:out[0]" not in removed(make_problem(values), Budget(macs=0.6), pinned=("0:out[0]",))


def test_the_width_is_the_one_with_the_least_damage():
    """With 8 bits two units go at a damage of 0.3; with 4 bits none has to, at a damage of 3 * 2."""
    units, _, costs = make_problem(np.zeros(11))
    table = np.full((len(units), 3), np.nan)
    table[:11, 0] = 0.1 + 0.1 * np.arange(11)
    table[11:, 1], table[11:, 2] = 0.0, 2.0
    bound = Budget(weight_bytes=0.45)  # all in 4 bits: 0.443; all in 8 bits: 0.545, without two units 0.443
    for scale, bits, n_removed in (("nats", 8, 2), ("order", 4, 0)):
        scores = Scores(units.ids, ("removed", "8bit", "4bit"), table, scale)
        plan = allocate(units, scores, costs, bound, allocator="threshold")
        assert {layer.bits for layer in plan.layer_formats.values()} == {bits}
        assert sum(map(len, plan.remove_channels.values())) == n_removed
