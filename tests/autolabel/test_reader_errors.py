"""What layers lose under plans that follow one order: the same as plan by plan, for the price of one."""

import numpy as np
import pytest
import torch

from autolabel import reader_errors
from autolabel.reader_errors import ReaderErrors
from compress.elimination import Reading
from compress.output_sensitivity import OutputSensitivity

N_UNITS, COLUMNS = 30, 4


def make_reader():
    """A layer that reads four columns of each of thirty units, the units of another group, and a constant."""
    rng = np.random.default_rng(0)
    rows = np.concatenate([np.repeat(np.arange(N_UNITS), COLUMNS), np.full(5, -1)])
    n, n_outputs = len(rows), 7
    inputs = rng.normal(size=(400, n)) @ rng.normal(size=(n, n)) + rng.normal(size=n)
    weight = rng.normal(size=(n, n_outputs))
    half = rng.normal(size=(2, n_outputs, n_outputs))
    reading = Reading(rows, np.cov(inputs.T), weight, inputs.mean(0), "layer", n_outputs)
    outputs, loss = (torch.from_numpy(matrix @ matrix.T) for matrix in half)
    return ReaderErrors(reading, OutputSensitivity({"layer": outputs}, {"layer": loss}, 3.0, 0.0), N_UNITS, 1e-3)


def masks(scores):
    """`(n + 1, n)` bool: all units stay, then all but the worst, and so on."""
    kept = np.ones((N_UNITS + 1, N_UNITS), dtype=bool)
    for i, unit in enumerate(np.argsort(scores, kind="stable")):
        kept[i + 1 :, unit] = False
    return kept


@pytest.fixture
def scores():
    return np.random.default_rng(1).random((2, N_UNITS))


def test_nested_plans_lose_what_each_loses(scores):
    apart, together = make_reader(), make_reader()
    for values in scores:
        together.expect(values)
    for values in scores:
        expected, found = apart.errors(masks(values)), together.errors(masks(values))
        for name in ReaderErrors.NAMES:
            np.testing.assert_allclose(found[name], expected[name], rtol=1e-7, atol=1e-9, err_msg=name)


def test_an_order_is_factorised_once_and_strangers_plan_by_plan(scores, monkeypatch):
    calls, cholesky = [], torch.linalg.cholesky
    monkeypatch.setattr(torch.linalg, "cholesky", lambda matrix: (calls.append(len(matrix)), cholesky(matrix))[1])
    reader = make_reader()
    reader.expect(scores[0])
    reader.errors(masks(scores[0]))
    assert calls == [len(reader.rows)]
    # A second search with the same order brings nothing new.
    reader.expect(2 * scores[0])
    assert len(reader._orders) == 1
    stranger = masks(scores[1])[[5, 9]]
    reader.errors(stranger)
    assert len(calls) == 3


def test_ranks_of_very_wide_layers_are_read_off_between_a_few_sizes(scores, monkeypatch):
    expected = make_reader().errors(masks(scores[0]))["rank_kept"]
    monkeypatch.setattr(reader_errors, "_VERY_WIDE", 100)
    calls, rank = [], reader_errors.effective_rank
    monkeypatch.setattr(reader_errors, "effective_rank", lambda x: (calls.append(len(x)), rank(x))[1])
    reader = make_reader()
    reader.expect(scores[0])
    found = reader.errors(masks(scores[0]))["rank_kept"]
    assert len(calls) <= 18
    np.testing.assert_allclose(found, expected, atol=0.005)


def test_narrow_layers_need_no_orders(scores, monkeypatch):
    monkeypatch.setattr(reader_errors, "_WIDE", 1000)
    reader = make_reader()
    reader.expect(scores[0])
    assert not reader._orders
