"""What holds of every penalty in `compress.penalties`, found by walking the package."""

import dataclasses
import functools
import inspect
import json
import re
import sys
from pathlib import Path

import pytest
import torch
from implementations import implementations
from interruption import DiesAfter, Killed
from torch import nn

import compress.penalties
import conf
from compress import ArtifactError, ClassificationTask, CompressError
from compress.attributes import copy_traced
from compress.finetuning import finetune_
from compress.graph import trace
from compress.training_hook import PreparingHook, TrainingHook

TASK = ClassificationTask()


ALL = implementations(compress.penalties, "penalty")
# What acts on weights in number formats has a model of its own in tests/compress/test_format_penalties.py.
PENALTIES = [kind for kind in ALL if not getattr(kind, "needs_formats", False)]


def batch(seed):
    generator = torch.Generator().manual_seed(seed)
    return torch.randn(8, 2, 6, 6, generator=generator), torch.randint(0, 3, (8,), generator=generator)


BATCHES = [batch(seed) for seed in range(4)]


@functools.cache
def made(traced, seed):
    with torch.random.fork_rng():
        torch.manual_seed(seed)
        model = nn.Sequential(nn.Conv2d(2, 6, 3), nn.BatchNorm2d(6), nn.ReLU(), nn.MaxPool2d(2), nn.Dropout(0.2),
                              nn.Flatten(), nn.Linear(24, 3))  # fmt: skip
    return trace(model.eval(), batch(0)[0]).module if traced else model


def make_model(traced, seed=0):
    return copy_traced(made(traced, seed)).train()


def prepared(penalty, model):
    if isinstance(penalty, PreparingHook):
        penalty.prepare(model)
    penalty.attach(model, 0, 10)
    return penalty


def test_the_package_is_walked():
    assert {kind.name for kind in PENALTIES} >= {"l1", "group_lasso", "bn_l1", "l0"}
    assert {kind.__name__ for kind in ALL} == set(compress.penalties.__all__)


@pytest.mark.parametrize("kind", PENALTIES)
class TestPenalty:
    def test_satisfies_the_seam(self, kind):
        penalty = kind()
        assert isinstance(penalty, TrainingHook)
        assert kind.__module__.rpartition(".")[2] == penalty.name
        assert json.loads(json.dumps(penalty.settings())) == penalty.settings()
        assert set(penalty.settings()) == {field.name for field in dataclasses.fields(kind) if field.init}
        with pytest.raises(CompressError, match="'strength' parameter"):
            kind(strength=float("nan"))

    def test_names_its_paper(self, kind):
        assert re.search(r"arXiv:\d{4}\.\d{5}", inspect.getdoc(kind)), "no source in the docstring"

    @pytest.mark.parametrize("traced", [False, True])
    def test_is_finite_and_its_gradient_reaches_the_model(self, kind, traced):
        model = make_model(traced)
        value = prepared(kind(strength=0.1), model).penalty(model)
        assert value.shape == ()
        assert torch.isfinite(value)
        assert value > 0
        torch.testing.assert_close(kind(strength=0.2).penalty(model), 2 * value)
        value.backward()
        gradients = [p.grad for p in model.parameters() if p.grad is not None]
        assert gradients
        assert all(torch.isfinite(gradient).all() for gradient in gradients)
        assert sum(gradient.abs().sum() for gradient in gradients) > 0

    def test_is_finite_where_weights_are_zero(self, kind):
        model = make_model(False)
        with torch.no_grad():
            for parameter in model.parameters():
                parameter.zero_()
        prepared(kind(strength=0.1), model).penalty(model).backward()
        assert all(torch.isfinite(p.grad).all() for p in model.parameters() if p.grad is not None)

    def test_is_the_same_of_a_module_and_its_graph(self, kind):
        values = [prepared(kind(), model).penalty(model) for model in (make_model(False), make_model(True))]
        torch.testing.assert_close(*values)

    @pytest.mark.parametrize("traced", [False, True])
    def test_training_leaves_everything_else_alone(self, kind, traced):
        model = make_model(traced)
        names, kinds = list(model.state_dict()), [type(module) for module in model.modules()]
        modes = [module.training for module in model.modules()]
        parameters = list(model.parameters())
        state = torch.get_rng_state()
        finetune_(model, TASK, BATCHES, hooks=[kind(strength=0.01)], epochs=1, progress=False)
        assert torch.equal(torch.get_rng_state(), state)
        assert [type(module) for module in model.modules()] == kinds
        assert [module.training for module in model.modules()] == modes
        assert list(model.state_dict()) == names
        assert all(a is b for a, b in zip(model.parameters(), parameters, strict=True))
        assert all(parameter.grad is None for parameter in parameters)

    @pytest.mark.parametrize("traced", [False, True])
    @pytest.mark.parametrize("optimizer", ["sgd", "adamw"])
    def test_killed_and_resumed_equals_uninterrupted(self, kind, traced, optimizer, tmp_path):
        settings = {"epochs": 2, "lr": 0.01, "optimizer": optimizer, "validation": BATCHES[:1], "progress": False}
        hooks = [kind(strength=0.01)]
        whole = make_model(traced)
        expected = finetune_(whole, TASK, BATCHES, hooks=hooks, **settings)
        plain = make_model(traced)
        finetune_(plain, TASK, BATCHES, **settings)
        assert any(not torch.equal(v, plain.state_dict()[name]) for name, v in whole.state_dict().items()), "no effect"
        file = tmp_path / "training.safetensors"
        settings |= {"checkpoint": file}
        broken = make_model(traced)
        with pytest.raises(Killed):
            finetune_(broken, DiesAfter(6), BATCHES, hooks=hooks, checkpoint_every_steps=1, **settings)
        assert list(broken.state_dict()) == list(whole.state_dict())
        fresh = make_model(traced, seed=3)
        torch.rand(3)
        report = finetune_(fresh, TASK, BATCHES, hooks=hooks, **settings)
        assert report.resumed
        assert report.history == expected.history
        assert all(torch.equal(v, fresh.state_dict()[name]) for name, v in whole.state_dict().items())
        with pytest.raises(ArtifactError, match="other settings"):
            finetune_(make_model(traced), TASK, BATCHES, hooks=[kind(strength=0.02)], **settings)

    def test_only_the_last_step_may_be_the_result(self, kind):
        penalty = prepared(kind(), make_model(False))
        assert [penalty.settled(step) for step in (0, 9, 10)] == [False, False, True]

    def test_has_a_config_with_all_its_settings(self, kind):
        lines = (Path(conf.__file__).parent / "penalty" / f"{kind.name}.yaml").read_text().splitlines()
        keys = {line.split(":")[0] for line in lines if line and not line.startswith("#")}
        assert keys == {"_target_", *(field.name for field in dataclasses.fields(kind) if field.init)}
        target = next(line for line in lines if line.startswith("_target_")).split(": ")[1]
        module, _, name = target.rpartition(".")
        assert getattr(sys.modules[module], name) is kind
