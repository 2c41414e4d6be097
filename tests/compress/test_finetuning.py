"""Training: schedules, distillation, choosing, checkpoints that go on bit for bit."""

import json
import logging
import math
from collections.abc import Iterator
from pathlib import Path

import pytest
import torch
from interruption import DiesAfter, Killed
from torch import Tensor, nn
from torch.nn import functional as F

from compress import (
    ArtifactError,
    ClassificationTask,
    CompressError,
    CompressionPlan,
    DataError,
    LayerFormat,
    analyze,
    evaluate,
)
from compress.attributes import copy_traced
from compress.finetuning import distillation_loss, finetune_
from compress.quantization import prepare_quantized
from compress.quantizers.minmax import MinMaxQuantizer
from compress.training_settings import learning_rate, warn_of_slow_precision

TASK = ClassificationTask()


def make_model(seed: int = 0) -> nn.Module:
    with torch.random.fork_rng():
        torch.manual_seed(seed)
        return nn.Sequential(nn.Linear(6, 12), nn.BatchNorm1d(12), nn.ReLU(), nn.Dropout(0.2), nn.Linear(12, 3))


def data(n: int, seed: int) -> tuple[Tensor, Tensor]:
    x = torch.randn(n, 6, generator=torch.Generator().manual_seed(seed))
    return x, (x @ torch.tensor([[1.0, -1, 0], [0, 1, -1], [1, 0, 1], [0, 0, 1], [1, 1, 0], [-1, 0, 0]])).argmax(1)


def train_batches(epoch: int) -> list[tuple[Tensor, Tensor]]:
    """Eight batches in an order of the epoch's own."""
    x, y = data(128, 0)
    order = torch.randperm(128, generator=torch.Generator().manual_seed(epoch))
    return [(x[rows], y[rows]) for rows in order.split(16)]


VALIDATION = [data(64, 5)]


def test_learning_rates() -> None:
    cosine = [learning_rate(step, 20, 2.0, "cosine", 0.25) for step in range(20)]
    assert cosine[:5] == pytest.approx([0.4, 0.8, 1.2, 1.6, 2.0])
    assert cosine[12] == pytest.approx(1 + math.cos(math.pi * 8 / 15))
    assert cosine[-1] == pytest.approx(0)
    cycle = [learning_rate(step, 10, 1.0, "one_cycle", 0.0) for step in range(10)]
    assert max(cycle) == cycle[2] == 1.0
    assert cycle == pytest.approx([1 / 3, 2 / 3, 1, *(0.5 * (1 + math.cos(math.pi * k / 7)) for k in range(1, 8))])
    assert learning_rate(7, 10, 0.3, "constant", 0.9) == 0.3
    assert learning_rate(0, 1, 0.3, "cosine", 0.0) == 0.3


def test_distillation_loss_by_hand() -> None:
    student, teacher = torch.tensor([[0.0, 0.0]]), torch.tensor([[2 * math.log(3.0), 0.0]])
    # At temperature 2 the teacher says (3/4, 1/4), the model (1/2, 1/2).
    expected = 4 * (0.75 * math.log(1.5) + 0.25 * math.log(0.5))
    torch.testing.assert_close(distillation_loss(student, teacher, 2.0), torch.tensor([expected]))
    assert distillation_loss(teacher, teacher, 4.0).item() == 0


def test_one_step_of_plain_sgd_is_the_gradient_step() -> None:
    model, teacher = nn.Linear(6, 3), nn.Linear(6, 3)
    batch = data(16, 1)
    before = model.weight.detach().clone()
    out = model(batch[0])
    soft = F.kl_div(F.log_softmax(out / 3, 1), F.softmax(teacher(batch[0]) / 3, 1), reduction="batchmean") * 9
    loss = 0.25 * F.cross_entropy(out, batch[1]) + 0.75 * soft
    (gradient,) = torch.autograd.grad(loss, model.weight)
    settings = {"epochs": 1, "lr": 0.1, "momentum": 0.0, "weight_decay": 0.01, "schedule": "constant"}
    report = finetune_(model, TASK, [batch], teacher=teacher, alpha=0.75, temperature=3.0, **settings)
    torch.testing.assert_close(model.weight.detach(), before - 0.1 * (gradient + 0.01 * before))
    assert report.history[0]["train_loss"] == pytest.approx(loss.item(), rel=1e-5)
    assert report.steps == 1


def test_bfloat16_rounds_the_forward_pass_alone() -> None:
    model, teacher = make_model().eval(), make_model(1)
    exact = make_model().eval()
    seen: list[torch.dtype] = []
    model[0].register_forward_hook(lambda module, args, out: seen.append(out.dtype))
    settings = {"teacher": teacher, "epochs": 1, "lr": 0.01, "alpha": 0.5}
    rounded = finetune_(model, TASK, train_batches, precision="bfloat16", **settings).history[0]["train_loss"]
    full = finetune_(exact, TASK, train_batches, **settings).history[0]["train_loss"]
    assert set(seen) == {torch.bfloat16}
    assert {p.dtype for p in model.parameters()} == {torch.float32}
    assert rounded == pytest.approx(full, rel=0.02)
    assert rounded != full


@pytest.mark.parametrize(
    ("precision", "device", "found", "warns"),
    [
        ("bfloat16", "cpu", {"architecture": "x86_64", "avx512_f": False}, True),
        ("bfloat16", "cpu", {"architecture": "x86_64", "avx512_f": True}, False),
        ("bfloat16", "cpu", {"architecture": "aarch64"}, False),
        ("bfloat16", "cuda", {"architecture": "x86_64"}, False),
        ("float32", "cpu", {"architecture": "x86_64"}, False),
    ],
)
def test_a_processor_without_bfloat16_is_told(precision, device, found, warns, monkeypatch, caplog) -> None:
    monkeypatch.setattr(torch.cpu, "get_capabilities", lambda: found)
    warn_of_slow_precision(precision, device)
    assert ("finetune.precision=float32" in caplog.text) == warns


def test_it_learns_and_leaves_everything_else_alone() -> None:
    model, teacher = make_model(), make_model(1).train()
    model[1].eval()
    first = next(model.parameters())
    first.grad = torch.ones_like(first)
    state, random_state = {k: v.clone() for k, v in teacher.state_dict().items()}, torch.get_rng_state()
    before, _ = evaluate(model, TASK, VALIDATION)
    report = finetune_(model, TASK, train_batches, epochs=8, lr=0.01, optimizer="adamw")
    assert evaluate(model, TASK, VALIDATION)[0] > max(before, 75)
    finetune_(model, TASK, train_batches, teacher=teacher, epochs=1)
    assert torch.equal(torch.get_rng_state(), random_state)
    assert (model.training, model[1].training, teacher.training) == (True, False, True)
    assert first.grad.eq(1).all()
    assert all(p.grad is None for p in list(model.parameters())[1:])
    assert all(torch.equal(value, state[name]) for name, value in teacher.state_dict().items())
    assert [entry["epoch"] for entry in report.history] == list(range(1, 9))
    assert not report.stopped_early


@pytest.mark.parametrize("kind", ["callable", "list", "iterator", "set_epoch"])
def test_kinds_of_training_batches(kind: str) -> None:
    class Epochs:
        seen: list[int] = []
        epoch = 0

        def set_epoch(self, epoch: int) -> None:
            self.epoch = epoch

        def __iter__(self) -> Iterator:
            self.seen.append(self.epoch)
            return iter(train_batches(self.epoch))

        def __len__(self) -> int:
            return 8

    one = train_batches(0)
    given = {"callable": train_batches, "list": one, "iterator": iter(one), "set_epoch": Epochs()}
    model = make_model()
    assert finetune_(model, TASK, given[kind], epochs=2).steps == 16
    if kind in ("callable", "set_epoch"):
        twin = make_model()
        finetune_(twin, TASK, lambda epoch: iter(train_batches(epoch)), epochs=2)
        assert all(torch.equal(a, b) for a, b in zip(model.parameters(), twin.parameters(), strict=True))
    if kind == "set_epoch":
        assert given[kind].seen == [0, 1]


def test_best_epoch_is_kept_and_patience_stops() -> None:
    model = make_model()
    finetune_(model, TASK, train_batches, epochs=10, lr=0.01, optimizer="adamw")
    before = {name: value.clone() for name, value in model.state_dict().items()}
    # A rate that can only spoil it: the weights of before training come back.
    report = finetune_(model, TASK, train_batches, epochs=9, lr=50.0, validation=VALIDATION, patience=2, clip_norm=1.0)
    assert report.best_epoch == 0
    assert report.stopped_early
    assert [entry["epoch"] for entry in report.history] == [0, 1, 2]
    assert all(torch.equal(value, before[name]) for name, value in model.state_dict().items())
    again = make_model(3)
    report = finetune_(again, TASK, train_batches, epochs=4, lr=0.01, optimizer="adamw", validation=VALIDATION)
    best = max(report.history, key=lambda entry: (entry["metric"], -entry["loss"]))
    assert best["epoch"] == report.best_epoch
    assert evaluate(again, TASK, VALIDATION) == (best["metric"], best["loss"])


@pytest.mark.parametrize("optimizer", ["sgd", "adamw"])
@pytest.mark.parametrize("killed_after", [3, 8, 13])
def test_killed_and_resumed_equals_uninterrupted(tmp_path: Path, optimizer: str, killed_after: int) -> None:
    settings = {"epochs": 3, "optimizer": optimizer, "validation": VALIDATION, "teacher": make_model(1), "alpha": 0.3}
    whole = make_model()
    expected = finetune_(whole, TASK, train_batches, **settings)
    file = tmp_path / "training.safetensors"
    model = make_model()
    with pytest.raises(Killed):
        finetune_(model, DiesAfter(killed_after), train_batches, checkpoint=file, checkpoint_every_steps=2, **settings)
    fresh = make_model(7)
    # Whatever the process drew before must not matter.
    torch.rand(5)
    steps = []
    settings["on_metrics"] = lambda _, step: steps.append(step)
    report = finetune_(fresh, TASK, train_batches, checkpoint=file, **settings)
    assert report.resumed
    assert min(steps, default=99) >= killed_after - 2
    assert (report.history, report.best_epoch, report.steps) == (expected.history, expected.best_epoch, expected.steps)
    for name, value in whole.state_dict().items():
        assert torch.equal(value, fresh.state_dict()[name]), name
    done = make_model(8)
    assert finetune_(done, TASK, train_batches, checkpoint=file, **settings).steps == 24
    assert torch.equal(done[0].weight, whole[0].weight)
    assert [path.name for path in tmp_path.iterdir()] == [file.name]


def test_checkpoint_of_something_else_is_refused(tmp_path: Path) -> None:
    file = tmp_path / "training.safetensors"
    finetune_(make_model(), TASK, train_batches, epochs=1, checkpoint=file)
    with pytest.raises(ArtifactError, match=r"other settings \(lr: 0.02, now 0.5\)"):
        finetune_(make_model(), TASK, train_batches, epochs=1, lr=0.5, checkpoint=file)
    with pytest.raises(ArtifactError, match="other settings"):
        finetune_(nn.Linear(6, 3), TASK, train_batches, epochs=1, checkpoint=file)
    file.unlink()
    teacher = make_model()
    finetune_(make_model(), TASK, train_batches, teacher=teacher, epochs=1, checkpoint=file)
    with torch.no_grad():
        next(teacher.parameters()).add_(1e-3)
    with pytest.raises(ArtifactError, match=r"other settings \(teacher"):
        finetune_(make_model(), TASK, train_batches, teacher=teacher, epochs=1, checkpoint=file)
    content = file.read_bytes()
    for damaged in (content[: len(content) // 2], b"", json.dumps({}).encode()):
        file.write_bytes(damaged)
        with pytest.raises(ArtifactError, match="damaged"):
            finetune_(make_model(), TASK, train_batches, epochs=1, checkpoint=file)


def test_tied_and_frozen_parameters(tmp_path: Path) -> None:
    class Tied(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.a, self.b, self.c = nn.Linear(6, 6), nn.Linear(6, 6), nn.Linear(6, 3)
            self.b.weight = self.a.weight
            self.c.requires_grad_(False)

        def forward(self, x: Tensor) -> Tensor:
            return self.c(F.relu(self.b(F.relu(self.a(x)))))

    model = Tied()
    frozen = model.c.weight.clone()
    finetune_(model, TASK, train_batches, epochs=1, checkpoint=tmp_path / "c.safetensors", validation=VALIDATION)
    assert model.b.weight is model.a.weight
    assert torch.equal(model.c.weight, frozen)


def test_metrics_arrive_and_settings_without_effect_warn(caplog: pytest.LogCaptureFixture) -> None:
    seen: list[tuple[dict, int]] = []
    with caplog.at_level(logging.WARNING):
        finetune_(make_model(), TASK, train_batches, epochs=2, teacher=make_model(1), alpha=0.0, patience=1,
                  on_metrics=lambda metrics, step: seen.append((metrics, step)))  # fmt: skip
    assert "no effect without validation" in caplog.text
    assert "the teacher has no effect" in caplog.text
    assert [step for metrics, step in seen if "train/loss" in metrics] == [10]
    assert [(metrics["epoch"], step) for metrics, step in seen if "train/epoch_loss" in metrics] == [(1, 8), (2, 16)]
    model = make_model()
    assert finetune_(model, TASK, train_batches, epochs=0).steps == 0
    assert torch.equal(model[0].weight, make_model()[0].weight)


@pytest.mark.parametrize(
    ("setting", "value"),
    [("epochs", -1), ("lr", 0.0), ("optimizer", "lion"), ("schedule", "step"), ("alpha", 1.5), ("temperature", 0.0),
     ("patience", 0), ("momentum", 1.0), ("warmup", 1.0), ("weight_decay", -1.0), ("clip_norm", 0.0),
     ("precision", "float16")])  # fmt: skip
def test_settings_out_of_range_are_refused(setting: str, value: object) -> None:
    with pytest.raises(CompressError, match=f"The '{setting}' parameter of finetune_ must be"):
        finetune_(make_model(), TASK, train_batches, **{setting: value})


def test_bad_data_is_refused() -> None:
    with pytest.raises(DataError, match="at least one batch"):
        finetune_(make_model(), TASK, [])
    x, y = data(8, 0)
    with pytest.raises(DataError, match="Lower the 'lr'"):
        finetune_(make_model(), TASK, [(x * float("nan"), y)])
    with pytest.raises(DataError, match="gave 1 batches"):
        finetune_(make_model(), TASK, lambda epoch: [(x, y)] * (2 - epoch), epochs=2)
    frozen = make_model().requires_grad_(False)
    with pytest.raises(CompressError, match="nothing to train"):
        finetune_(frozen, TASK, [(x, y)])


class Distance(ClassificationTask):
    """The loss is the divergence from a teacher."""

    def __init__(self, teacher: nn.Module) -> None:
        self.teacher = teacher.eval()

    def loss(self, outputs: Tensor, batch: tuple[Tensor, Tensor]) -> Tensor:
        return distillation_loss(outputs, self.teacher(batch[0]), 1.0)


def test_a_fake_quantised_model_trains_and_goes_on(tmp_path: Path) -> None:
    dense = make_model()
    finetune_(dense, TASK, train_batches, epochs=8, lr=0.01, optimizer="adamw")
    plan = CompressionPlan(layer_formats={"0": LayerFormat(2), "4": LayerFormat(2)}, activation_bits=8)
    structure = analyze(dense.eval(), VALIDATION[0][0])
    batches = [(x,) for x, _ in train_batches(0)]
    model = prepare_quantized(structure.traced.module, plan, batches, MinMaxQuantizer())
    # The straight-through steps lower what is minimised, with dropout off: the distance to the teacher's logits.
    _, before = evaluate(model, Distance(dense), train_batches(0))
    settings = {"teacher": dense, "epochs": 4, "lr": 0.01, "optimizer": "adamw", "alpha": 1.0, "temperature": 1.0}
    finetune_(model, TASK, train_batches, **settings)
    assert evaluate(model, Distance(dense), train_batches(0))[1] < before
    file = tmp_path / "qat.safetensors"
    settings |= {"alpha": 0.9}
    twin = copy_traced(model)
    finetune_(model, TASK, train_batches, **settings)
    with pytest.raises(Killed):
        finetune_(twin, DiesAfter(11), train_batches, checkpoint=file, checkpoint_every_steps=1, **settings)
    finetune_(twin, TASK, train_batches, checkpoint=file, **settings)
    assert all(torch.equal(a, b) for a, b in zip(model.parameters(), twin.parameters(), strict=True))


class _Halving:
    """Halves the weights after every step, adds a constant to the loss, and lets no step before the third count."""

    name = "halving"

    def __init__(self):
        self.seen = []

    def settings(self):
        return {"by": 0.5}

    def attach(self, model, step, total_steps):
        self.seen.append(("attach", step, total_steps))

    def penalty(self, model):
        return torch.tensor(100.0)

    def after_step(self, model, step):
        self.seen.append(("step", step))
        for parameter in model.parameters():
            parameter.mul_(0.5)

    def settled(self, step):
        return step >= 3


def test_a_hook_adds_its_penalty_is_called_after_every_step_and_says_which_models_may_be_the_result():
    torch.manual_seed(0)
    model, hook = nn.Linear(4, 3), _Halving()
    before = model.weight.detach().clone()
    batches = [(torch.randn(8, 4), torch.randint(0, 3, (8,)))]
    report = finetune_(model, ClassificationTask(), batches, epochs=4, lr=1e-9, hooks=[hook], validation=batches)
    assert hook.seen == [("attach", 0, 4), *(("step", step) for step in (1, 2, 3, 4))]
    assert report.history[1]["train_loss"] > 100
    assert report.best_epoch >= 3
    torch.testing.assert_close(model.weight, before * 0.5**report.best_epoch, atol=1e-6, rtol=1e-5)
