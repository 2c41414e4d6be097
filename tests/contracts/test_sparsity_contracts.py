"""What holds of every pattern, weight score and sparsity schedule, found by walking the packages."""

import dataclasses
import inspect
import itertools
import json
import re
from pathlib import Path

import pytest
import torch
import yaml
from implementations import implementations
from torch import nn

import compress.patterns
import compress.sparsity_schedules
import compress.weight_scores
import conf
from compress import ClassificationTask
from compress.masking import choose_masks, density_of
from compress.pattern import SparsityPattern
from compress.pattern_text import pattern_of
from compress.sparsifier import Sparsifier
from compress.sparsity_schedule import SparsitySchedule
from compress.training_hook import TrainingHook
from compress.weight_score import WeightScore, score_weights
from compress.weight_statistics import KINDS
from experiments.config import build

PATTERNS = implementations(compress.patterns, "cells")
SCORES = implementations(compress.weight_scores, "score")
SCHEDULES = implementations(compress.sparsity_schedules, "sparsity")
SEAMS = [("pattern", SparsityPattern, PATTERNS), ("weight_score", WeightScore, SCORES),
         ("sparsity_schedule", SparsitySchedule, SCHEDULES)]  # fmt: skip
TASK = ClassificationTask()


@pytest.fixture(name="case")
def a_net_with_norm_dropout_dead_inputs_and_gradients():
    with torch.random.fork_rng():
        torch.manual_seed(0)
        model = nn.Sequential(nn.Conv2d(4, 6, 3), nn.BatchNorm2d(6), nn.ReLU(), nn.Flatten(), nn.Dropout(0.5),
                              nn.Linear(54, 9), nn.ReLU(), nn.Linear(9, 3))  # fmt: skip
    model[7].requires_grad_(False)
    model[1].eval()
    generator = torch.Generator().manual_seed(1)
    batches = [(torch.randn(4, 4, 5, 5, generator=generator), torch.tensor([0, 1, 2, 0])) for _ in range(2)]
    for images, _ in batches:
        images[:, 1, 0] = 0.0
    model[0].weight.grad = torch.ones_like(model[0].weight)
    return model, batches


def test_the_packages_are_walked():
    assert {kind.name for kind in PATTERNS} == {"unstructured", "n_of_m", "block", "channel"}
    assert {kind.name for kind in SCORES} >= {"magnitude", "random", "taylor", "fisher", "wanda", "obs"}
    assert {kind.name for kind in SCHEDULES} == {"one_shot", "iterative", "polynomial", "agp"}


@pytest.mark.parametrize(("group", "seam", "kinds"), SEAMS)
def test_the_seam_the_name_the_paper_and_the_config(group, seam, kinds):
    for kind in kinds:
        made = kind()
        assert isinstance(made, seam)
        assert made.name == kind.__module__.rpartition(".")[2]
        assert re.search(r"arXiv:\d{4}\.\d{5}", inspect.getdoc(kind)), kind
        settings = {field.name: getattr(made, field.name) for field in dataclasses.fields(kind)}
        lines = (Path(conf.__file__).parent / group / f"{kind.name}.yaml").read_text().splitlines()
        given = dict(line.split(": ") for line in lines if not line.startswith("#"))
        assert given.pop("_target_") == f"{kind.__module__}.{kind.__name__}"
        assert given.keys() == settings.keys()
        assert all(str(settings[name]) == text for name, text in given.items() if "$" not in text)
        with pytest.raises(dataclasses.FrozenInstanceError):
            made.name_of_nothing = 1


@pytest.mark.parametrize("kind", PATTERNS)
@pytest.mark.parametrize("shape", [(6, 8), (5, 3), (4, 6, 3, 3), (3, 1, 2), (1, 1)])
class TestPattern:
    def test_cells_cover_the_weight_and_go_as_a_whole(self, kind, shape):
        pattern = kind()
        cells = pattern.cells(torch.zeros(shape))
        assert cells.shape == shape
        assert cells.unique().tolist() == list(range(int(cells.max()) + 1))
        assert pattern_of(pattern.text) == pattern
        scores = torch.rand(shape, generator=torch.Generator().manual_seed(0))
        layer = nn.Linear(shape[1], shape[0]) if len(shape) == 2 else None
        layer = layer or (nn.Conv1d, nn.Conv2d)[len(shape) - 3](shape[1], shape[0], shape[2:])
        mask = choose_masks(nn.Sequential(layer), {"0": scores}, 0.6, pattern=pattern)["0"]
        assert mask.any()
        for cell in cells.unique():
            assert len(mask[cells == cell].unique()) == 1
        assert mask[pattern.held(scores.double())].all()

    def test_the_nearest_density_that_cells_allow(self, kind, shape):
        pattern = kind()
        scores = torch.rand(shape, generator=torch.Generator().manual_seed(0)).double()
        model = nn.Sequential(nn.Linear(shape[1], shape[0])) if len(shape) == 2 else None
        if model is None:
            model = nn.Sequential((nn.Conv1d, nn.Conv2d)[len(shape) - 3](shape[1], shape[0], shape[2:]))
        largest = int(pattern.cells(scores).flatten().bincount().max())
        least = max(int(pattern.held(scores).sum()), 1)
        for density in (0.5, 0.7, 1.0):
            kept = int(choose_masks(model, {"0": scores}, density, pattern=pattern)["0"].sum())
            wanted = density * scores.numel()
            assert abs(kept - wanted) <= max(largest / 2, least - wanted) or kept <= largest


@pytest.mark.parametrize("kind", SCORES)
class TestWeightScore:
    def test_scores_every_weight_finitely_and_leaves_everything_as_it_was(self, kind, case):
        model, batches = case
        before = {name: value.clone() for name, value in model.state_dict().items()}
        modes, random_state = [m.training for m in model.modules()], torch.get_rng_state()
        flags, gradient = [p.requires_grad for p in model.parameters()], model[0].weight.grad
        assert kind().needs <= set(KINDS)
        scores = score_weights(model, kind(), TASK, batches)
        assert list(scores) == ["0", "5", "7"]
        for name, score in scores.items():
            assert score.shape == model.get_submodule(name).weight.shape
            assert score.dtype == torch.float64
            assert torch.isfinite(score).all()
            assert (score >= 0).all()
        again = score_weights(model, kind(), TASK, batches)
        assert all(scores[name].equal(again[name]) for name in scores)
        assert torch.get_rng_state().equal(random_state)
        assert [m.training for m in model.modules()] == modes
        assert [p.requires_grad for p in model.parameters()] == flags
        assert model[0].weight.grad is gradient
        assert gradient.eq(1).all()
        assert all(p.grad is None for p in list(model.parameters())[1:])
        assert all(value.equal(before[name]) for name, value in model.state_dict().items())

    def test_a_weight_of_zero_matters_least(self, kind, case):
        model, batches = case
        with torch.no_grad():
            model[5].weight[2, 3:9] = 0.0
        scores = score_weights(model, kind(), TASK, batches)["5"]
        if kind().name != "random":
            assert scores[2, 3:9].eq(0).all()
        for how in ("mean", "max", "l2", "rank", "standard"):
            scaled = score_weights(model, kind(), TASK, batches, normalize=how)["5"]
            assert (scaled.flatten()[scores.flatten().argsort()].diff() >= -1e-9).all()


@pytest.mark.parametrize("kind", SCHEDULES)
@pytest.mark.parametrize("final", [0.0, 0.37, 0.9])
def test_a_schedule_is_a_staircase_to_the_final_sparsity(kind, final):
    for total in (0, 1, 7, 1000):
        found = [kind().sparsity(step, total, final) for step in range(total + 1)]
        assert all(0 <= a <= b <= final for a, b in itertools.pairwise(found))
        assert found[-1] == final


SELECTIONS = [(kind.name, "unstructured", "one_shot") for kind in SCORES]
SELECTIONS += [("magnitude", kind.name, "one_shot") for kind in PATTERNS]
SELECTIONS += [("magnitude", "unstructured", kind.name) for kind in SCHEDULES]


@pytest.mark.parametrize(("score", "pattern", "schedule"), SELECTIONS)
def test_a_sparsifier_of_any_configured_parts_masks(score, pattern, schedule, case):
    model, batches = case

    def node(group, name):
        text = (Path(conf.__file__).parent / group / f"{name}.yaml").read_text()
        return yaml.safe_load(text.replace("${seed}", "0"))

    parts = {"score": ("weight_score", score), "pattern": ("pattern", pattern),
             "schedule": ("sparsity_schedule", schedule)}  # fmt: skip
    parts = {name: build(node(*place), name) for name, place in parts.items()}
    hook = Sparsifier(0.5, task=TASK, batches=batches, **parts)
    assert isinstance(hook, TrainingHook)
    assert isinstance(hook, Sparsifier)
    assert json.loads(json.dumps(hook.settings())) == hook.settings()
    with torch.no_grad():
        hook.attach(model, 0, 8)
        for step in range(1, 9):
            hook.after_step(model, step)
    assert hook.settled(8)
    assert density_of(model).total == pytest.approx(0.5, abs=0.1)
