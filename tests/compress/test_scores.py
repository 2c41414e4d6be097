"""Scores that only order, spent as damage."""

import numpy as np
import pytest

from compress.scores import Scores, as_damage

UNITS = ("a", "b", "c", "d")


def scores(values, scale="order"):
    return Scores(UNITS, ("removed",), np.array(values, dtype=float)[:, None], scale)


def test_the_unit_of_a_criterion_decides_nothing():
    damages = scores([1e-3, 1e-1, np.nan, 0.0], "nats")
    spent = as_damage(scores([4.0, 9.0, np.nan, -1.0]), damages)
    # Geometric means of what is positive: 6 and 1e-2.
    np.testing.assert_allclose(spent.removal, np.array([4.0, 9.0, np.nan, -1.0]) / 600)
    assert spent.scale == "nats"
    again = as_damage(scores(np.array([4.0, 9.0, np.nan, -1.0]) * 1000), damages)
    np.testing.assert_allclose(again.removal, spent.removal)


@pytest.mark.parametrize("values", [[0.0, 0.0, 0.0, 0.0], [-1.0, -2.0, np.nan, -3.0]])
def test_without_positive_values_nothing_is_scaled(values):
    np.testing.assert_array_equal(as_damage(scores(values), scores([1.0, 2.0, 3.0, 4.0])).removal, values)
