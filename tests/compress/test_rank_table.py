"""Costs of ranks against what the divided model really takes, and errors against what it really does."""

import numpy as np
import pytest
import torch
from torch import nn

from compress.counting import count_macs
from compress.errors import CompressError, PlanError
from compress.input_moments import collect_input_moments
from compress.low_rank import Factorization, factorize
from compress.rank_table import LADDER, ladder_ranks, rank_choices, rank_costs, tabulate_ranks, useful_rank
from compress.splitting import find_splits
from compress.structure import analyze


@pytest.fixture(name="case", scope="module")
def a_net_with_strides():
    with torch.random.fork_rng():
        torch.manual_seed(0)
        model = nn.Sequential(
            nn.Conv2d(3, 8, (3, 5), stride=(1, 2), padding=(1, 2)), nn.ReLU(), nn.Conv2d(8, 12, 3, 2, dilation=(1, 2)),
            nn.ReLU(), nn.Conv2d(12, 12, 3, padding=1, groups=3), nn.Flatten(), nn.Linear(12 * 5 * 3, 10), nn.ReLU(),
            nn.Linear(10, 1)).eval()  # fmt: skip
        x = torch.randn(7, 3, 11, 20)
    return analyze(model, x), x


def count(structure, x, name, rank, scheme):
    low = factorize(structure.traced.module, {name: Factorization(rank, scheme)})
    dense, small = (sum(p.numel() for p in m.parameters()) for m in (structure.traced.module, low))
    return count_macs(low, x) - count_macs(structure), small - dense


@pytest.mark.parametrize("scheme", ["channel", "spatial"])
def test_costs_are_those_of_the_divided_model(case, scheme):
    structure, x = case
    table = tabulate_ranks(structure, ladder=(0.9, 0.3), scheme=scheme)
    assert table.layers == (("0", "2", "6") if scheme == "channel" else ("0", "2"))
    for row, name in enumerate(table.layers):
        for column, rank in enumerate(table.ranks[row]):
            macs, weights = count(structure, x, name, int(rank), scheme)
            assert table.macs[row, column] - table.dense_macs[row] == pytest.approx(macs)
            assert table.weights[row, column] - table.dense_weights[row] == weights


def test_costs_by_hand(case):
    structure, _ = case
    splits = find_splits(structure.traced.module, "spatial")[0]
    # 11 x 20 becomes 11 x 10: the 3 x 1 conv still sees 20 columns.
    assert rank_costs(structure, splits["0"]) == (3 * 3 * 220 + 8 * 5 * 110, 3 * 3 + 8 * 5)
    splits = find_splits(structure.traced.module)[0]
    assert rank_costs(structure, splits["0"]) == ((3 * 15 + 8) * 110, 3 * 15 + 8)
    assert rank_costs(structure, splits["6"]) == (180 + 10, 180 + 10)
    assert useful_rank(structure, splits["6"]) == 9  # 9 * 190 = 1710 < 1800
    assert useful_rank(structure, splits["8"]) == 0


@pytest.mark.parametrize("scheme", ["channel", "spatial"])
def test_the_useful_rank_is_the_last_that_saves_both(case, scheme):
    structure, x = case
    for name, split in find_splits(structure.traced.module, scheme)[0].items():
        useful = useful_rank(structure, split)
        assert 0 <= useful <= split.full_rank
        if useful:
            assert max(count(structure, x, name, useful, scheme)) < 0
        if useful < split.full_rank:
            assert max(count(structure, x, name, useful + 1, scheme)) >= 0


def test_every_other_layer_has_its_reason(case):
    structure, _ = case
    refused = dict(tabulate_ranks(structure).refused)
    assert refused.keys() == {"4", "8"}
    assert "3 groups" in refused["4"]
    assert refused["8"] == "no rank saves both MACs and weights"
    assert dict(tabulate_ranks(structure, scheme="spatial").refused).keys() == {"4", "6", "8"}


def test_errors_are_those_of_outputs(case):
    structure, x = case
    module = structure.traced.module
    table = tabulate_ranks(structure, collect_input_moments(module, [(x,)]))
    assert table.choices == rank_choices(LADDER)
    assert table.ranks.tolist() == [ladder_ranks(useful_rank(structure, find_splits(module)[0][name]), LADDER)
                                    for name in table.layers]  # fmt: skip
    dense = _first_conv(module, x)
    for column, rank in enumerate(table.ranks[0]):
        low = factorize(module, {"0": int(rank)}, collect_input_moments(module, [(x,)], ["0"]))
        gap = _first_conv(low, x) - dense
        measured = float(gap.square().sum() / dense.square().sum())
        assert table.output_error[0, column] == pytest.approx(measured, rel=1e-4)
    for errors in (table.output_error, table.weight_error):
        assert (np.diff(errors, axis=1) >= -1e-9).all(), "the ladder goes down"
    plain = tabulate_ranks(structure)
    assert np.isnan(plain.output_error).all()
    assert (plain.weight_error <= table.weight_error + 1e-9).all()


def _first_conv(module, x):
    """What the first layer gives without its bias."""
    parameters = dict(module.named_parameters())
    if "0.weight" in parameters:
        return torch.conv2d(x, parameters["0.weight"], None, (1, 2), (1, 2)).detach()
    between = torch.conv2d(x, parameters["0.reduce.weight"], None, (1, 2), (1, 2))
    return torch.conv2d(between, parameters["0.expand.weight"]).detach()


def test_a_net_without_such_layers_has_an_empty_table():
    x = torch.ones(2, 2)
    table = tabulate_ranks(analyze(nn.Sequential(nn.Linear(2, 2), nn.ReLU(), nn.Linear(2, 1)), x))
    assert table.layers == ()
    assert table.ranks.shape == table.macs.shape == table.weight_error.shape == (0, len(LADDER))


def test_what_is_no_ladder(case):
    for ladder in ((), (0.5, 0.5), (0.0,), (1.5,)):
        with pytest.raises(CompressError, match="ladder"):
            tabulate_ranks(case[0], ladder=ladder)
    with pytest.raises(PlanError, match="'scheme'"):
        tabulate_ranks(case[0], scheme="diagonal")
    assert rank_choices((0.5, 0.125)) == ("rank0.5", "rank0.125")
    assert ladder_ranks(10, (1.0, 0.5, 0.29, 0.01)) == [10, 5, 2, 1]
