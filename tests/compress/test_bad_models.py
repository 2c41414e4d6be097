"""What find_units, simulate_plan and apply_plan say to models, inputs and plans that cannot be right."""

import logging
import warnings

import pytest
import torch
from torch import Tensor, nn

import compress
from compress import CompressionPlan, DataError, PlanError, TraceError
from compress.exporters.onnx import export_onnx


def network(width: int = 4) -> nn.Module:
    return nn.Sequential(nn.Linear(3, width), nn.ReLU(), nn.Linear(width, 4), nn.ReLU(), nn.Linear(4, 2))


class Branches(nn.Module):
    """A Python branch on a value."""

    def __init__(self) -> None:
        super().__init__()
        self.fc = nn.Linear(3, 2)
        self.register_buffer("calls", torch.zeros(1))

    def forward(self, x: Tensor) -> Tensor:
        self.calls += 1
        return self.fc(x) if x.sum() > 0 else x[:, :2]


def test_nan_weights_are_named() -> None:
    model = network()
    with torch.no_grad():
        model[2].weight[0, 0] = float("nan")
    with pytest.raises(DataError, match=r"'2\.weight' has NaN or infinite"):
        compress.find_units(model, torch.randn(2, 3))


def test_nan_statistics_are_named() -> None:
    model = nn.Sequential(nn.Conv1d(3, 4, 1), nn.BatchNorm1d(4))
    model[1].running_var[2] = float("nan")
    with pytest.raises(DataError, match=r"'1\.running_var' has NaN"):
        compress.find_units(model, torch.randn(2, 3, 5))


@pytest.mark.parametrize(
    ("inputs", "message"),
    [
        (torch.zeros(0, 3), "empty"),
        (torch.full((2, 3), float("inf")), "NaN or infinite"),
        ((), "at least one tensor"),
        ("text", "at least one tensor"),
    ],
)
def test_unusable_inputs(inputs: object, message: str) -> None:
    with pytest.raises(DataError, match=message):
        compress.find_units(network(), inputs)


@pytest.mark.parametrize(
    ("inputs", "message"),
    [
        (torch.randn(2, 5), "does not run on the example inputs.*cannot be multiplied"),
        ({"x": torch.randn(2, 3)}, "unexpected keyword"),
        ((torch.randn(2, 3), torch.randn(2, 3)), "positional arguments"),
        (torch.ones(2, 3, dtype=torch.long), "dtype"),
    ],
)
def test_inputs_that_do_not_fit(inputs: object, message: str) -> None:
    with pytest.raises(TraceError, match=message):
        compress.find_units(network(), inputs)


def test_untraceable_model_is_one_clear_error(capfd: pytest.CaptureFixture[str]) -> None:
    model = Branches().train()
    state = torch.random.get_rng_state()
    with pytest.raises(TraceError, match=r"Branches could not be traced .* at test_bad_models\.py:\d+ \(return"):
        compress.find_units(model, torch.randn(2, 3, generator=torch.Generator().manual_seed(0)))
    assert capfd.readouterr() == ("", "")
    assert logging.root.manager.disable == 0
    assert model.training
    assert model.calls.item() == 0
    assert torch.equal(state, torch.random.get_rng_state())


class Loop(nn.Module):
    """Goes through its examples one by one."""

    def __init__(self) -> None:
        super().__init__()
        self.a, self.b = nn.Linear(3, 6), nn.Linear(6, 2)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return torch.stack([self.b(self.a(example).relu()).mean(0) for example in x])


def test_a_forward_that_fixes_the_batch_is_told_and_refuses_others(caplog, tmp_path) -> None:
    model, x = Loop().eval(), torch.randn(4, 5, 3)
    structure = compress.analyze(model, x)
    assert "The forward of Loop fixes the first dimension of its input at 4" in caplog.text
    assert structure.traced.fixed_batch == 4
    small = compress.apply_plan(structure, compress.CompressionPlan.removing(structure.units, ["a:out[0]"]))
    assert small(x).shape == (4, 2)
    for module in (structure.traced.module, small):
        with pytest.raises(AssertionError, match="takes a first dimension of 4 alone"):
            module(torch.randn(6, 5, 3))
    # A batch of one stays one; what is written as ONNX has that batch too.
    assert compress.analyze(model, x[:1]).traced.fixed_batch == 1
    assert not export_onnx(small, x, tmp_path / "loop.onnx").dynamic_batch
    assert compress.analyze(network(), torch.randn(2, 3)).traced.fixed_batch is None


@pytest.mark.parametrize("name", ["code", "graph", "meta"])
def test_names_that_torch_fx_keeps_are_told(name: str) -> None:
    model = nn.Sequential(nn.Linear(3, 4))
    model.add_module(name, nn.Linear(4, 2))
    with pytest.raises(TraceError, match=f"is called '{name}', a name that torch.fx keeps for itself"):
        compress.find_units(model, torch.randn(2, 3))


@pytest.mark.parametrize("layer", [nn.LazyLinear(4), nn.Linear(3, 4, device="meta")])
def test_parameters_without_values_are_named(layer: nn.Module) -> None:
    with pytest.raises(DataError, match="has no values yet"):
        compress.find_units(nn.Sequential(layer), torch.randn(2, 3))


def test_autocast_within_the_forward_is_named() -> None:
    class Cast(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.a, self.b = nn.Linear(3, 6), nn.Linear(6, 2)

        def forward(self, x: torch.Tensor) -> torch.Tensor:
            with torch.autocast("cpu", dtype=torch.bfloat16):
                return self.b(self.a(x)).float()

    blocked = dict(compress.find_units(Cast(), torch.randn(2, 3)).blocked)
    assert "put autocast around the call" in blocked["a"]


def test_a_model_without_tensors_out() -> None:
    class Nothing(nn.Module):
        def forward(self, x: Tensor) -> list[int]:
            return x.shape[0]

    with pytest.raises(TraceError, match="returns no tensor"):
        compress.find_units(Nothing(), torch.randn(2, 3))


def test_tracing_leaves_the_model_as_found() -> None:
    class Counts(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.fc1, self.fc2, self.drop = nn.Linear(3, 4), nn.Linear(4, 2), nn.Dropout(0.5)
            self.register_buffer("calls", torch.zeros((), dtype=torch.long))

        def forward(self, x: Tensor) -> Tensor:
            self.calls.add_(1)
            return self.fc2(self.drop(torch.relu(self.fc1(x)))) + 0 * torch.randn(1)

    model = Counts()
    model.drop.eval()
    model.fc1.weight.requires_grad_(False)
    state = torch.random.get_rng_state()
    structure = compress.analyze(model, torch.randn(2, 3, generator=torch.Generator().manual_seed(0)))
    assert model.training
    assert not model.drop.training
    assert not model.fc1.weight.requires_grad
    assert model.fc2.weight.requires_grad
    assert model.calls.item() == 0
    assert torch.equal(state, torch.random.get_rng_state())
    small = compress.apply_plan(structure, CompressionPlan.removing(structure.units, ["fc1:out[0]"]))
    assert not small.get_parameter("fc1.weight").requires_grad
    assert small.get_parameter("fc2.weight").requires_grad


def test_plan_of_another_architecture() -> None:
    x = torch.randn(2, 3)
    plan = CompressionPlan.removing(compress.find_units(network(6), x), ["0:out[5]"])
    for verb in (compress.apply_plan, compress.simulate_plan):
        with pytest.raises(PlanError, match="another architecture"):
            verb(network(4), plan, x)


@pytest.mark.parametrize(
    ("name", "call"),
    [
        ("recover_", lambda model, plan, x, path: compress.recover_(model, model, [x], plan=plan)),
        ("save_artifact", lambda model, plan, x, path: compress.save_artifact(path, model, plan, x)),
        ("prepare_quantized", lambda model, plan, x, path: compress.prepare_quantized(model, plan, [x], None)),
        ("export_onnx", lambda model, plan, x, path: export_onnx(model, x, path / "a.onnx")),
    ],
)
def test_a_module_that_was_not_traced_is_told(name: str, call, tmp_path) -> None:
    model, x = network().eval(), torch.randn(2, 3)
    with pytest.raises(compress.CompressError, match=f"^{name} works on a traced module, as apply_plan returns it"):
        call(model, CompressionPlan(fingerprint=compress.find_units(model, x).fingerprint), x, tmp_path)
    assert not list(tmp_path.iterdir())


def test_what_is_no_model_and_one_id_in_place_of_a_list_are_told() -> None:
    x = torch.randn(2, 3)
    with pytest.raises(compress.CompressError, match="'model' parameter must be a"):
        compress.find_units(None, x)
    with pytest.raises(compress.CompressError, match=r"must be a list of ids, such as \['0:out\[0\]'\]"):
        CompressionPlan.removing(compress.find_units(network(), x), "0:out[0]")


def test_plan_fits_another_seed() -> None:
    x = torch.randn(2, 3)
    plan = CompressionPlan.removing(compress.find_units(network(), x), ["0:out[1]"])
    assert compress.apply_plan(network(), plan, x).get_parameter("0.weight").shape == (3, 3)


def test_plan_with_unknown_units() -> None:
    x = torch.randn(2, 3)
    model = network()
    with pytest.raises(compress.CompressError, match="Unknown unit"):
        CompressionPlan.removing(compress.find_units(model, x), ["0:out[4]"])
    # A plan by hand that mixes groups of two models carries no fingerprint: the stranger is named.
    with pytest.raises(PlanError, match=r"conv9:out\[0\].*no unit"):
        compress.apply_plan(model, CompressionPlan({"0:out": (0,), "conv9:out": (0,)}), x)


def test_plan_that_empties_a_group() -> None:
    x = torch.randn(2, 3)
    model = network()
    units = compress.find_units(model, x)
    with pytest.raises(PlanError, match="all of group '2:out'"):
        CompressionPlan.removing(units, [f"2:out[{i}]" for i in range(4)])
    with pytest.raises(PlanError, match="all of group '2:out'"):
        compress.apply_plan(model, CompressionPlan({"2:out": (0, 1, 2, 3)}), x)


@pytest.mark.parametrize("fields", [{"remove_channels": None}, {"remove_channels": {"0:out": 1}},
                                    {"layer_formats": {"0": 8}}])  # fmt: skip
def test_what_is_no_plan_is_refused_where_it_is_made(fields):
    with pytest.raises(PlanError, match="parameter of CompressionPlan must map names of"):
        CompressionPlan(**fields)


def test_plan_that_removes_a_layer() -> None:
    units = compress.find_units(network(), torch.randn(2, 3))
    with pytest.raises(PlanError, match="layer cannot be removed"):
        CompressionPlan.removing(units, ["2"])


def test_empty_plan_is_the_model_itself() -> None:
    x = torch.randn(2, 3)
    model = network()
    small = compress.apply_plan(model, CompressionPlan(), x)
    torch.testing.assert_close(small(x), model(x))


def test_a_model_with_nothing_to_remove() -> None:
    units = compress.find_units(nn.Linear(3, 2), torch.randn(2, 3))
    assert units.groups == ()
    assert units.blocked == (("weight", "it is an output of the model"),)


def test_dead_layer_is_no_obstacle() -> None:
    model = network()
    with torch.no_grad():
        model[0].weight.zero_()
        model[0].bias.fill_(-1.0)
    x = torch.randn(2, 3)
    units = compress.find_units(model, x)
    small = compress.apply_plan(model, CompressionPlan.removing(units, ["0:out[0]"]), x)
    torch.testing.assert_close(small(x), model(x))


def test_quiet_on_success() -> None:
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        compress.find_units(network(), torch.randn(1, 3))


def test_a_module_that_was_exported_is_traced_again() -> None:
    model, x = nn.Sequential(nn.Conv2d(3, 8, 3), nn.ReLU(), nn.Conv2d(8, 4, 3)), torch.randn(2, 3, 8, 8)
    exported = torch.export.export(model, (x,)).module()
    assert compress.find_units(exported, x).groups == compress.find_units(model, x).groups
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        scripted = torch.jit.trace(model, x)
    with pytest.raises(TraceError, match="Exporting a ScriptModule is not supported"):
        compress.find_units(scripted, x)
