"""From a plan to the small network: settings that have no effect on it, and what the plan says then."""

import logging

import pytest
import torch
from torch import Tensor, nn

from compress.artifact import load_artifact, save_artifact
from compress.factor_formats import factorize_plan
from compress.files import read_json
from compress.formatted_weight import bake_formats, formatted_weights
from compress.graph import trace
from compress.layer_choice import LayerChoice
from compress.layer_trial import coded_bits
from compress.masking import density_of, masks_of
from compress.number_format import NumberFormat
from compress.packed_artifact import pack_artifact
from compress.plan import CompressionPlan, LayerFormat
from compress.prunable_weights import prunable_weights
from compress.splitting import part_names
from experiments.composition import compose_config
from experiments.run_dir import RunDir
from experiments.stages import Experiment
from experiments.tracker import RunInfo
from experiments.trackers.null import NullTracker


class Words(nn.Module):
    """An embedding, a linear, and an output that reads a weight for the second time."""

    def __init__(self) -> None:
        super().__init__()
        self.words, self.inner, self.end = nn.Embedding(12, 8), nn.Linear(8, 8), nn.Linear(8, 8)

    def forward(self, tokens: Tensor) -> Tensor:
        return self.end(self.end(self.inner(self.words(tokens))).relu())


@pytest.fixture
def experiment(tmp_path):
    """A function from overrides to a run of which no stage is done."""

    def begin(*overrides):
        config = compose_config(["experiment=quickstart", "debug=fast", *overrides])
        return Experiment(config, RunDir(tmp_path), NullTracker(RunInfo("shrinking", tmp_path)))

    return begin


@pytest.fixture
def words():
    torch.manual_seed(0)
    return trace(Words().eval(), torch.randint(0, 12, (4, 3))).module


def warned(caplog):
    """Messages of warnings: how much else is told depends on what was configured before."""
    return [record.getMessage() for record in caplog.records if record.levelno >= logging.WARNING]


@pytest.mark.parametrize("method", ["sweep", "exact"])
def test_what_has_no_second_moments_is_not_updated(method, experiment, words, caplog, monkeypatch):
    run, plan = experiment(f"sparsify.update={method}", "sparsify.density=0.5"), CompressionPlan()
    monkeypatch.setattr(run, "recovery_inputs", lambda: [(torch.randint(0, 12, (16, 3)),)])
    run.prune_weights(words, plan)
    assert density_of(words).layers == {"words": 1.0, "inner": 0.5, "end": 1.0}
    (message,) = warned(caplog)
    assert message.startswith("sparsify.update leaves words, end dense")
    masks = run.sparsifier(words, plan)
    masks.attach(words, 0, 10)
    assert density_of(words).layers == {"words": 1.0, "inner": 0.5, "end": 1.0}
    caplog.clear()
    run.config.sparsify.skip = ["words", "end"]
    run.prune_weights(words, plan)
    assert not warned(caplog)


def test_what_the_plan_thins_and_nothing_updates_gets_a_mask(experiment, words, caplog, monkeypatch):
    run = experiment("sparsify.update=sweep", "sparsity_schedule=one_shot")
    thin = {name: LayerFormat(8, density=0.5) for name in ("words", "inner")}
    plan = CompressionPlan(layer_formats=thin)
    monkeypatch.setattr(run, "recovery_inputs", lambda: [(torch.randint(0, 12, (16, 3)),)])
    run.prune_weights(words, plan)
    assert [message.split(" dense")[0] for message in warned(caplog)] == ["sparsify.update leaves end"]
    run.sparsifier(words, plan).attach(words, 0, 10)
    assert density_of(words).layers == {"words": 0.5, "inner": 0.5, "end": 1.0}


@pytest.mark.parametrize(("overrides", "size"), [([], 64), (["quantize.group_size=16"], 16)])
def test_a_group_has_a_size_though_none_is_said(overrides, size, experiment):
    run = experiment("quantize.granularity=group", *overrides)
    layer_format = run.in_scheme(LayerFormat(4))
    assert layer_format == LayerFormat(4, granularity="group", group_size=size)
    small = run.structure.traced.module
    prepared = run.in_formats(small, CompressionPlan(layer_formats={"fc1": layer_format}))
    (entry,) = formatted_weights(prepared)
    channels, inputs = small.get_parameter("fc1.weight").shape
    assert len(entry.module.fitted()["scale"]) == channels * -(-inputs // size)


@pytest.mark.parametrize("scope", ["layer", "global"])
def test_a_threshold_is_one_number_in_any_scope(scope, experiment, words):
    weights = {name: weight.tensor.detach().clone() for name, weight in prunable_weights(words).items()}
    run = experiment("sparsify.threshold=0.2", f"sparsify.scope={scope}")
    run.sparsifier(words, CompressionPlan()).attach(words, 0, 10)
    for name, mask in masks_of(words).items():
        assert mask.equal(weights[name].abs() >= 0.2), name


@pytest.mark.parametrize(
    ("overrides", "formats", "bits"),
    [
        ([], {"conv1": LayerFormat(8), "fc1": LayerFormat(32, "float32", density=0.5)}, 8),
        (["quantize.activation_bits=null"], {"conv1": LayerFormat(8)}, None),
        (["quantize.scheme=affine"], {"conv1": LayerFormat(8)}, None),
        (["quantize.scheme=float16"], {"conv1": LayerFormat(8)}, None),
        (["quantize.granularity=tensor"], {"conv1": LayerFormat(8)}, None),
        (["quantize.granularity=group", "quantize.group_size=4"], {"conv1": LayerFormat(8)}, None),
        (["quantize.trained_ranges=true"], {"conv1": LayerFormat(8)}, None),
        ([], {"conv1": LayerFormat(32, "float32", density=0.5)}, None),
    ],
)
def test_a_plan_says_what_activations_have(overrides, formats, bits, experiment):
    run = experiment(*overrides)
    plan = run.with_activations(CompressionPlan(layer_formats=formats))
    assert plan.activation_bits == bits
    # As a folder from before says it.
    old = CompressionPlan(layer_formats=formats, activation_bits=8)
    small = run.structure.traced.module
    assert run.final_plan(small, plan).activation_bits == bits
    if "quantize.activation_bits=null" not in overrides:
        assert run.final_plan(small, old).activation_bits == bits


def test_factors_of_few_weights_keep_their_zeros_to_the_file(experiment, tmp_path):
    run = experiment("finetune.batch_size=32")
    dense = run.structure.traced.module
    plan = CompressionPlan(layer_formats={
        "fc1": LayerFormat(4, density=0.5, rank=3), "conv2": LayerFormat(32, "float32", density=0.25, rank=2),
    })  # fmt: skip
    small = factorize_plan(dense, plan)
    parts = [part for name in plan.layer_formats for part in part_names(name)]
    sizes = {part: small.get_parameter(f"{part}.weight").numel() for part in parts}
    before = {part: small.get_parameter(f"{part}.weight").detach().clone() for part in parts}
    trained = run.tried(small, plan, 3, "trial", 0)
    for part in parts:
        share = 0.5 if part.startswith("fc1") else 0.25
        assert not trained.get_parameter(f"{part}.weight").equal(before[part])
        assert density_of(bake_formats(trained)).layers[part] == int(share * sizes[part] + 0.5) / sizes[part]
    save_artifact(tmp_path / "artifact", trained.eval(), run.final_plan(trained, plan), run.example)
    pack_artifact(tmp_path / "artifact")
    (x,) = run.example
    for path in (tmp_path / "artifact", tmp_path / "artifact" / "weights.packed"):
        module = load_artifact(path, run.structure)
        assert module(x).equal(trained(x))
        for part in parts:
            zeros = bake_formats(trained).get_parameter(f"{part}.weight") == 0
            assert not module.get_parameter(f"{part}.weight")[zeros].any()


def test_layers_are_priced_in_the_number_format_that_they_get(experiment):
    run = experiment("quantize.scheme=codebook", "quantize.bits=[4]", "budget.macs=null", "budget.coded_bytes=0.9")
    costs, plain = run.costs, run.costs.number_format
    assert plain == run.parts.oracles["layer_choice"].number_format == NumberFormat("codebook")
    assert run.in_scheme(LayerFormat(4)) == LayerFormat(4, "codebook")
    assert run.in_scheme(LayerFormat(2, "ternary")) == LayerFormat(2, "ternary")
    row = costs.layer_names.index("conv1")
    found = coded_bits(run.structure, [LayerChoice(4)], run.parts.quantizer, ["conv1"], number_format=plain)
    assert costs.coded_bits["4bit"][row] == found["4bit"][0]
    assert run.width_bench.n_choices == len(run.width_bench.layers)


@pytest.mark.parametrize("trained", ["false", "true"])
def test_a_plan_that_leaves_all_in_float_is_not_rounded(trained, experiment, caplog):
    run = experiment("rounding=gptq", f"quantize.trained_ranges={trained}")
    small = run.structure.traced.module.eval()
    plan = CompressionPlan(layer_formats={"fc1": LayerFormat(32, "float32", density=0.999)})
    low = run.in_formats(small, plan, "rounding.json")
    assert "The plan leaves every layer in float: rounding has no effect." in caplog.text
    assert run.run_dir.file("rounding.json").read_text().strip() == "[]"
    torch.testing.assert_close(low(*run.example), small(*run.example))


@pytest.mark.parametrize(("bits", "distance"), [(8, 2**-3), (32, 0.0)])
def test_floats_are_rounded_where_nothing_is_quantised(bits, distance, experiment):
    run = experiment("quantize.enabled=false", "finetune.epochs=0", f"export.float_bits={bits}")
    CompressionPlan().save(run.run_dir.file("plan.json"))
    run.compress()
    stages = read_json(run.run_dir.path / "result.json")["stages"]
    final = load_artifact(run.run_dir.path / "artifact", run.structure)
    last = stages["quantized" if bits < 32 else "fine_tuned"]
    assert last == run.metrics_of(final, "test")
    assert (last["loss"] != stages["recovered"]["loss"]) == (bits < 32) == ("quantized" in stages)
    for name in ("conv1.weight", "fc1.bias"):
        exact, value = run.structure.traced.module.get_parameter(name), final.get_parameter(name)
        assert ((value - exact).abs() <= distance * exact.abs()).all(), name
        assert value.equal(exact) == (bits == 32), name


@pytest.mark.parametrize(("lr", "harmed"), [("1e-4", False), ("5", True)])
def test_training_that_harms_what_was_repaired_is_told(lr, harmed, experiment):
    run = experiment("quantize.enabled=false", f"finetune.lr={lr}", "finetune.select=last")
    run.train_dense()
    CompressionPlan().save(run.run_dir.file("plan.json"))
    run.compress()
    told = [text for text in run.warnings if text.startswith("Fine-tuning did harm: accuracy (%) on validation data")]
    assert len(told) == harmed
    assert all(text.endswith("; lower finetune.lr.") for text in told)


@pytest.mark.parametrize(
    ("higher", "before", "after", "harmed"),
    [
        (True, (81.0, 0.60), (9.75, 2.30), True),
        (True, (81.0, 0.60), (76.0, 0.70), False),  # a few examples
        (True, (81.0, 0.60), (82.0, 0.90), False),  # surer of its errors
        (True, (9.75, 2.30), (81.0, 0.60), False),
        (False, (0.50, 0.25), (0.90, 0.81), True),
        (False, (0.90, 0.81), (0.50, 0.25), False),
        (True, (-1.0, 3.0), (-2.0, 4.0), True),
    ],
)
def test_harm_is_a_worse_metric_and_a_worse_loss(higher, before, after, harmed, experiment, monkeypatch):
    run = experiment("penalty=l0", "sparsify.density=0.5")
    monkeypatch.setattr(run.task, "higher_is_better", higher)
    run.warn_of_harm(*(dict(zip(("metric", "loss"), values, strict=True)) for values in (before, after)))
    assert len(run.warnings) == harmed
    assert all(text.endswith("lower finetune.lr or penalty.strength, or keep more weights.") for text in run.warnings)
