"""The measured damage of a rank is that of the divided model."""

import numpy as np
import pytest
import torch
from torch import nn

from autolabel.measuring import measure
from autolabel.oracles.rank import RankOracle
from compress.errors import CompressError
from compress.input_moments import collect_input_moments
from compress.low_rank import Factorization, factorize
from compress.rank_table import tabulate_ranks
from compress.structure import analyze
from compress.task import ClassificationTask

TASK = ClassificationTask()


@pytest.fixture(name="case", scope="module")
def a_net_and_batches():
    with torch.random.fork_rng():
        torch.manual_seed(0)
        model = nn.Sequential(
            nn.Conv2d(2, 8, 3, padding=1), nn.ReLU(), nn.Conv2d(8, 8, 3, padding=1, groups=8), nn.ReLU(),
            nn.Conv2d(8, 6, 3), nn.ReLU(), nn.Flatten(), nn.Linear(96, 4)).eval()  # fmt: skip
        batches = [(torch.randn(n, 2, 6, 6), torch.randint(0, 4, (n,))) for n in (10, 6)]
    return analyze(model, batches[0][0]), batches


def mean_loss(module, batches):
    with torch.no_grad():
        return float(torch.cat([TASK.loss(module(x), (x, y)) for x, y in batches]).double().mean())


@pytest.mark.parametrize("aware", [True, False])
@pytest.mark.parametrize("scheme", ["channel", "spatial"])
def test_the_damage_is_that_of_the_divided_model(case, scheme, aware):
    structure, batches = case
    oracle = RankOracle((0.5, 0.25), scheme, aware)
    labels = measure(structure, None, TASK, batches, oracle)
    module = structure.traced.module
    second = collect_input_moments(module, [(x,) for x, _ in batches]) if aware else None
    table = tabulate_ranks(structure, second, oracle.ladder, scheme)
    assert labels.choices == table.choices == ("rank0.5", "rank0.25")
    rows = [list(labels.unit_ids).index(name) for name in table.layers]
    for row, name, chosen in zip(rows, table.layers, table.ranks, strict=True):
        for column, rank in enumerate(chosen):
            low = factorize(module, {name: Factorization(int(rank), scheme)}, second)
            expected = mean_loss(low, batches) - mean_loss(module, batches)
            assert abs(expected) > 1e-6
            assert labels.damage[row, column] == pytest.approx(expected, abs=1e-6)
    assert np.isnan(np.delete(labels.damage, rows, axis=0)).all(), "no label where nothing can be divided"


def test_a_bad_ladder_is_refused_at_once():
    with pytest.raises(CompressError, match="ladder"):
        RankOracle(ladder=(2.0,))
