"""What holds of every method of the catalogue, each reached by its override from one dense network and one plan."""

import copy
import inspect
import json
import re
from dataclasses import dataclass
from pathlib import Path

import pytest
import torch
from safetensors import safe_open
from torch import fx

import conf
from compress.artifact import load_artifact
from compress.budget import cost_words
from compress.counting import unit_costs
from compress.exporters.onnx import OnnxExporter
from compress.masking import density_of, masks_of
from compress.plan import SCHEME_BITS, CompressionPlan
from compress.prunable_weights import prunable_weights
from compress.rewinding import rewind_
from compress.runtimes.onnxruntime import check_export
from compress.task import evaluate
from experiments.composition import compose_config
from experiments.method_catalogue import BASE, DEFAULTS, FORMATS, GROUPS, SECTIONS, catalogue
from experiments.method_trials import MethodTrials
from experiments.run_dir import RunDir
from experiments.seeding import seeded
from experiments.stages import Experiment
from experiments.tracker import RunInfo
from experiments.trackers.null import NullTracker

# The quickstart's network at a fraction of its width, trained for a moment: what is checked holds of any.
TINY = [
    "experiment=quickstart", "debug=fast", "model.widths=[8,16,16]", "model.hidden=32", "train.epochs=1",
    "measure.sample=16", "measure.plans=0", "compare.methods=[labeler/mac]", "finetune.epochs=1", "quantize.epochs=1",
    "finetune.batch_size=128", "finetune.lr=5e-3", "quantize.lr=2e-3", "budget.weight_bytes=0.2", "export.formats=[]",
    "export.coder=zstd",
]  # fmt: skip
# Fewer steps where another contract checks what they come to; budgets that so small a network meets by what is tried.
RANKS, SPATIAL = (
    f"factorizer={name} quantize.ranks=[0.25,0.5,0.75] budget.macs=0.25" for name in ("channel", "spatial")
)
DENSITIES = "quantize.densities=[1.0,0.5,0.25] budget.coded_bytes=0.015"
SCHEMES = "quantize.schemes=[power_of_two,codebook] budget.coded_bytes=0.015"
NARROWER = "distillation=attention model@student=digits_cnn student.widths=[8,16,16]"
GATES = "penalty=l0 penalty.strength=1e-3 penalty.initial=0.5 finetune.lr=1e-2"
BIT_OPERATIONS = "budget.bit_operations=0.01"
INSTEAD = {
    "rounding=adaround quantize.epochs=0": ["rounding.steps=20"],
    "model@student=digits_mlp": ["student.width=32"],
    NARROWER: ["student.widths=[4,4,4]", "student.hidden=16"],
    "budget.coded_bytes=0.015": ["budget.coded_bytes=0.06"],
    RANKS: ["quantize.bits=[6]", "constraints.floor=0.6"],
    SPATIAL: ["quantize.bits=[6]", "constraints.floor=0.6"],
    DENSITIES: ["budget.coded_bytes=0.06", "quantize.bits=[8]", "constraints.floor=0.5"],
}
METHODS = {method.name: method for method in catalogue()}
# One of every kind of graph that leaves: ways to train it, and to choose what goes, lead to these.
EXPORTED = [
    "quantize.scheme=affine", "quantize.granularity=tensor", "quantize.scheme=codebook quantize.granularity=tensor",
    "quantize.granularity=group quantize.group_size=16", "quantize.trained_ranges=true",
    "quantize.activation_ranges=dynamic", "quantize.activation_bits=null", "pattern=n_of_m", "sparsify.update=sweep",
    "model@student=digits_mlp", RANKS, SPATIAL, SCHEMES,
]  # fmt: skip


@dataclass
class Run:
    """One run: what its folder holds, and its networks before and after their formats."""

    trial: Experiment
    module: fx.GraphModule
    unquantized: fx.GraphModule
    packed: bytes

    def read(self, name):
        return json.loads((self.trial.run_dir.path / name).read_text())


@pytest.fixture(scope="session")
def trials(tmp_path_factory):
    """The run up to its plan, which all methods share."""
    folder = tmp_path_factory.mktemp("methods") / "base"
    with RunDir(folder) as run_dir, seeded("methods", 0):
        yield MethodTrials(compose_config(TINY), run_dir, NullTracker(RunInfo("methods", folder)))


@pytest.fixture(scope="session")
def run(trials, tmp_path_factory):
    """A function from a method to its run, each done once."""
    done = {}

    def find(method):
        if method.name not in done:
            done[method.name] = begin(trials, method, tmp_path_factory.mktemp("method") / "run")
        return done[method.name]

    return find


def begin(trials, method, folder):
    config = compose_config([*TINY, *method.overrides, *INSTEAD.get(method.name, [])])
    trial = trials.run(method, config, folder)
    modules = (load_artifact(folder / name, trial.planned) for name in ("artifact", "unquantized"))
    return Run(trial, *modules, (folder / "artifact" / "weights.packed").read_bytes())


def test_every_file_and_format_is_a_method():
    folder = Path(conf.__file__).parent
    files = {f"{group}={path.stem}" for group in GROUPS for path in (folder / group).glob("*.yaml")}
    schemes = {f"quantize.scheme={scheme}" for scheme in SCHEME_BITS} - {"quantize.scheme=float32"}
    firsts = [method.overrides[0] for method in catalogue()]
    assert files | schemes <= set(firsts)
    assert len(METHODS) == len(firsts)
    assert set(DEFAULTS) <= METHODS.keys()
    assert {method.section for method in catalogue()} == set(SECTIONS)


@pytest.mark.parametrize("method", METHODS.values(), ids=METHODS)
class TestMethod:
    def test_says_what_it_is(self, method):
        assert re.fullmatch(r"[A-Z][^\n|]*\.", method.what)
        assert all(re.fullmatch(r"(van )?[A-Z].* \d{4}, \S.*", paper) for paper in method.papers)

    def test_ends_in_a_file_that_is_the_measured_network(self, method, run):
        found = run(method)
        trial, path = found.trial, found.trial.run_dir.path / "artifact" / "weights.packed"
        again = load_artifact(path, trial.planned)
        inputs = trial.task.inputs(trial.batches("test")[0])
        outputs = found.module(*inputs)
        assert outputs.shape == (len(inputs[0]), 10)
        assert outputs.isfinite().all()
        assert torch.equal(outputs, again(*inputs))
        metric, loss = evaluate(again, trial.task, trial.batches("test"))
        told = found.read("result.json")["stages"]["quantized"]
        assert metric == told["metric"]
        assert loss == pytest.approx(told["loss"], rel=1e-6)
        assert found.read("packed.json")["file_bytes"] == len(found.packed)

    def test_comes_out_the_same_in_every_byte(self, method, trials, run, tmp_path):
        assert begin(trials, method, tmp_path / "again").packed == run(method).packed

    def test_has_an_effect_unless_it_is_what_is_done_anyway(self, method, run):
        assert (run(method).packed == run(BASE).packed) == method.default

    def test_keeps_within_the_budget(self, method, run):
        found = run(method)
        result, costs = found.read("result.json"), found.trial.costs
        if method.name == BIT_OPERATIONS:
            assert result["budget"]["asked"]["bit_operations"] == 0.01
            # Of the layers that leave, beside activations of 8 bits: not what the plan was told to cost.
            formats = found.read("artifact/plan.json")["layer_formats"]
            small = unit_costs(found.unquantized, None, found.trial.example)
            macs = dict(zip(small.layer_names, small.layer_macs, strict=True))
            spent = sum(macs[name] * layer_format["bits"] * 8 for name, layer_format in formats.items())
            assert 0.005 * costs.dense["bit_operations"] < spent <= 0.01 * costs.dense["bit_operations"]
        asked = 0.25 if "budget.macs=0.25" in method.overrides else 0.4
        assert result["budget"]["asked"]["macs"] == asked
        assert result["macs"] <= asked * costs.dense_macs
        bound = 0.2 * costs.dense_weight_bytes
        told = f"The budget of {cost_words(bound)} weight_bytes is exceeded" in " ".join(found.trial.warnings)
        assert told == (result["weight_bytes"] > bound)
        assert not told or method.section == FORMATS

    def test_holds_its_zeros_to_the_end(self, method, run):
        found = run(method)
        before, after = masks_of(found.unquantized), masks_of(found.module)
        assert before.keys() == after.keys()
        assert not any((after[name] & ~mask).any() for name, mask in before.items())
        formats = CompressionPlan.load(found.trial.run_dir.path / "artifact" / "plan.json").layer_formats
        told = {name: layer_format.density for name, layer_format in formats.items()}
        for name, kept in density_of(found.unquantized).layers.items():
            own = told.get(name, told.get(name.removesuffix(".reduce").removesuffix(".expand"), 1.0))
            assert kept <= own + 1e-9, name

    def test_has_gradients_where_it_trains(self, method, run):
        found = run(method)
        trial, plan = found.trial, CompressionPlan.load(found.trial.run_dir.path / "artifact" / "plan.json")
        trains = plan.layer_formats and trial.config.quantize.epochs
        model = trial.in_formats(found.unquantized, plan) if trains else copy.deepcopy(found.unquantized)
        batch = trial.batches("label")[0]
        trial.task.loss(model(*trial.task.inputs(batch)), batch).mean().backward()
        assert all(value.grad is not None and value.grad.isfinite().all() for value in model.parameters())
        assert all(weight.grad.any() for name, weight in model.named_parameters() if name.endswith(".weight"))

    def test_is_as_dense_as_was_asked(self, method, run):
        found = run(method)
        total, asked = density_of(found.unquantized).total, found.trial.density
        if not found.trial.sparsifies:
            assert (total < 1) == (method.name == DENSITIES)
        elif asked is not None:
            # Whole blocks and channels come as close as they can.
            assert total == pytest.approx(asked, abs=0.05 if "pattern" in method.name else 0.005)


def test_tickets_go_back_to_the_moment_that_is_configured(trials, run, tmp_path):
    def moment(trial):
        with safe_open(trial.run_dir.path / "checkpoint" / "rounds" / "round_00.safetensors", "pt") as file:
            (hook,) = json.loads(file.metadata()["training"])["settings"]["hooks"]
        return hook["moment"]

    method = METHODS["sparsify.rewind=weights"]
    config = compose_config([*TINY, *method.overrides, "sparsify.early=0.5", "sparsify.rounds=1"])
    assert moment(trials.run(method, config, tmp_path / "run")) == 0.5
    assert moment(run(method).trial) == inspect.signature(rewind_).parameters["early"].default


def test_a_threshold_leaves_what_scores_at_least_it(trials, run):
    method = METHODS["sparsify.threshold=0.07"]
    trial = run(method).trial
    repaired = trials.base.repaired(CompressionPlan.load(trial.run_dir.path / "plan.json"))
    weights = {name: weight.tensor for name, weight in prunable_weights(repaired).items()}
    for name, mask in masks_of(run(method).unquantized).items():
        assert mask.equal(weights[name].abs() >= 0.07), name


def test_blocks_lie_where_they_say(run):
    for layer, mask in masks_of(run(METHODS["pattern=n_of_m"]).unquantized).items():
        inputs = mask.reshape(*mask.shape[:2], -1).movedim(1, 2)
        whole = inputs[..., : inputs.shape[-1] // 4 * 4].reshape(-1, 4)
        assert (whole.sum(-1) == 2).all(), layer
    for layer, mask in masks_of(run(METHODS["pattern=block"]).unquantized).items():
        rows = mask.flatten(1)
        for block in (b for strip in rows.split(4) for b in strip.split(4, 1)):
            assert block.all() or not block.any(), layer
    channels = [mask.flatten(1) for mask in masks_of(run(METHODS["pattern=channel"]).unquantized).values()]
    assert all((mask.all(1) | ~mask.any(1)).all() for mask in channels)
    assert any(not mask.any(1).all() for mask in channels)


def test_formats_are_those_that_were_asked_for(run):
    sizes = {}
    for scheme in SCHEME_BITS.keys() - {"float32"}:
        found = run(METHODS[f"quantize.scheme={scheme}"])
        formats = found.read("artifact/plan.json")["layer_formats"].values()
        assert {layer_format["scheme"] for layer_format in formats} == {scheme}
        sizes[scheme] = len(found.packed)
    layers = run(METHODS["quantize.scheme=affine quantize.bits=[1]"]).read("artifact/plan.json")["layer_formats"]
    assert {(layer_format["scheme"], layer_format["bits"]) for layer_format in layers.values()} == {("affine", 1)}
    assert sizes["binary"] < sizes["ternary"] < sizes["symmetric"] < sizes["bfloat16"] < sizes["float16"]
    for name, scheme in ((RANKS, "channel"), (SPATIAL, "spatial")):
        layers = run(METHODS[name]).read("artifact/plan.json")["layer_formats"]
        ranked = [layer_format for layer_format in layers.values() if layer_format.get("rank")]
        assert ranked
        assert {layer_format.get("rank_scheme", "channel") for layer_format in ranked} == {scheme}
    layers = run(METHODS[DENSITIES]).read("artifact/plan.json")["layer_formats"]
    assert any(layer_format.get("density", 1) < 1 for layer_format in layers.values())


def kinds(found):
    """Of layers in the file of a run: what an exporter writes otherwise, but for bits and schemes, which have tests."""
    plan = CompressionPlan.load(found.trial.run_dir.path / "artifact" / "plan.json")
    activations = (plan.activation_bits, plan.activation_bits and plan.activation_ranges)
    return {
        (it.on_integers, it.granularity, it.rank and it.rank_scheme, it.density < 1, *activations)
        for it in plan.layer_formats.values()
    }


def test_no_method_ends_in_a_kind_of_layer_that_is_not_seen_to_leave(run):
    leave = set().union(*(kinds(run(METHODS[name])) for name in EXPORTED))
    for method in METHODS.values():
        assert kinds(run(method)) <= leave, method.name


@pytest.mark.parametrize("name", EXPORTED)
def test_it_leaves_as_a_file_that_runs(name, run, tmp_path):
    found = run(METHODS[name])
    OnnxExporter().export(found.module, found.trial.example, tmp_path / "model.onnx")
    inputs = tuple(found.trial.task.inputs(found.trial.batches("test")[0]))
    assert check_export(tmp_path / "model.onnx", found.module, inputs).rms_relative < 0.02
