"""What each distillation compares, by hand; how layers are paired; a student of another architecture."""

import logging
import math
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file
from torch import nn

from compress import ClassificationTask, CompressError, CompressionPlan, LayerFormat, apply_plan, find_units
from compress.distillation import Said
from compress.distillations import AttentionDistillation, HintDistillation, LogitDistillation, RelationDistillation
from compress.distiller import Distiller
from compress.finetuning import finetune_
from compress.quantization import prepare_quantized
from compress.quantizers.minmax import MinMaxQuantizer
from experiments.teacher import RememberingTeacher

TASK = ClassificationTask()
NONE = nn.ModuleList()


def block(channels: int, wide: int) -> nn.Module:
    return nn.Sequential(nn.Conv2d(channels, wide, 3, padding=1), nn.BatchNorm2d(wide), nn.ReLU())


class Net(nn.Module):
    """Two stages of different size, then a hidden layer."""

    def __init__(self, width: int = 6) -> None:
        super().__init__()
        self.stage1, self.stage2 = block(2, width), block(width, width)
        self.pool, self.hidden, self.head = nn.MaxPool2d(2), nn.Linear(width, 5), nn.Linear(5, 3)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        x = self.stage2(self.pool(self.stage1(x))).mean((2, 3))
        return self.head(torch.relu(self.hidden(x)))


def make_net(seed: int = 0, width: int = 6) -> nn.Module:
    with torch.random.fork_rng():
        torch.manual_seed(seed)
        return Net(width)


def images(n: int = 8, seed: int = 0) -> tuple[torch.Tensor, torch.Tensor]:
    generator = torch.Generator().manual_seed(seed)
    return torch.randn(n, 2, 6, 6, generator=generator), torch.randint(0, 3, (n,), generator=generator)


def pruned(model: nn.Module) -> nn.Module:
    units = find_units(model, images(2)[0])
    gone = [unit for unit in units.ids if unit.endswith(("[0]", "[2]")) and "stage" in unit]
    assert gone
    return apply_plan(model, CompressionPlan.removing(units, gone), images(2)[0])


def test_logits_by_hand() -> None:
    student, teacher = torch.tensor([[0.0, 0.0]]), torch.tensor([[2 * math.log(3.0), 0.0]])
    found = LogitDistillation(2.0).loss(Said(student), Said(teacher), NONE)
    assert found.item() == pytest.approx(4 * (0.75 * math.log(1.5) + 0.25 * math.log(0.5)), rel=1e-6)


def test_hints_by_hand() -> None:
    # Two channels at two positions are to give one channel: 1 x + 2 y + 0.5 against the hint.
    value, hint = torch.tensor([[[1.0, 2.0], [3.0, -1.0]]]), torch.tensor([[[7.0, 0.5]]])
    distillation = HintDistillation(weight=3.0)
    (regressor,) = regressors = distillation.regressors(Said(None, (value,)), Said(None, (hint,)))
    with torch.no_grad():
        regressor.weight.copy_(torch.tensor([[1.0, 2.0]]))
        regressor.bias.fill_(0.5)
    found = distillation.loss(Said(None, (value,)), Said(None, (hint,)), regressors)
    assert found.item() == pytest.approx(3.0 * ((7.5 - 7) ** 2 + (0.5 - 0.5) ** 2) / 2 / 2)
    same = distillation.regressors(Said(None, (hint,)), Said(None, (hint,)))
    assert list(same.parameters()) == []
    assert distillation.loss(Said(None, (hint + 2,)), Said(None, (hint,)), same).item() == pytest.approx(3.0 * 4 / 2)


def test_hints_average_positions_to_the_fewer() -> None:
    value, hint = torch.tensor([[[1.0, 3.0, 5.0, 7.0]]]), torch.tensor([[[2.0, 6.5]]])
    found = HintDistillation().loss(Said(None, (value,)), Said(None, (hint,)), nn.ModuleList([nn.Identity()]))
    assert found.item() == pytest.approx(0.5**2 / 2 / 2)
    flat = Said(None, (torch.ones(1, 1),))
    with pytest.raises(CompressError, match="as many dimensions of space"):
        HintDistillation().loss(flat, Said(None, (hint,)), nn.ModuleList([nn.Identity()]))


def test_attention_by_hand() -> None:
    # Energies (9, 16) and (16, 9): maps (9, 16) / sqrt(337) and the reverse.
    student = torch.tensor([[[3.0, 0.0], [0.0, -4.0]]])
    teacher = torch.tensor([[[4.0, 3.0]]])
    found = AttentionDistillation(weight=10.0).loss(Said(None, (student,)), Said(None, (teacher,)), NONE)
    assert found.item() == pytest.approx(10 * 2 * 49 / 337, rel=1e-6)
    # With p = 1: (3, 4) / 5 against (4, 3) / 5.
    found = AttentionDistillation(p=1.0).loss(Said(None, (student,)), Said(None, (teacher,)), NONE)
    assert found.item() == pytest.approx(2 * 0.04, rel=1e-6)
    silent = torch.zeros(1, 2, 2, requires_grad=True)
    AttentionDistillation().loss(Said(None, (silent,)), Said(None, (teacher,)), NONE).backward()
    assert torch.isfinite(silent.grad).all()


def test_relations_by_hand() -> None:
    # Student: sides 3, 4, 5 (mean 4), a right angle at the origin. Teacher: 0, 1, 3 on a line: 1, 2, 3 (mean 2).
    student = torch.tensor([[0.0, 0.0], [3.0, 0.0], [0.0, 4.0]])
    teacher = torch.tensor([[0.0], [1.0], [3.0]])
    found = RelationDistillation(angle=0.0).loss(Said(student), Said(teacher), NONE)
    # Pairs (0,1), (0,2), (1,2): 3/4 - 1/2, 4/4 - 3/2, 5/4 - 2/2; all below one, where Huber is half the square.
    assert found.item() == pytest.approx((0.25**2 + 0.5**2 + 0.25**2) / 2 / 3, rel=1e-6)
    found = RelationDistillation(distance=0.0, angle=1.0).loss(Said(student), Said(teacher), NONE)
    # At 0: 0 against 1; at 1: 0.6 against -1 (beyond one: |d| - 0.5); at 2: 0.8 against 1.
    assert found.item() == pytest.approx((0.5 + (1.6 - 0.5) + 0.2**2 / 2) / 3, rel=1e-6)


def test_relations_do_not_see_scale_shift_rotation_or_width() -> None:
    generator = torch.Generator().manual_seed(0)
    teacher = torch.randn(7, 3, generator=generator)
    turn, _ = torch.linalg.qr(torch.randn(5, 5, generator=generator))
    student = 4 * torch.cat([teacher, torch.zeros(7, 2)], 1) @ turn + 3
    assert RelationDistillation().loss(Said(student), Said(teacher), NONE).item() < 1e-10
    assert RelationDistillation().loss(Said(student.square()), Said(teacher), NONE).item() > 1e-3


@pytest.mark.parametrize("n", [1, 2, 5])
def test_relations_of_few_or_equal_examples_are_finite(n: int) -> None:
    teacher, student = torch.randn(n, 3, generator=torch.Generator().manual_seed(0)), torch.ones(n, 2)
    student.requires_grad_()
    loss = RelationDistillation(most_angles=3).loss(Said(student), Said(teacher), NONE)
    loss.backward()
    assert torch.isfinite(loss)
    assert torch.isfinite(student.grad).all()
    if n == 1:
        assert loss.item() == 0


def test_layers_are_chosen_before_the_positions_change() -> None:
    teacher = make_net()
    for student in (make_net(1), pruned(teacher)):
        distiller = Distiller(HintDistillation(), student, teacher, images()[:1], 0)
        assert distiller.pairs == (("stage1", "stage1"), ("stage2", "stage2"), ("hidden", "hidden"))
        distiller = Distiller(AttentionDistillation(), student, teacher, images()[:1], 0)
        assert distiller.pairs == (("stage1", "stage1"), ("stage2", "stage2"))
    flat = [
        nn.Sequential(nn.Linear(4, w), nn.BatchNorm1d(w), nn.ReLU(), nn.Linear(w, w), nn.Linear(w, 2)) for w in (5, 8)
    ]
    distiller = Distiller(HintDistillation(), *flat, (torch.randn(3, 4),), 0)
    assert distiller.pairs == (("0", "0"), ("3", "3"))
    assert [(r.in_features, r.out_features) for r in distiller.regressors] == [(5, 8), (5, 8)]
    with pytest.raises(CompressError, match="in common"):
        Distiller(AttentionDistillation(), *flat, (torch.randn(3, 4),), 0)


def test_a_fake_quantised_student_keeps_the_names_of_its_layers() -> None:
    teacher, (x, _) = make_net(), images()
    plan = CompressionPlan(layer_formats={"stage1.0": LayerFormat(4), "stage2.0": LayerFormat(4)}, activation_bits=8)
    student = prepare_quantized(pruned(teacher), plan, [(x,)], MinMaxQuantizer())
    distiller = Distiller(AttentionDistillation(["stage1.0", "stage2"]), student, teacher, (x,), 0)
    distiller.loss(distiller.student(x), distiller.teacher(x)).backward()
    assert student.get_parameter("stage1.0.weight").grad.abs().sum() > 0
    assert Distiller(HintDistillation(), student, teacher, (x,), 0).pairs[:2] == (
        ("stage1", "stage1"), ("stage2", "stage2")
    )  # fmt: skip


def test_wrong_layers_are_named_with_a_suggestion() -> None:
    inputs = images()[:1]
    with pytest.raises(CompressError, match=r"'stage3', which is no layer of the student.*Did you mean 'stage"):
        Distiller(HintDistillation([("stage3", "stage1")]), make_net(), make_net(), inputs, 0)
    with pytest.raises(CompressError, match=r"'haed', which is no layer of the teacher.*Did you mean 'head'"):
        Distiller(HintDistillation([("head", "haed")]), make_net(), make_net(), inputs, 0)
    with pytest.raises(CompressError, match="'hidden' of the student has no positions"):
        Distiller(AttentionDistillation(["hidden"]), make_net(), make_net(), inputs, 0)
    for pairs in ("stage1", [], [("a", "b", "c")], [3]):
        with pytest.raises(CompressError, match="'pairs' parameter of HintDistillation must be"):
            HintDistillation(pairs)


def test_one_step_is_the_gradient_step_of_model_and_regressor() -> None:
    student, teacher, (x, y) = make_net(1, width=4).eval(), make_net().eval(), images()
    distillation = HintDistillation(["stage2"])
    (regressor,) = Distiller(distillation, student, teacher, (x,), 5).regressors
    weight, before = student.stage2[0].weight, student.stage2[0].weight.detach().clone()
    twin = make_net(1, width=4).train()
    value = twin.stage2(twin.pool(twin.stage1(x)))
    hint = teacher.stage2(teacher.pool(teacher.stage1(x))).detach()
    guess = torch.einsum("bihw,oi->bohw", value, regressor.weight) + regressor.bias[:, None, None]
    out = twin.head(torch.relu(twin.hidden(value.mean((2, 3)))))
    loss = 0.75 * (guess - hint).square().mean() / 2 + 0.25 * nn.functional.cross_entropy(out, y)
    (gradient,) = torch.autograd.grad(loss, twin.stage2[0].weight)
    settings = {"epochs": 1, "lr": 0.1, "momentum": 0.0, "weight_decay": 0.0, "schedule": "constant", "seed": 5}
    report = finetune_(student, TASK, [(x, y)], teacher=teacher, distillation=distillation, alpha=0.75, **settings)
    assert report.history[0]["train_loss"] == pytest.approx(loss.item(), rel=1e-5)
    torch.testing.assert_close(weight.detach(), before - 0.1 * gradient, rtol=1e-4, atol=1e-6)
    assert "regressors" not in " ".join(student.state_dict())


def test_a_student_of_another_architecture_learns_the_hint() -> None:
    teacher, batches = make_net(), [images(16, seed) for seed in range(4)]
    with torch.random.fork_rng():
        torch.manual_seed(3)
        student = nn.Sequential(nn.Conv2d(2, 3, 3, stride=3), nn.Tanh(), nn.Flatten(), nn.Linear(12, 3))
    hints = HintDistillation([("1", "stage2")])
    settings = {"teacher": teacher, "distillation": hints, "alpha": 1.0, "lr": 0.02, "optimizer": "adamw"}
    history = finetune_(student, TASK, batches, epochs=12, **settings).history
    assert history[-1]["train_loss"] < 0.6 * history[0]["train_loss"]


def test_regressors_are_trained_and_go_into_the_checkpoint(tmp_path: Path) -> None:
    student, teacher, file = make_net(1, width=4), make_net(), tmp_path / "training.safetensors"
    # Only a bias behind the compared layer may move: what falls is the regressor's misfit.
    student.requires_grad_(False).head.bias.requires_grad_(True)
    hints = HintDistillation(["stage2"])
    settings = {"distillation": hints, "alpha": 1.0, "lr": 0.01, "optimizer": "adamw", "seed": 3, "checkpoint": file}
    history = finetune_(student, TASK, [images(32)], teacher=teacher, epochs=60, **settings).history
    assert history[-1]["train_loss"] < 0.8 * history[0]["train_loss"]
    kept = {name.removeprefix("beside/"): value for name, value in load_file(file).items() if "beside/" in name}
    fresh = Distiller(hints, student, teacher, images()[:1], 3).regressors.state_dict()
    assert kept.keys() == fresh.keys() == {"0.weight", "0.bias"}
    assert all((kept[name] - value).abs().max() > 0.01 for name, value in fresh.items())


def test_a_remembering_teacher_runs_where_its_layers_are_compared() -> None:
    dense, batches = make_net(), [images()]
    wrapper = RememberingTeacher(dense)
    students = [make_net(1), make_net(1)]
    settings = {"epochs": 3, "distillation": AttentionDistillation(weight=10.0), "progress": False}
    for student, teacher in zip(students, (dense, wrapper), strict=True):
        finetune_(student, TASK, batches, teacher=teacher, **settings)
    assert all(torch.equal(a, b) for a, b in zip(students[0].parameters(), students[1].parameters(), strict=True))
    assert wrapper.asked == 0
    finetune_(students[0], TASK, batches, teacher=wrapper, epochs=2, distillation=RelationDistillation())
    assert (wrapper.asked, wrapper.computed) == (2, 1)


def test_a_teacher_of_other_classes_is_refused() -> None:
    teacher = nn.Sequential(make_net(0), nn.Linear(make_net(0)(images()[0]).shape[1], 11))
    with pytest.raises(CompressError, match=r"The teacher gives \(\d+, 11\), the model logits of shape"):
        finetune_(make_net(), TASK, [images()], teacher=teacher, epochs=1, progress=False)


def test_settings_without_effect_warn_and_bad_ones_are_refused(caplog: pytest.LogCaptureFixture) -> None:
    with caplog.at_level(logging.WARNING):
        finetune_(make_net(), TASK, [images()], epochs=0, distillation=HintDistillation())
    assert "'distillation' parameter of finetune_ has no effect" in caplog.text
    for make in (
        lambda: LogitDistillation(0.0),
        lambda: HintDistillation(weight=-1.0),
        lambda: AttentionDistillation(p=0.0),
        lambda: RelationDistillation(angle=float("nan")),
        lambda: RelationDistillation(most_angles=2),
    ):
        with pytest.raises(CompressError, match=r"The '\w+' parameter of \w+Distillation must be"):
            make()
