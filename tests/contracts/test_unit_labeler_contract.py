"""One suite over every unit labeler that lies in `autolabel/unit_labelers/`."""

import dataclasses
import importlib
import pkgutil

import numpy as np
import pytest
import torch
from scipy.stats import spearmanr

import autolabel.unit_labelers
from autolabel.unit_board import ACROSS_LAYERS, SCOPES, WITHIN_LAYERS, UnitBoard
from autolabel.unit_labeler import UnitLabeler
from autolabel.unit_labelers import GBDTUnitLabeler
from compress.errors import CompressError

NAMES = ("size", "saliency", "depth")


def _kinds():
    found = []
    for info in pkgutil.iter_modules(autolabel.unit_labelers.__path__):
        module = importlib.import_module(f"autolabel.unit_labelers.{info.name}")
        own = [v for v in vars(module).values() if isinstance(v, type) and v.__module__ == module.__name__]
        public = [kind for kind in own if not kind.__name__.startswith("_")]
        assert [kind.name for kind in public] == [info.name]
        found += public
    return found


MAKERS = {kind.name: kind for kind in _kinds()}
MAKERS["gbdt-lambdarank"] = lambda: GBDTUnitLabeler(objective="lambdarank")


@pytest.fixture(params=MAKERS.values(), ids=list(MAKERS))
def make(request):
    return request.param


def board(seed, names=NAMES, scope=WITHIN_LAYERS):
    """Units that cost by their size times their saliency, a hundred times more in each layer than in the one before;
    each network on a scale of its own."""
    rng = np.random.default_rng(seed)
    group = np.repeat(np.arange(3), (20, 30, 12))
    values = rng.random((len(group), len(names))) * 10.0 ** rng.uniform(-3, 3)
    values[:, 2] = group
    damage = values[:, 0] * values[:, 1] * 100.0**group * np.exp(0.1 * rng.standard_normal(len(group)))
    order = rng.permutation(len(group))
    return UnitBoard(f"net-{seed}", "f", "t", names, values[order], group[order], {"at_once": damage[order]},
                     scope)  # fmt: skip


def agreement(found, target):
    order = [spearmanr(found[rows], target.damage["at_once"][rows]).statistic for rows in target.queries()]
    return float(np.mean(order))


@pytest.mark.parametrize("scope", SCOPES)
def test_it_learns_what_orders_units(make, scope):
    labeler = make()
    assert isinstance(labeler, UnitLabeler)
    labeler.fit([board(i, scope=scope) for i in range(20)], "at_once")
    judged = [board(i, scope=scope) for i in range(100, 104)]
    scores = [agreement(labeler.predict(one), one) for one in judged]
    assert min(scores) > {WITHIN_LAYERS: 0.8, ACROSS_LAYERS: 0.9}[scope]
    if scope == WITHIN_LAYERS:
        # Nothing is learned about layers there.
        across = [agreement(labeler.predict(one), dataclasses.replace(one, scope=ACROSS_LAYERS)) for one in judged]
        assert max(across) < 0.9
    with pytest.raises(CompressError, match="another scope"):
        labeler.predict(board(0, scope=next(other for other in SCOPES if other != scope)))


def test_units_may_come_in_any_order_and_damage_is_not_read(make):
    labeler = make().fit([board(i) for i in range(6)], "at_once")
    one = board(50)
    score = labeler.predict(one)
    assert score.shape == one.group.shape
    assert np.isfinite(score).all()
    order = np.random.default_rng(0).permutation(len(score))
    other = UnitBoard(one.network, "f", "t", NAMES, one.values[order], one.group[order], {})
    np.testing.assert_allclose(labeler.predict(other), score[order], atol=1e-5)


def test_it_repeats(make):
    state = torch.get_rng_state()
    first, second = (make().fit([board(i) for i in range(4)], "at_once").predict(board(9)) for _ in range(2))
    np.testing.assert_array_equal(first, second)
    assert torch.equal(torch.get_rng_state(), state)


def test_wrong_use_is_refused(make):
    with pytest.raises(CompressError, match="at least one board"):
        make().fit([], "at_once")
    with pytest.raises(CompressError, match="not fitted"):
        make().predict(board(0))
    labeler = make().fit([board(0), board(1)], "at_once")
    with pytest.raises(CompressError, match="other features"):
        labeler.predict(board(2, names=("size", "saliency", "other")))
    broken = board(3)
    broken.values[0, 0] = np.nan
    with pytest.raises(CompressError, match="not finite"):
        labeler.predict(broken)


def test_an_objective_that_is_not_known_is_refused():
    with pytest.raises(CompressError, match="'objective'"):
        GBDTUnitLabeler(objective="pairs")
