"""One suite over every plan labeler that lies in `autolabel/plan_labelers/`."""

import dataclasses
import importlib
import json
import pkgutil
import re
from pathlib import Path

import numpy as np
import pytest
import torch
from scipy.stats import spearmanr

import autolabel.plan_labelers
from autolabel.plan_blend import BlendPlanLabeler
from autolabel.plan_board import PlanBoard
from autolabel.plan_labeler import PlanLabeler
from autolabel.plan_labelers import GBDTPlanLabeler, RidgePlanLabeler
from autolabel.plan_summary import PlanSummary
from compress.errors import ArtifactError, CompressError

NAMES = ("log_units", "first_layer", "last_layer", "n_makers", "n_readers", "is_head", "macs_share", "bytes_share",
         "sensitivity_share", "log1p_group_nats", "kept", "log_kept", "refitted_error")  # fmt: skip
SMALL = {
    "gbdt": {"members": 2, "rounds": 60},
    "set_network": {"members": 1, "epochs": 25, "width": 16},
}


def _kinds():
    found = []
    for info in pkgutil.iter_modules(autolabel.plan_labelers.__path__):
        module = importlib.import_module(f"autolabel.plan_labelers.{info.name}")
        own = [v for v in vars(module).values() if isinstance(v, type) and v.__module__ == module.__name__]
        public = [kind for kind in own if not kind.__name__.startswith("_")]
        assert [kind.name for kind in public] == [info.name]
        found += public
    return found


MAKERS = {kind.name: lambda kind=kind: kind(**SMALL.get(kind.name, {})) for kind in _kinds()}
MAKERS["blend"] = lambda: BlendPlanLabeler(members=1, rounds=60)
MAKERS["gbdt-lambdarank"] = lambda: GBDTPlanLabeler(objective="lambdarank", **SMALL["gbdt"])


@pytest.fixture(params=MAKERS.values(), ids=list(MAKERS))
def make(request):
    return request.param


def board(seed, n_plans=24, noise=0.1):
    """Plans that lose by what their worst group lost: learnable, and no column of a single group tells it."""
    rng = np.random.default_rng(seed)
    n_groups = int(rng.integers(2, 6))
    values = np.zeros((n_plans, n_groups, len(NAMES)), dtype=np.float32)
    values[:, :, : len(NAMES) - 3] = rng.random((n_groups, len(NAMES) - 3))
    kept = rng.uniform(0.1, 0.9, (n_plans, n_groups))
    error = (1 - kept) ** 2 * rng.uniform(0.5, 1.5, (n_plans, n_groups))
    values[:, :, -3:] = np.stack([kept, np.log10(kept), error], axis=2)
    summary = PlanSummary(tuple(f"g{i}" for i in range(n_groups)), NAMES, values, ("macs", "refitted_loss_sum"),
                          np.stack([np.full(n_plans, 0.5), error.sum(axis=1)], axis=1).astype(np.float32))  # fmt: skip
    loss = np.exp(3 * error.max(axis=1) + noise * rng.standard_normal(n_plans)) * rng.uniform(0.1, 10)
    found = {"finetuned": loss}
    return PlanBoard(f"net{seed}", "f", "t", summary, found, found, found, 0.1)


BOARDS = [board(seed) for seed in range(24)]


def test_it_orders_the_plans_of_networks_it_never_saw(make):
    labeler = make()
    assert isinstance(labeler, PlanLabeler)
    assert labeler.fit(BOARDS) is labeler
    found = []
    for seed in range(100, 108):
        new = board(seed)
        score, spread = labeler.predict(new.summary)
        assert score.shape == spread.shape == (24,)
        assert score.dtype == spread.dtype == np.float64
        assert np.isfinite(score).all()
        assert (spread >= 0).all()
        found.append(spearmanr(score, new.loss["finetuned"]).statistic)
    assert np.median(found) > 0.7


def test_shuffled_losses_teach_nothing(make):
    rng = np.random.default_rng(0)
    wrong = []
    for old in BOARDS:
        losses = {"finetuned": rng.permutation(old.loss["finetuned"])}
        wrong.append(PlanBoard(old.network, "f", "t", old.summary, losses, losses, losses, 0.1))
    labeler = make().fit(wrong)
    new = [board(seed) for seed in range(100, 112)]
    found = [spearmanr(labeler.predict(b.summary)[0], b.loss["finetuned"]).statistic for b in new]
    assert abs(np.median(found)) < 0.5


def test_it_repeats_and_leaves_the_global_generators_alone(make):
    torch.manual_seed(5)
    np.random.seed(5)  # noqa: NPY002 - what must not change
    before = torch.random.get_rng_state(), np.random.get_state()[1].copy()  # noqa: NPY002
    first, second = (make().fit(BOARDS[:6]).predict(BOARDS[7].summary)[0] for _ in range(2))
    np.testing.assert_array_equal(first, second)
    assert torch.equal(before[0], torch.random.get_rng_state())
    np.testing.assert_array_equal(before[1], np.random.get_state()[1])  # noqa: NPY002


def test_it_is_saved_and_read_back(make, tmp_path):
    labeler, summary = make().fit(BOARDS[:6]), BOARDS[7].summary
    labeler.save(tmp_path / "a")
    read = type(labeler).load(tmp_path / "a")
    for known in (None, summary):
        for mine, theirs in zip(labeler.predict(summary, known), read.predict(summary, known), strict=True):
            np.testing.assert_array_equal(mine, theirs)
    read.save(tmp_path / "b")
    files = sorted(path.name for path in (tmp_path / "a").iterdir())
    assert files == sorted(path.name for path in (tmp_path / "b").iterdir())
    assert {Path(name).suffix for name in files} <= {".json", ".txt", ".safetensors"}
    member = next(path for path in (tmp_path / "a").iterdir() if path.suffix != ".json")
    content = member.read_bytes()
    member.write_bytes(content[:-10] + b"0123456789")
    with pytest.raises(ArtifactError, match="is damaged"):
        type(labeler).load(tmp_path / "a")
    member.unlink()
    with pytest.raises(ArtifactError, match=re.escape(member.name)):
        type(labeler).load(tmp_path / "a")
    index = json.loads((tmp_path / "b" / "plan_labeler.json").read_text())
    (tmp_path / "b" / "plan_labeler.json").write_text(json.dumps({**index, "plan_labeler": "other"}))
    with pytest.raises(ArtifactError, match="'other' plan labeler"):
        type(labeler).load(tmp_path / "b")


def test_a_reference_is_what_plans_are_compared_with(make):
    labeler, summary = make().fit(BOARDS[:8]), BOARDS[9].summary
    alone = labeler.predict(summary)[0]
    np.testing.assert_allclose(labeler.predict(summary, summary)[0], alone, atol=1e-6)
    few = PlanSummary(summary.groups, summary.names, summary.values[:3], summary.plan_names, summary.plan_values[:3])
    np.testing.assert_allclose(labeler.predict(few, summary)[0], alone[:3], atol=1e-5)


def test_misuse_is_refused(make):
    with pytest.raises(CompressError, match="not fitted"):
        make().predict(BOARDS[0].summary)
    with pytest.raises(CompressError, match="not fitted"):
        make().save("nowhere")
    with pytest.raises(CompressError, match="at least one board"):
        make().fit([])
    labeler, summary = make().fit(BOARDS[:3]), BOARDS[0].summary
    other = PlanSummary(summary.groups, (*summary.names[:-1], "other"), summary.values, summary.plan_names,
                        summary.plan_values)  # fmt: skip
    with pytest.raises(CompressError, match="other columns"):
        labeler.predict(other)


@pytest.mark.parametrize("kind", [GBDTPlanLabeler, RidgePlanLabeler])
def test_columns_that_came_later_change_nothing(kind):
    labeler, summary = kind().fit(BOARDS[:3]), BOARDS[4].summary
    noise = np.random.default_rng(0).random((len(summary.plan_values), 1)).astype(np.float32)
    wider = PlanSummary(summary.groups, summary.names, summary.values, ("later", *summary.plan_names),
                        np.concatenate([noise, summary.plan_values], axis=1))  # fmt: skip
    np.testing.assert_array_equal(labeler.predict(wider)[0], labeler.predict(summary)[0])


def test_an_unknown_objective_is_refused():
    with pytest.raises(CompressError, match="must be one of"):
        GBDTPlanLabeler(objective="poisson")


def test_the_formula_weighs_as_much_as_it_agrees():
    blend = BlendPlanLabeler(members=1, rounds=20).fit(BOARDS)
    new = board(100)
    trees = GBDTPlanLabeler(members=1, rounds=20, leaves=8).fit(BOARDS).predict(new.summary)[0]
    linear = RidgePlanLabeler(strength=1.0).fit(BOARDS).predict(new.summary)[0]
    formula = new.summary.plan_values[:, 1].astype(np.float64)
    opinions = [(x - x.mean()) / x.std() for x in (trees, linear, formula)]
    weight = np.mean([np.corrcoef(b.summary.plan_values[:, 1], b.target("finetuned"))[0, 1] for b in BOARDS])
    expected = (opinions[0] + opinions[1] + weight * opinions[2]) / (2 + weight)
    score, spread = blend.predict(new.summary)
    np.testing.assert_allclose(score, expected, atol=1e-6)
    assert spread[np.argmax(np.std(opinions, axis=0))] > np.median(spread)
    bare = PlanSummary(new.summary.groups, NAMES, new.summary.values, ("macs",), new.summary.plan_values[:, :1])
    with pytest.raises(CompressError, match="without 'refitted_loss_sum'"):
        BlendPlanLabeler(members=1, rounds=5).fit([dataclasses.replace(b, summary=bare) for b in BOARDS[:2]])
