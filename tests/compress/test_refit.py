"""Refit, batch-norm statistics and bias correction against closed forms."""

import copy
import logging

import numpy as np
import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional as F
from zoo import ZOO, build

from compress import CompressError, CompressionPlan, DataError, PlanError, analyze, apply_plan
from compress.batch_norm import pooled_moments, reestimate_batch_norm_
from compress.graph import layers_of
from compress.layer_repair import Rows
from compress.least_squares import RIDGES, solve_change
from compress.low_rank import Factorization, factorize
from compress.patches import linear_map
from compress.recovery import recover_


def seeded(seed: int = 0) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def randomised(model: nn.Module, seed: int = 0) -> nn.Module:
    """The model in float64 with weights and norm statistics of this seed, in evaluation mode."""
    generator = seeded(seed)
    model = model.double().eval()
    with torch.no_grad():
        for name, value in (*model.named_parameters(), *model.named_buffers()):
            if not value.is_floating_point():
                continue
            fan_in = max(1, value[0].numel())
            value.copy_(torch.randn(value.shape, generator=generator, dtype=torch.float64) / fan_in**0.5)
            if name.endswith("running_var"):
                value.copy_(value.abs() + 0.5)
    return model


def images(n: int, channels: int = 3, size: int = 6, seed: int = 1) -> Tensor:
    return torch.randn(n, channels, size, size, generator=seeded(seed), dtype=torch.float64)


def pruned(model: nn.Module, x: Tensor, ids: list[str]) -> tuple:
    structure = analyze(model, x[:2])
    plan = CompressionPlan.removing(structure.units, ids)
    return structure, plan, apply_plan(structure, plan)


class Mixed(nn.Module):
    """Channel 2 of the first conv is twice channel 0 minus channel 1, before and after batch norm; no ReLU follows."""

    def __init__(self, groups: int = 1, kernel: int = 3, norm: bool = False) -> None:
        super().__init__()
        self.conv1 = nn.Conv2d(3, 4, 3, padding=1)
        self.conv2 = nn.Conv2d(4, 4, kernel, stride=2, padding=2, dilation=2, groups=groups, bias=not norm)
        self.bn = nn.BatchNorm2d(4) if norm else nn.Identity()
        self.head = nn.Linear(4, 5)

    def forward(self, x: Tensor) -> Tensor:
        return self.head(F.relu(self.bn(self.conv2(self.conv1(x)))).mean((2, 3)))


@pytest.mark.parametrize("norm", [False, True])
def test_a_channel_that_the_others_can_make_up_for_leaves_no_error(norm: bool) -> None:
    # Without padding in conv2 the relation holds at every position that it reads.
    model = randomised(Mixed(norm=norm))
    model.conv2.padding = (0, 0)
    with torch.no_grad():
        for value in (model.conv1.weight, model.conv1.bias):
            value[2] = 2 * value[0] - value[1]
    x = images(64)
    _, plan, small = pruned(model, x, ["conv1:out[2]"])
    fresh = images(20, seed=9)
    assert (small(fresh) - model(fresh)).abs().max() > 1e-2
    report = recover_(small, model, [x[:32], x[32:]], steps=("refit",), relu_steps=0, ridge=1e-12)
    torch.testing.assert_close(small(fresh), model(fresh), rtol=0, atol=1e-7)
    assert report.layers[0].layer == "conv2"
    assert report.layers[0].error_after < 1e-14 < report.layers[0].error_before
    assert plan is small.meta["plan"]


def test_linear_refit_is_the_least_squares_solution() -> None:
    torch.set_default_dtype(torch.float64)
    try:
        model = randomised(nn.Sequential(nn.Linear(6, 5), nn.Tanh(), nn.Linear(5, 3)))
    finally:
        torch.set_default_dtype(torch.float32)
    x = torch.randn(50, 6, generator=seeded(3), dtype=torch.float64)
    _, _, small = pruned(model, x, ["0:out[1]", "0:out[4]"])
    recover_(small, model, [x], steps=("refit",), ridge=1e-13)
    hidden = torch.tanh(model[0](x))[:, [0, 2, 3]].detach()
    rows = torch.cat([hidden, torch.ones(50, 1, dtype=torch.float64)], 1)
    expected = torch.linalg.lstsq(rows, model(x).detach()).solution
    found = torch.cat([small.get_parameter("2.weight").T, small.get_parameter("2.bias")[None]])
    torch.testing.assert_close(found.detach(), expected, rtol=1e-7, atol=1e-8)


def test_the_change_with_a_penalty_is_the_ridge_solution() -> None:
    x, current, target = (torch.randn(2, 30, k, generator=seeded(k), dtype=torch.float64) for k in (4, 3, 3 + 0))
    change = solve_change(x, current, target + 1, ridge=0.1, offset=False)
    for g in range(2):
        gram = x[g].T @ x[g]
        penalty = 0.1 * gram.diagonal().mean() * torch.eye(4, dtype=torch.float64)
        expected = torch.linalg.solve(gram + penalty, x[g].T @ (target[g] + 1 - current[g]))
        torch.testing.assert_close(change.matrix[g], expected, rtol=1e-8, atol=1e-10)
    assert not change.offset.any()


def test_the_penalty_is_the_one_that_predicts_the_other_half_best() -> None:
    x = torch.randn(1, 40, 12, generator=seeded(1), dtype=torch.float64)
    target = x[:, :, :1] + 3 * torch.randn(1, 40, 1, generator=seeded(2), dtype=torch.float64)
    errors = {}
    for ridge in RIDGES:
        halves = x.tensor_split(2, dim=1), target.tensor_split(2, dim=1)
        error = 0.0
        for a, b in ((0, 1), (1, 0)):
            change = solve_change(halves[0][a], 0 * halves[1][a], halves[1][a], ridge=ridge, offset=True)
            predicted = halves[0][b] @ change.matrix + change.offset
            error += float((halves[1][b] - predicted).square().sum())
        errors[ridge] = error
    found = solve_change(x, 0 * target, target, ridge=None, offset=True)
    assert found.ridge == min(errors, key=errors.__getitem__)
    assert found.ridge == max(RIDGES)  # as good as no signal
    exact = solve_change(x, 0 * target, x @ torch.ones(12, 1, dtype=torch.float64), ridge=None, offset=True)
    assert exact.ridge == min(RIDGES)
    single = solve_change(x[:, :1], 0 * target[:, :1], target[:, :1], ridge=None, offset=True)
    assert torch.isfinite(single.matrix).all()


def test_before_a_relu_only_positive_parts_need_agree() -> None:
    x = torch.randn(1, 200, 3, generator=seeded(5), dtype=torch.float64)
    target = x @ torch.randn(1, 3, 2, generator=seeded(6), dtype=torch.float64)
    spoilt = torch.where(target < 0, target - 5, target)
    plain = solve_change(x, torch.zeros_like(target), spoilt, ridge=1e-12, offset=True)
    aware = solve_change(x, torch.zeros_like(target), spoilt, ridge=1e-12, offset=True, limits=(0.0, np.inf), steps=300)
    assert plain.error_after > 0.1
    assert aware.error_after < 1e-4
    settings = {"ridge": 1e-12, "offset": True, "limits": (0.0, np.inf)}
    errors = [solve_change(x, torch.zeros_like(target), spoilt, steps=n, **settings).error_after for n in (1, 2, 5, 20)]
    assert errors == sorted(errors, reverse=True)


@pytest.mark.parametrize(
    ("layer", "shape"),
    [(nn.Conv2d(4, 6, (3, 2), stride=(2, 1), padding=(1, 2), dilation=(1, 2)), (4, 7, 6)),
     (nn.Conv2d(4, 8, 3, padding="same", groups=2, bias=False), (4, 5, 5)),
     (nn.Conv2d(4, 4, 3, padding="valid", groups=4, bias=False), (4, 6, 6)),
     (nn.Conv1d(4, 6, 3, stride=2, padding=1), (4, 9)),
     (nn.Conv3d(2, 3, 2, dilation=2), (2, 4, 5, 4)),
     (nn.Linear(4, 5), (3, 4))])  # fmt: skip
def test_rows_times_matrix_is_the_layer(layer: nn.Module, shape: tuple[int, ...]) -> None:
    layer = layer.double()
    x = torch.randn(3, *shape, generator=seeded(), dtype=torch.float64)
    node = next(n for n in analyze(layer, x).traced.graph.nodes if n.op == "call_function" and "sym" not in n.name)
    how = linear_map(node, layer.weight)
    y = layer(x)
    bias = 0 if layer.bias is None else layer.bias.view(how.groups, 1, -1)
    torch.testing.assert_close(how.input_rows(x, y.shape) @ how.matrix(layer.weight) + bias, how.output_rows(y))
    assert torch.equal(how.weight(how.matrix(layer.weight), layer.weight.shape), layer.weight)
    chosen = torch.tensor([1, 0])
    some = how.input_rows(x, y.shape, chosen) @ how.matrix(layer.weight) + bias
    torch.testing.assert_close(some, how.output_rows(y, chosen))


class Residual(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.stem = nn.Conv2d(3, 6, 3, padding=1, bias=False)
        self.conv1 = nn.Conv2d(6, 8, 3, padding=1, bias=False)
        self.bn1 = nn.BatchNorm2d(8)
        self.depthwise = nn.Conv2d(8, 8, 3, padding=1, groups=8, bias=False)
        self.conv2 = nn.Conv2d(8, 6, 1, bias=False)
        self.bn2 = nn.BatchNorm2d(6)
        self.head = nn.Linear(6, 4)

    def forward(self, x: Tensor) -> Tensor:
        x = torch.relu_(self.stem(x))
        y = self.depthwise(torch.relu_(self.bn1(self.conv1(x))))
        y = self.bn2(self.conv2(y))
        y += x
        return self.head(torch.relu_(y).mean((2, 3)))


@pytest.mark.parametrize("layers", ["changed", "consumers"])
def test_residual_net_gets_closer_and_values_on_the_way_are_the_models_own(layers: str) -> None:
    model = randomised(Residual())
    x = images(80)
    ids = ["conv1:out[1]", "conv1:out[5]", "stem:out[2]"]
    structure, plan, small = pruned(model, x, ids)
    fresh = images(40, seed=4)
    before = (small(fresh) - model(fresh)).square().mean()
    random_state = torch.get_rng_state()
    report = recover_(small, structure, [(x[:50], "label"), (x[50:], "label")], layers=layers, max_rows=2000)
    assert torch.equal(torch.get_rng_state(), random_state)
    assert (small(fresh) - model(fresh)).square().mean() < 0.3 * before
    assert all(repair.error_after <= repair.error_before for repair in report.layers)
    # The classifier is the last to be refitted: its error in the report is the model's, all rows being used.
    if layers == "changed":
        error = (small(x) - model(x)).square().mean() / model(x).var(correction=0)
        assert report.layers[-1].error_after == pytest.approx(error.item(), rel=1e-6)
    again = apply_plan(structure, plan)
    recover_(again, structure, [x[:50], x[50:]], layers=layers, max_rows=2000)
    assert all(torch.equal(a, b) for a, b in zip(small.parameters(), again.parameters(), strict=True))


def test_a_layer_in_the_residual_stream_corrects_the_stream() -> None:
    model = randomised(Residual())
    x = images(100)
    errors = {}
    for through_sums in (False, True):
        structure, _, small = pruned(model, x, ["conv1:out[1]", "stem:out[2]", "stem:out[0]"])
        recover_(small, structure, [x], steps=("refit",), through_sums=through_sums)
        errors[through_sums] = (small(x) - model(x)).square().mean().item()
    assert errors[True] < errors[False]


def test_batch_norm_statistics_are_the_pooled_ones() -> None:
    model = nn.Sequential(nn.Conv2d(3, 4, 3), nn.BatchNorm2d(4), nn.ReLU(), nn.Conv2d(4, 2, 3), nn.BatchNorm2d(2))
    model = randomised(model)
    x = images(30)
    traced = analyze(model, x[:2]).traced.module
    assert reestimate_batch_norm_(traced, [(x[:7],), (x[7:],)]) == ["1.running_mean", "4.running_mean"]
    first = model[0](x)
    torch.testing.assert_close(model[1].running_mean, first.mean((0, 2, 3)))
    torch.testing.assert_close(model[1].running_var, first.transpose(0, 1).flatten(1).var(1))
    second = model[3](model[2](F.batch_norm(first, None, None, model[1].weight, model[1].bias, training=True)))
    # Training mode normalises by the biased variance, the running one is unbiased.
    torch.testing.assert_close(model[4].running_mean, second.mean((0, 2, 3)), rtol=1e-3, atol=1e-3)
    mean, variance = pooled_moments([torch.tensor([[[1.0, 2.0]]]), torch.tensor([[[6.0, 3.0]]])])
    assert (mean.item(), variance.item()) == (3.0, pytest.approx(14 / 3))


def test_batch_norm_statistics_can_change_without_the_function() -> None:
    model = randomised(Residual())
    x = images(60)
    structure, _, small = pruned(model, x, ["conv1:out[1]", "conv1:out[2]"])
    with torch.no_grad():
        small.get_parameter("bn1.weight")[0] = 0
        small.get_parameter("conv1.weight")[1] = 0  # a dead channel
    before = small(x)
    recover_(small, structure, [x], steps=("refit",))
    refitted = small(x)
    assert (refitted - before).abs().max() > 1e-3
    other = copy.deepcopy(small)
    reestimate_batch_norm_(small, [(x,)], keep_function=True)
    torch.testing.assert_close(small(x), refitted)
    # What training mode computes agrees now (up to the biased variance), and did not before.
    small.train()
    other.train()
    gap = (small(x) - refitted).abs().max()
    assert gap < 0.02 * refitted.abs().max() < (other(x) - refitted).abs().max()


def test_bias_correction_is_exact_for_every_layers_mean() -> None:
    model = randomised(Mixed(norm=True))
    x = images(40)
    structure, _, small = pruned(model, x, ["conv1:out[0]", "conv1:out[3]"])
    report = recover_(small, structure, [x[:15], x[15:]], steps=("bias",))
    assert report.biases == ("bn.bias", "head.bias")
    torch.testing.assert_close(small(x).mean(0), model(x).mean(0))
    hooked = small.get_parameter("bn.bias")
    dense = model.bn(model.conv2(model.conv1(x))).mean((0, 2, 3))
    weight, kept = small.get_parameter("conv2.weight"), model.conv1(x)[:, [1, 2]]
    normed = F.batch_norm(F.conv2d(kept, weight, None, 2, 2, 2), model.bn.running_mean, model.bn.running_var,
                          model.bn.weight, hooked)  # fmt: skip
    torch.testing.assert_close(normed.mean((0, 2, 3)), dense)


def test_what_has_no_effect_warns(caplog: pytest.LogCaptureFixture) -> None:
    model = randomised(nn.Sequential(nn.Linear(4, 6, bias=False), nn.ReLU(), nn.Linear(6, 3, bias=False)))
    x = torch.randn(9, 4, dtype=torch.float64, generator=seeded())
    structure, _, small = pruned(model, x, ["0:out[1]"])
    with caplog.at_level(logging.WARNING):
        assert recover_(small, structure, [x], steps=("batch_norm", "bias")).norms == ()
        assert recover_(small, structure, [x], steps=()).n_examples == 0
        recover_(apply_plan(structure, CompressionPlan()), structure, [x], steps=("refit",))
    text = caplog.text
    assert all(part in text for part in ("has a bias or", "is empty", "removes nothing", "found no conv"))


class Pyramid(nn.Module):
    """One head on two levels."""

    def __init__(self) -> None:
        super().__init__()
        self.a, self.b, self.head = nn.Conv2d(3, 4, 1), nn.Conv2d(3, 4, 1), nn.Conv2d(4, 2, 1)

    def forward(self, x: Tensor) -> tuple[Tensor, Tensor]:
        return self.head(F.relu(self.a(x))), self.head(F.relu(self.b(x[:, :, ::2])))


def test_a_layer_that_is_used_twice_is_solved_for_both_uses() -> None:
    model, x = Pyramid().double().eval(), images(32)
    structure = analyze(model, x[:2])
    small = apply_plan(structure, CompressionPlan.removing(structure.units, ["a:out[0]"]))
    kept = [1, 2, 3]
    report = recover_(small, model, [x[:16], x[16:]], steps=("refit",), ridge=0.0)
    assert [repair.layer for repair in report.layers] == ["head"]
    rows, targets = [], []
    for level, hidden in enumerate((F.relu(model.a(x)), F.relu(model.b(x[:, :, ::2])))):
        rows.append(hidden[:, kept].movedim(1, -1).reshape(-1, 3))
        targets.append(model(x)[level].movedim(1, -1).reshape(-1, 2))
    rows = torch.cat([torch.cat(rows), torch.ones(sum(map(len, rows)), 1)], dim=1)
    expected = torch.linalg.lstsq(rows, torch.cat(targets)).solution
    torch.testing.assert_close(small.head.weight[:, :, 0, 0].T, expected[:3])
    torch.testing.assert_close(small.head.bias, expected[3])
    assert report.layers[0].error_after < report.layers[0].error_before


def test_what_follows_a_layer_used_twice_is_refitted_after_it() -> None:
    class Towers(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.first, self.shared, self.last = nn.Linear(5, 6), nn.Linear(6, 4), nn.Linear(4, 2)

        def forward(self, x: Tensor) -> Tensor:
            a, b = (self.shared(F.relu(self.first(part))) for part in (x, x.flip(1)))
            return self.last(torch.tanh(a) * torch.tanh(b))

    torch.manual_seed(0)
    model, x = Towers().double().eval(), torch.randn(400, 5, dtype=torch.float64)
    structure = analyze(model, x[:2])
    small = apply_plan(structure, CompressionPlan.removing(structure.units, ["first:out[1]", "first:out[4]"]))
    before = (small(x) - model(x)).square().mean()
    report = recover_(small, model, [x], steps=("refit",))
    assert [repair.layer for repair in report.layers] == ["last", "shared"]
    assert (small(x) - model(x)).square().mean() < 0.5 * before


def test_a_weight_that_is_read_in_other_ways_is_left_alone(caplog: pytest.LogCaptureFixture) -> None:
    class Tied(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.first, self.inner, self.last = nn.Linear(5, 6), nn.Linear(6, 4, bias=False), nn.Linear(6, 2)

        def forward(self, x: Tensor) -> Tensor:
            return self.last(self.inner(F.relu(self.first(x))).tanh() @ self.inner.weight)

    torch.manual_seed(0)
    model, x = Tied().double().eval(), torch.randn(50, 5, dtype=torch.float64)
    structure = analyze(model, x[:2])
    small = apply_plan(structure, CompressionPlan.removing(structure.units, ["first:out[0]"]))
    recover_(small, model, [x], steps=("refit",))
    assert "weights are read in other ways too: inner" in caplog.text


def test_modes_gradients_and_teacher_are_left_alone() -> None:
    model = randomised(Residual()).train()
    model.bn1.eval()
    x = images(20)
    _, _, small = pruned(model, x, ["conv1:out[1]"])
    small.train()
    before = {name: value.clone() for name, value in model.state_dict().items()}
    next(small.parameters()).grad = torch.ones_like(next(small.parameters()))
    recover_(small, model, [x])
    assert (small.training, model.training, model.bn1.training) == (True, True, False)
    assert all(torch.equal(value, before[name]) for name, value in model.state_dict().items())
    assert next(small.parameters()).grad.eq(1).all()
    assert all(p.grad is None for p in list(small.parameters())[1:])
    assert all(p.requires_grad for p in small.parameters())


def test_bad_input_is_refused() -> None:
    model = randomised(Residual())
    x = images(8)
    structure, plan, small = pruned(model, x, ["conv1:out[1]"])
    with pytest.raises(DataError, match="at least one calibration batch"):
        recover_(small, structure, [])
    with pytest.raises(DataError, match="NaN"):
        recover_(small, structure, [x * float("nan")])
    with pytest.raises(DataError, match="shape"):
        recover_(small, structure, [x[:, :2]])
    with pytest.raises(CompressError, match="'steps'"):
        recover_(small, structure, [x], steps=("refit", "luck"))
    with pytest.raises(CompressError, match="'layers'"):
        recover_(small, structure, [x], layers="all")
    for ridge in (-1.0, float("nan")):
        with pytest.raises(CompressError, match="'ridge' parameter of recover_ must be at least 0"):
            recover_(small, structure, [x], ridge=ridge)
    del small.meta["plan"]
    with pytest.raises(PlanError, match="Pass it as the 'plan'"):
        recover_(small, structure, [x])
    assert recover_(small, structure, [x], plan=plan).n_examples == 8
    other = randomised(nn.Sequential(nn.Conv2d(3, 4, 3), nn.Conv2d(4, 4, 3)))
    with pytest.raises(PlanError, match=r"another architecture|not a slice"):
        recover_(small, other, [x], plan=plan)


@pytest.mark.parametrize("name", ["ViT", "mobilenet_v2", "resnext", "conv1d", "InPlace", "glu"])
def test_architectures_of_the_zoo_get_closer(name: str) -> None:
    architecture = ZOO[name]
    model = build(architecture)
    structure = analyze(model, architecture.inputs(2))
    units = structure.units
    first_of_each = [units.ids[np.flatnonzero(units.group == group)[0]] for group in units.groups]
    small = apply_plan(structure, CompressionPlan.removing(units, first_of_each))
    batches = [architecture.inputs(24), architecture.inputs(40)]

    def error() -> float:
        with torch.no_grad():
            return sum((small(x) - model(x)).square().sum().item() for x in batches)

    before = error()
    report = recover_(small, structure, batches)
    assert report.layers
    assert error() < 0.5 * before


def test_halves_of_the_cross_validation_are_alternate_examples() -> None:
    """Positions of one example belong together, and an order of the data does not part the halves."""
    x = [torch.randn(3, 2, 5, generator=seeded(1)), torch.randn(2, 2, 5, generator=seeded(2))]
    layer = nn.Conv1d(2, 4, 3)
    structure = analyze(nn.Sequential(layer, nn.ReLU(), nn.Flatten(), nn.Linear(12, 2)), (x[0],))
    how = linear_map(next(iter(layers_of(structure.traced.module))).node, layer.weight)
    shapes = [torch.Size((3, 4, 3)), torch.Size((2, 4, 3))]
    rows = Rows(how, x, shapes, 1000, seeded(0))
    assert rows.second_half().tolist() == [False] * 3 + [True] * 3 + [False] * 3 + [False] * 3 + [True] * 3
    few = Rows(how, x, shapes, 10, seeded(0))
    assert few.second_half().tolist() == [False, False, True, True, False, False, False, False, True, True]
    assert few.of_inputs().shape[1] == 10


def test_the_halves_are_those_that_are_given() -> None:
    x = torch.randn(1, 60, 8, generator=seeded(1), dtype=torch.float64)
    # Rows of the two halves follow other laws: what holds between neighbours does not hold between early and late ones.
    late = torch.arange(60) >= 30
    target = torch.where(late[:, None], x[0] @ torch.ones(8, 1).double(), -x[0] @ torch.ones(8, 1).double())[None]
    start = 0 * target
    apart = solve_change(x, start, target, ridge=None, offset=False)
    mixed = torch.arange(60) % 2 == 1
    together = solve_change(x, start, target, ridge=None, offset=False, second_half=mixed)
    assert apart.ridge == max(RIDGES)
    order = torch.argsort(mixed.int(), stable=True)
    sorted_ = solve_change(x[:, order], start, target[:, order], ridge=None, offset=False)
    assert together.ridge == sorted_.ridge
    torch.testing.assert_close(together.matrix, sorted_.matrix)


class Deep(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.conv1, self.bn1 = nn.Conv2d(3, 8, 3, padding=1, bias=False), nn.BatchNorm2d(8)
        self.conv2, self.bn2 = nn.Conv2d(8, 8, 3, padding=1, bias=False), nn.BatchNorm2d(8)
        self.head = nn.Linear(8, 5)

    def forward(self, x: Tensor) -> Tensor:
        x = F.relu(self.bn1(self.conv1(x)))
        return self.head((x + self.bn2(self.conv2(x))).mean((2, 3)))


@pytest.mark.parametrize("scheme", ["channel", "spatial"])
@pytest.mark.parametrize("ids", [[], ["conv1:out[2]"]])
def test_the_second_of_two_layers_in_the_place_of_one_is_refitted(scheme: str, ids: list[str]) -> None:
    model, x = randomised(Deep()), images(32)
    structure, plan, small = pruned(model, x, ids)
    low = factorize(small, {"conv1": Factorization(4, scheme), "conv2": Factorization(5, scheme)})
    first = {name: value.clone() for name, value in low.named_parameters() if ".reduce." in name}

    def error() -> float:
        with torch.no_grad():
            return float((low(x) - model(x)).square().mean())

    before = error()
    report = recover_(low, structure, [x[:16], x[16:]], plan=plan, steps=("refit",), ridge=1e-6)
    assert [repair.layer for repair in report.layers] == ["conv1.expand", "conv2.expand", "head"]
    assert error() < 0.5 * before
    for name, value in first.items():
        torch.testing.assert_close(low.get_parameter(name), value, rtol=0, atol=0)
    # Biases of the same two, and batch norms, of a model whose graph has more calls than the dense one.
    report = recover_(low, structure, [x], plan=plan, steps=("bias", "batch_norm"))
    assert report.biases == ("bn1.bias", "bn2.bias", "head.bias")


def test_a_layer_of_full_rank_needs_no_repair() -> None:
    model, x = randomised(Deep()), images(32)
    structure, plan, small = pruned(model, x, [])
    low = factorize(small, {"conv2": Factorization(24, "spatial")})
    report = recover_(low, structure, [x], plan=plan, steps=("refit",), layers="consumers", ridge=1e-6)
    assert [repair.layer for repair in report.layers] == ["conv2.expand"]
    assert report.layers[0].error_before < 1e-20
    torch.testing.assert_close(low(x), model(x))


def test_a_graph_with_other_calls_is_no_slice() -> None:
    model, x = randomised(Deep()), images(4)
    structure, plan, small = pruned(model, x, [])
    relu = next(node for node in small.graph.nodes if "relu" in node.name)
    with small.graph.inserting_after(relu):
        twice = small.graph.call_function(relu.target, (relu,))
    relu.replace_all_uses_with(twice, delete_user_cb=lambda user: user is not twice)
    with pytest.raises(PlanError, match="not a slice of this dense model"):
        recover_(small, structure, [x], plan=plan, steps=("refit",))
