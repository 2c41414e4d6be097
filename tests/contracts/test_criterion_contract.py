"""What holds of every criterion in `compress.criteria`, found by walking the package."""

import dataclasses
import inspect
import re
import sys
import warnings
from pathlib import Path

import numpy as np
import pytest
import torch
from implementations import implementations
from torch import nn

import compress.criteria
import conf
from compress.criterion import Criterion, score_units
from compress.normalization import NORMALIZATIONS
from compress.statistics import KINDS, Statistics, collect_statistics
from compress.structure import analyze
from compress.task import ClassificationTask

CRITERIA = implementations(compress.criteria, "score")


class Awkward(nn.Module):
    """Dead rectifiers, a constant channel, zero weights, a coupled residual and a layer without batch norm."""

    def __init__(self):
        super().__init__()
        self.a, self.norm, self.b = nn.Conv2d(2, 6, 3, padding=1), nn.BatchNorm2d(6), nn.Conv2d(6, 6, 3, padding=1)
        self.c, self.fc, self.out = nn.Conv2d(6, 4, 1), nn.Linear(4, 5), nn.Linear(5, 3)

    def forward(self, x):
        x = torch.relu(self.norm(self.a(x)))
        x = torch.relu(self.c(x + torch.relu(self.b(x)))).mean((2, 3))
        return self.out(torch.relu(self.fc(x)))


@pytest.fixture(name="statistics", scope="module")
def statistics_of_an_awkward_net():
    with torch.random.fork_rng():
        torch.manual_seed(0)
        model = Awkward().eval()
    with torch.no_grad():
        model.norm.weight[0], model.norm.bias[0] = 0.0, 1.0
        model.c.weight[1], model.c.bias[1] = 0.0, -1.0
        model.fc.weight.zero_()
        model.fc.bias.fill_(-1.0)
    generator = torch.Generator().manual_seed(1)
    batches = [(torch.randn(4, 2, 5, 5, generator=generator), torch.tensor([0, 1, 2, 0])) for _ in range(2)]
    return collect_statistics(analyze(model, batches[0][0]), ClassificationTask(), batches, KINDS)


def scored(criterion, statistics):
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", message=".*have no batch norm.*")
        return criterion.score(statistics)


def test_the_package_is_walked():
    assert {kind.name for kind in CRITERIA} >= {
        "random", "magnitude", "bn_scale", "taylor", "fisher", "second_order", "activation", "wanda", "apoz",
        "geometric_median", "reconstruction", "ziplm",
    }  # fmt: skip
    assert {kind.__name__ for kind in CRITERIA} == set(compress.criteria.__all__)


@pytest.mark.parametrize("kind", CRITERIA)
class TestCriterion:
    def test_satisfies_the_seam(self, kind):
        criterion = kind()
        assert isinstance(criterion, Criterion)
        assert criterion.scale in ("nats", "order")
        assert criterion.needs <= set(KINDS)
        assert kind.__module__.rpartition(".")[2] == criterion.name

    def test_names_its_paper(self, kind):
        assert re.search(r"(arXiv:\d{4}\.\d{5}|NIPS|IEEE Access)", inspect.getdoc(kind)), "no source in the docstring"

    def test_scores_every_unit_finitely(self, kind, statistics):
        score = scored(kind(), statistics)
        assert score.shape == (statistics.n_units,)
        assert score.dtype == np.float64
        assert np.isfinite(score).all()

    @pytest.mark.parametrize("how", [how for how in NORMALIZATIONS if how])
    def test_normalises_within_groups(self, kind, statistics, how):
        score = scored(kind(normalize=how), statistics)
        assert np.isfinite(score).all()
        assert kind(normalize=how).scale == "order"
        raw = scored(kind(), statistics)
        for rows in statistics.group_rows.values():
            order = np.argsort(raw[rows], kind="stable")
            assert (np.diff(score[rows][order]) >= -1e-9).all(), "a normalisation must not change the order in a group"

    def test_reads_only_what_it_needs(self, kind, statistics):
        needs = kind.needs
        lean = Statistics(
            statistics.structure,
            statistics.activations if "activations" in needs else None,
            statistics.gate_gradients if "gradients" in needs else None,
            statistics.moments if "moments" in needs else None,
            layer_moments=statistics.layer_moments if "layer_moments" in needs else None,
        )
        np.testing.assert_array_equal(scored(kind(), lean), scored(kind(), statistics))

    def test_is_a_value(self, kind, statistics):
        first = scored(kind(), statistics)
        np.testing.assert_array_equal(first, scored(kind(), statistics))
        with pytest.raises(dataclasses.FrozenInstanceError):
            kind().normalize = "rank"

    def test_scores_units(self, kind, statistics):
        with warnings.catch_warnings():
            warnings.filterwarnings("ignore", message=".*have no batch norm.*")
            scores = score_units(statistics.structure, kind(), statistics)
        assert np.isnan(scores.removal[~statistics.units.removable]).all()
        assert np.isfinite(scores.removal[statistics.units.removable]).all()

    def test_has_a_config_with_all_its_settings(self, kind):
        lines = (Path(conf.__file__).parent / "criterion" / f"{kind.name}.yaml").read_text().splitlines()
        keys = {line.split(":")[0] for line in lines if line and not line.startswith("#")}
        assert keys == {"_target_", *(field.name for field in dataclasses.fields(kind))}
        target = next(line for line in lines if line.startswith("_target_")).split(": ")[1]
        module, _, name = target.rpartition(".")
        assert getattr(sys.modules[module], name) is kind
