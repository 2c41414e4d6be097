"""Sparsity at given steps, by hand."""

import pytest

from compress.errors import CompressError
from compress.sparsity_schedules import AgpSchedule, IterativeSchedule, OneShotSchedule, PolynomialSchedule


def values(schedule, steps, total=100, final=0.9):
    return pytest.approx([schedule.sparsity(step, total, final) for step in steps])


def test_one_shot():
    assert values(OneShotSchedule(), [0, 50, 100]) == [0.9, 0.9, 0.9]
    assert values(OneShotSchedule(at=0.5), [0, 49, 50]) == [0, 0, 0.9]
    assert values(OneShotSchedule(at=3), [2, 3]) == [0, 0.9]


def test_iterative_keeps_the_same_part_in_every_round():
    # A density of 0.125 in three rounds halves three times.
    assert values(IterativeSchedule(3, 0.1, 0.7), [9, 10, 29, 30, 49, 50, 100], final=0.875) == [
        0, 0.5, 0.5, 0.75, 0.75, 0.875, 0.875]  # fmt: skip
    assert values(IterativeSchedule(1), [0, 99]) == [0.9, 0.9]
    assert values(IterativeSchedule(2, 4, 8), [3, 4, 5, 6], final=0.75) == [0, 0.5, 0.5, 0.75]


def test_polynomial_decay():
    schedule = PolynomialSchedule(initial_sparsity=0.5, begin=20, end=60, power=3.0, frequency=10)
    # 0.9 - 0.4 (1 - t)^3 at t = 0, 1/4, 1/2, 3/4, 1.
    at = [0.5, 0.9 - 0.4 * 27 / 64, 0.9 - 0.4 / 8, 0.9 - 0.4 / 64, 0.9]
    assert values(schedule, [20, 30, 40, 50, 60]) == at
    assert values(schedule, [0, 19, 29, 39, 49, 59, 99]) == [0, 0, *at]
    line = PolynomialSchedule(begin=0.2, end=0.6, power=1.0, frequency=15)
    # Steps 20, 35, 50, and the end at 60 although 15 does not divide 40.
    assert values(line, [20, 34, 35, 50, 59, 60], final=0.8) == [0, 0, 0.3, 0.6, 0.6, 0.8]


def test_agp_is_the_cubic_at_evenly_spaced_removals():
    schedule = AgpSchedule(begin=0.0, end=0.5, removals=4)
    cubic = [0.9 - 0.9 * (1 - k / 4) ** 3 for k in range(5)]
    assert values(schedule, [0, 12, 13, 25, 38, 49, 50, 100]) == [
        cubic[0], cubic[0], cubic[1], cubic[2], cubic[3], cubic[3], cubic[4], 0.9]  # fmt: skip
    same = PolynomialSchedule(begin=10, end=90, frequency=20)
    assert values(AgpSchedule(begin=10, end=90, removals=4), range(101)) == [
        same.sparsity(step, 100, 0.9) for step in range(101)
    ]


def test_an_initial_sparsity_above_the_final_one_is_the_final_one():
    assert values(PolynomialSchedule(initial_sparsity=0.5, begin=0), [0, 30, 100], final=0.3) == [0.3, 0.3, 0.3]


@pytest.mark.parametrize(
    ("kind", "settings", "name"),
    [(OneShotSchedule, {"at": 1.5}, "at"), (OneShotSchedule, {"at": -1}, "at"), (OneShotSchedule, {"at": True}, "at"),
     (IterativeSchedule, {"rounds": 0}, "rounds"), (IterativeSchedule, {"begin": 0.5, "end": 0.2}, "end"),
     (PolynomialSchedule, {"power": 0.0}, "power"), (PolynomialSchedule, {"frequency": 0}, "frequency"),
     (PolynomialSchedule, {"initial_sparsity": 1.0}, "initial_sparsity"), (AgpSchedule, {"removals": 2.5}, "removals"),
     (AgpSchedule, {"begin": 9, "end": 3}, "end")])  # fmt: skip
def test_settings_out_of_range_are_refused(kind, settings, name):
    with pytest.raises(CompressError, match=f"The '{name}' parameter of {kind.__name__} must"):
        kind(**settings)
