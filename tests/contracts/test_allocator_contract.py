"""What holds of every allocator in `compress.allocators`, found by walking the package."""

import dataclasses

import numpy as np
import pytest
from implementations import implementations

import compress.allocators
from compress.allocation import allocate
from compress.allocator import Allocator, Constraints
from compress.budget import Budget
from compress.costs import CostTable
from compress.errors import BudgetError, CompressError
from compress.scores import Scores
from compress.units import UnitTable

KINDS = implementations(compress.allocators, "allocate")


@pytest.fixture(name="problem")
def two_groups_in_three_layers():
    """conv0 -> conv1 -> conv2 with 12 and 20 channels between: costs are products."""
    ids = [f"conv0:out[{i}]" for i in range(12)] + [f"conv1:out[{i}]" for i in range(20)] + ["conv0", "conv1", "conv2"]
    kind = np.array(["channel"] * 32 + ["layer"] * 3)
    index = np.array([*range(12), *range(20), 0, 0, 0])
    units = UnitTable(tuple(ids), np.array([name.split("[")[0] for name in ids]), index, kind, fingerprint="abc")
    in_share, out_share = np.zeros((2, 3, 35))
    out_share[0, :12] = in_share[1, :12] = 1 / 12
    out_share[1, 12:32] = in_share[2, 12:32] = 1 / 20
    weights = np.array([3 * 12 * 9, 12 * 20 * 9, 20 * 10], dtype=float)
    outputs = np.array([12.0, 20.0, 10.0])
    empty = np.full((35, 3), np.nan)
    choices = ("removed", "8bit", "4bit")
    costs = CostTable(tuple(ids), choices, empty, empty, ("conv0", "conv1", "conv2"), weights * 64, weights, outputs,
                      outputs, in_share, out_share, np.array([32, 33, 34]))  # fmt: skip
    values = np.full((35, 3), np.nan)
    rng = np.random.default_rng(0)
    values[:32, 0] = rng.exponential(1, 32)
    values[32:, 1], values[32:, 2] = 0.01, 0.3
    return units, Scores(tuple(ids), choices, values, "nats"), costs


def test_the_package_is_walked():
    assert {kind.name for kind in KINDS} >= {"uniform", "greedy", "knapsack"}


@pytest.mark.parametrize("kind", KINDS)
class TestAllocator:
    def test_is_an_allocator_named_like_its_module(self, kind):
        assert isinstance(kind(), Allocator)
        assert kind.name == kind.__module__.rpartition(".")[2]
        assert dataclasses.is_dataclass(kind)
        assert kind.__name__ in compress.allocators.__all__

    def test_is_found_by_its_name(self, kind, problem):
        assert allocate(*problem, Budget(macs=0.5), allocator=kind.name) == allocate(
            *problem, Budget(macs=0.5), allocator=kind()
        )

    @pytest.mark.parametrize("budget", [Budget(macs=0.5), Budget(weight_bytes=0.2), Budget(macs=0.4, weight_bytes=0.1)])
    def test_plan_is_within_the_budget(self, kind, problem, budget):
        units, scores, costs = problem
        plan = kind().allocate(units, scores, costs, budget, Constraints())
        widths = [plan.layer_formats[n].bits if n in plan.layer_formats else 32 for n in costs.layer_names]
        cost = dict(zip(("macs", "weight_bytes"), costs.total(plan.removed_mask(units), np.array(widths)), strict=True))
        bounds = budget.absolute(costs.dense)
        assert plan.predicted_cost == cost
        assert all(cost[name] <= bound for name, bound in bounds.items())
        assert max(cost[name] / bound for name, bound in bounds.items()) > 0.9
        assert plan.fingerprint == units.fingerprint
        assert {"allocator", "budget", "constraints", "stopped_by"} <= set(plan.provenance)

    def test_predicted_damage_is_the_sum_of_scores_spent(self, kind, problem):
        units, scores, costs = problem
        plan = kind().allocate(units, scores, costs, Budget(macs=0.5, weight_bytes=0.15), Constraints())
        removed = scores.removal[plan.removed_mask(units)].sum()
        spent = sum(
            scores.values[units.positions([name])[0], scores.choices.index(f"{f.bits}bit")]
            for name, f in plan.layer_formats.items()
        )
        assert plan.predicted_damage == pytest.approx(removed + spent)

    def test_lowest_scores_of_a_group_go_first(self, kind, problem):
        units, scores, costs = problem
        removed = kind().allocate(units, scores, costs, Budget(macs=0.5), Constraints()).removed_mask(units)
        for group in units.groups:
            of_group = units.group == group
            if removed[of_group].any():
                assert scores.removal[of_group & removed].max() <= scores.removal[of_group & ~removed].min()

    def test_constraints_hold_at_the_closest_feasible_budget(self, kind, problem):
        units, scores, costs = problem
        constraints = Constraints(floor=0.5, round_to=4, pinned=("conv0:out[3]",))
        with pytest.raises(BudgetError, match="Closest feasible: Budget"):
            kind().allocate(units, scores, costs, Budget(macs=0.05), constraints)
        closest = 0.5 * (8 / 12) * 2 + 0.05  # floors leave 8 of 12 and 12 of 20 channels
        plan = kind().allocate(units, scores, costs, Budget(macs=closest), constraints)
        assert 3 not in plan.remove_channels.get("conv0:out", ())
        for group, size in (("conv0:out", 12), ("conv1:out", 20)):
            left = size - len(plan.remove_channels.get(group, ()))
            assert left >= size / 2
            assert left % 4 == 0

    def test_a_group_may_have_a_floor_of_its_own(self, kind, problem):
        units = problem[0]
        constraints = Constraints(floor=0.2, floors={"conv0:out": 0.9})
        plan = kind().allocate(*problem, Budget(macs=0.4), constraints)
        gone = plan.removed_mask(units)
        size = {group: int((units.group == group).sum()) for group in units.groups}
        left = {group: size[group] - int(gone[units.group == group].sum()) for group in units.groups}
        assert left["conv0:out"] >= 0.9 * size["conv0:out"]
        assert all(left[group] >= 0.2 * size[group] for group in units.groups)
        assert any(left[group] < 0.9 * size[group] for group in units.groups)
        with pytest.raises(BudgetError, match=r"lower some of floors=\{'conv0:out': 1.0\}"):
            kind().allocate(*problem, Budget(macs=0.05), Constraints(floor=0.0, floors={"conv0:out": 1.0}))
        with pytest.raises(CompressError, match=r"'floors' parameter of Constraints names 'conv9:out'.*Did you mean"):
            kind().allocate(*problem, Budget(macs=0.4), Constraints(floors={"conv9:out": 0.5}))
        with pytest.raises(CompressError, match="'floors' parameter of Constraints at 'conv0:out' must be a float"):
            kind().allocate(*problem, Budget(macs=0.4), Constraints(floors={"conv0:out": 1.5}))

    def test_a_floor_of_one_leaves_every_channel(self, kind, problem):
        plan = kind().allocate(*problem, Budget(weight_bytes=0.2), Constraints(floor=1.0))
        assert plan.remove_channels == {}
        assert plan.layer_formats
        with pytest.raises(BudgetError, match=r"floor=1\.0"):
            kind().allocate(*problem, Budget(macs=0.9), Constraints(floor=1.0))

    def test_dense_budget_removes_nothing(self, kind, problem):
        plan = kind().allocate(*problem, Budget(macs=1.0), Constraints())
        assert plan.remove_channels == {}
        assert plan.layer_formats == {}

    def test_inputs_stay_as_they_are(self, kind, problem):
        units, scores, costs = problem
        before = [a.copy() for a in (scores.values, costs.in_share, costs.out_share, units.index)]
        kind().allocate(units, scores, costs, Budget(macs=0.5, weight_bytes=0.2), Constraints())
        for old, new in zip(before, (scores.values, costs.in_share, costs.out_share, units.index), strict=True):
            np.testing.assert_array_equal(old, new)

    def test_unknown_pin_is_refused(self, kind, problem):
        with pytest.raises(CompressError, match=r"names 'conv1:put'.*conv1:out"):
            kind().allocate(*problem, Budget(macs=0.5), Constraints(pinned=("conv1:put",)))
