"""What holds of every distillation in `compress.distillations`, found by walking the package."""

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

import compress.distillations
import conf
from compress import ArtifactError, ClassificationTask, CompressionPlan, analyze, apply_plan
from compress.distillation import Distillation
from compress.distiller import Distiller
from compress.finetuning import finetune_

TASK = ClassificationTask()


DISTILLATIONS = implementations(compress.distillations, "regressors")


def make_model(seed, width=6):
    with torch.random.fork_rng():
        torch.manual_seed(seed)
        return nn.Sequential(nn.Conv2d(2, width, 3), nn.BatchNorm2d(width), nn.ReLU(), nn.MaxPool2d(2), nn.Dropout(0.2),
                             nn.Conv2d(width, width, 2), nn.ReLU(), nn.Flatten(), nn.Linear(width, 3))  # fmt: skip


def batch(seed):
    generator = torch.Generator().manual_seed(seed)
    return torch.randn(8, 2, 6, 6, generator=generator), torch.randint(0, 3, (8,), generator=generator)


@functools.cache
def traced():
    return analyze(make_model(1).eval(), batch(0)[0])


def make_student(kind):
    """A traced, pruned network; a smaller one; or a twin of the teacher."""
    if kind == "pruned":
        units = traced().units
        gone = [unit for unit in units.ids if unit.endswith(("[0]", "[3]")) and "out" in unit]
        return apply_plan(traced(), CompressionPlan.removing(units, gone)).train()
    return make_model(1, 4 if kind == "narrow" else 6)


STUDENTS = ("pruned", "narrow", "twin")
BATCHES = [batch(seed) for seed in range(4)]


def test_the_package_is_walked():
    assert {kind.name for kind in DISTILLATIONS} >= {"logits", "hints", "attention", "relation"}
    assert {kind.__name__ for kind in DISTILLATIONS} == set(compress.distillations.__all__)


@pytest.mark.parametrize("kind", DISTILLATIONS)
class TestDistillation:
    def test_satisfies_the_seam(self, kind):
        distillation = kind()
        assert isinstance(distillation, Distillation)
        assert distillation.reads in ("outputs", "layers", "maps")
        assert kind.__module__.rpartition(".")[2] == distillation.name
        assert json.loads(json.dumps(distillation.settings())) == distillation.settings()
        assert set(distillation.settings()) == {field.name for field in dataclasses.fields(kind)}
        with pytest.raises(dataclasses.FrozenInstanceError):
            distillation.weight = 2.0

    def test_names_its_paper(self, kind):
        assert re.search(r"arXiv:\d{4}\.\d{4,5}", inspect.getdoc(kind)), "no source in the docstring"

    @pytest.mark.parametrize("student", STUDENTS)
    def test_is_finite_and_its_gradient_reaches_the_student(self, kind, student):
        model, teacher, x = make_student(student), make_model(0).eval(), batch(0)[0]
        distiller = Distiller(kind(), model, teacher, (x,), 0)
        loss = distiller.loss(distiller.student(x), distiller.teacher(x))
        assert loss.shape == ()
        assert torch.isfinite(loss)
        assert loss > 0
        loss.backward()
        reached = [p.grad for p in model.parameters() if p.grad is not None]
        assert reached
        assert all(torch.isfinite(gradient).all() for gradient in reached)
        assert sum(gradient.abs().sum() for gradient in reached) > 0

    def test_a_twin_in_agreement_loses_nothing_and_stays(self, kind):
        teacher, x = make_model(0).eval(), batch(0)[0]
        model = make_model(0).eval()
        distiller = Distiller(kind(), model, teacher, (x,), 0)
        loss = distiller.loss(distiller.student(x), distiller.teacher(x))
        assert abs(loss.item()) < 1e-6
        loss.backward()
        assert all(p.grad.abs().max() < 1e-5 for p in model.parameters() if p.grad is not None)

    @pytest.mark.parametrize("student", STUDENTS)
    def test_training_leaves_everything_else_alone(self, kind, student):
        model, teacher = make_student(student), make_model(0).train()
        names, before = list(model.state_dict()), {k: v.clone() for k, v in teacher.state_dict().items()}
        modes = [module.training for module in (*model.modules(), *teacher.modules())]
        state = torch.get_rng_state()
        finetune_(model, TASK, BATCHES, teacher=teacher, distillation=kind(), epochs=1, progress=False)
        assert torch.equal(torch.get_rng_state(), state)
        assert [module.training for module in (*model.modules(), *teacher.modules())] == modes
        assert list(model.state_dict()) == names, "what is trained beside the student is no part of it"
        assert all(p.grad is None for p in (*model.parameters(), *teacher.parameters()))
        assert all(torch.equal(value, before[name]) for name, value in teacher.state_dict().items())
        assert not any(module._forward_hooks for module in (*model.modules(), *teacher.modules()))

    # Another contract holds every optimizer to it.
    @pytest.mark.parametrize(("student", "optimizer"), [*((s, "adamw") for s in STUDENTS), ("pruned", "sgd")])
    def test_killed_and_resumed_equals_uninterrupted(self, kind, student, optimizer, tmp_path):
        settings = {"teacher": make_model(0), "distillation": kind(), "epochs": 2, "lr": 0.01, "optimizer": optimizer,
                    "validation": BATCHES[:1], "progress": False, "alpha": 0.7}  # fmt: skip
        whole = make_student(student)
        expected = finetune_(whole, TASK, BATCHES, **settings)
        file = tmp_path / "training.safetensors"
        with pytest.raises(Killed):
            finetune_(
                make_student(student), DiesAfter(6), BATCHES, checkpoint=file, checkpoint_every_steps=1, **settings
            )
        fresh = make_student(student)
        torch.rand(3)
        report = finetune_(fresh, TASK, BATCHES, checkpoint=file, **settings)
        assert report.resumed
        assert report.history == expected.history
        assert all(torch.equal(v, fresh.state_dict()[name]) for name, v in whole.state_dict().items())
        with pytest.raises(ArtifactError, match="other settings"):
            finetune_(fresh, TASK, BATCHES, checkpoint=file, **{**settings, "distillation": None})

    def test_learns_what_it_asks_for(self, kind):
        model, teacher = make_student("twin"), make_model(0)
        settings = {"teacher": teacher, "distillation": kind(), "alpha": 1.0, "lr": 0.01, "optimizer": "adamw"}
        history = finetune_(model, TASK, BATCHES, epochs=20, progress=False, **settings).history
        assert history[-1]["train_loss"] < 0.8 * history[0]["train_loss"]

    def test_has_a_config_with_all_its_settings(self, kind):
        lines = (Path(conf.__file__).parent / "distillation" / f"{kind.name}.yaml").read_text().splitlines()
        keys = {line.split(":")[0] for line in lines if line and not line.startswith("#")}
        assert keys == {"_target_", *(field.name for field in dataclasses.fields(kind))}
        target = next(line for line in lines if line.startswith("_target_")).split(": ")[1]
        module, _, name = target.rpartition(".")
        assert getattr(sys.modules[module], name) is kind
