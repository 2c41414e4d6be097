"""Stored formats in a traced module: simulated, trained, saved, loaded in a fresh process, baked, exported."""

import copy
import functools
import json
import logging
import subprocess
import sys
from pathlib import Path

import onnx
import pytest
import torch
from interruption import DiesAfter, Killed
from safetensors.torch import load_file, save_file
from torch import Tensor, nn
from torch.nn import functional as F

from compress import (
    ClassificationTask,
    CompressionPlan,
    DataError,
    LayerFormat,
    analyze,
    finetune_,
    load_artifact,
    pack_artifact,
    prepare_quantized,
    save_artifact,
)
from compress.attributes import copy_traced
from compress.errors import ArtifactError, CompressError
from compress.exporters.onnx import export_onnx
from compress.fake_quantization import quantized_weights
from compress.formatted_weight import bake_formats, formatted_weights
from compress.graph import trace
from compress.lockstep import Walk
from compress.penalties import QuantizationPenalty
from compress.plan import SCHEME_BITS
from compress.quantizers import MinMaxQuantizer, MseQuantizer
from compress.runtimes.onnxruntime import run_onnx
from compress.training_hook import TrainingHook
from compress.weight_rows import RowLayout

TASK = ClassificationTask()
# Every scheme, with and without a mask, with the granularities in turn; one bit and eight where both are known.
_CHOICES = [("tensor", 1.0), ("channel", 0.4), ("group", 1.0), ("tensor", 0.4), ("channel", 1.0), ("group", 0.4)]
FORMATS = {
    f"{scheme}{bits}-{granularity}-{density}": LayerFormat(
        bits, scheme, granularity, 7 if granularity == "group" else None, density
    )
    for number, (scheme, allowed) in enumerate(SCHEME_BITS.items())
    for bits, (granularity, density) in (
        (allowed[0], _CHOICES[(2 * number) % 6]),
        (allowed[-1], _CHOICES[(2 * number + 1) % 6]),
    )
}


def make_net(seed: int = 0) -> nn.Module:
    with torch.random.fork_rng():
        torch.manual_seed(seed)
        net = nn.Sequential(nn.Conv2d(2, 5, 3), nn.BatchNorm2d(5), nn.ReLU(), nn.Flatten(), nn.Linear(20, 6), nn.ReLU(),
                            nn.Linear(6, 3))  # fmt: skip
        net(torch.randn(16, 2, 4, 4))
        return net.eval()


def inputs(seed: int = 0) -> Tensor:
    return torch.randn(8, 2, 4, 4, generator=torch.Generator().manual_seed(seed))


def thin(net: nn.Module, names=("4",)) -> nn.Module:
    """40 % of the weights of these layers are kept."""
    generator = torch.Generator().manual_seed(9)
    with torch.no_grad():
        for name in names:
            weight = net.get_submodule(name).weight
            weight *= torch.rand(weight.shape, generator=generator) < 0.4
    return net


@functools.cache
def thinned():
    return analyze(thin(make_net()), inputs())


@functools.cache
def other():
    """A network of the same architecture with weights of its own; what is loaded is a copy."""
    return analyze(make_net(7), inputs())


def prepared(formats, net=None, trained=False, activation_bits=None, quantizer=None):
    traced = (thinned() if net is None else analyze(net, inputs())).traced.module
    plan = CompressionPlan(layer_formats=formats, activation_bits=activation_bits)
    quantizer = quantizer or MseQuantizer(steps=10)
    return prepare_quantized(traced, plan, [(inputs(),)], quantizer, trained_ranges=trained).eval(), plan


def test_rows_of_a_tensor_channels_and_groups():
    weight = torch.arange(12.0).reshape(2, 3, 2)
    assert RowLayout((2, 3, 2), "tensor").rows(weight).tolist() == [list(range(12))]
    assert RowLayout((2, 3, 2), "channel", 1).rows(weight).tolist() == [[0, 1, 6, 7], [2, 3, 8, 9], [4, 5, 10, 11]]
    groups = RowLayout((2, 3, 2), "group", 0, 4)
    assert groups.rows(weight).tolist() == [[0, 1, 2, 3], [4, 5, 0, 0], [6, 7, 8, 9], [10, 11, 0, 0]]
    assert groups.real(weight.device).tolist() == [[True] * 4, [True, True, False, False]] * 2
    # A group is no longer than a channel.
    assert RowLayout((2, 3, 2), "group", 0, 99).rows(weight).shape == (2, 6)
    for axis in range(3):
        for granularity, size in (("tensor", None), ("channel", None), ("group", 5), ("group", 1)):
            layout = RowLayout((2, 3, 2), granularity, axis, size)
            assert torch.equal(layout.tensor(layout.rows(weight)), weight)


def test_a_linear_by_hand():
    net = nn.Linear(4, 2)
    net.weight.data, net.bias.data = torch.tensor([[1.0, -3.0, 0.5, -0.5], [2.0, 2.0, -2.0, 2.0]]), torch.zeros(2)
    x = torch.eye(4)
    name = next(layer.name for layer in trace(net, x).layers())
    plan = CompressionPlan(layer_formats={name: LayerFormat(1, "binary")})
    module = prepare_quantized(trace(net, x).module, plan, [], MinMaxQuantizer())
    assert module(x).t().tolist() == [[1.25, -1.25, 1.25, -1.25], [2.0, 2.0, -2.0, 2.0]]
    assert bake_formats(module).get_parameter(name).tolist() == module(x).t().tolist()
    assert torch.equal(module.get_parameter(name), net.weight)
    assert module.get_parameter(name) is not net.weight


@pytest.mark.parametrize("label", FORMATS)
def test_saved_packed_baked_and_copied_it_computes_the_same_bit_for_bit(label, tmp_path):
    formats = {"0": LayerFormat(4), "4": FORMATS[label]}
    module, plan = prepared(formats, activation_bits=8, trained=True)
    assert [entry.parameter for entry in quantized_weights(module)] == (
        ["0.weight", "4.weight"] if FORMATS[label].on_integers else ["0.weight"]
    )
    x = inputs(5)
    expected = module(x)
    assert torch.equal(copy_traced(module)(x), expected)
    baked = bake_formats(module)
    assert torch.equal(baked(x), expected)
    assert not formatted_weights(baked)
    manifest = save_artifact(tmp_path, module, plan, x)
    stored = load_file(tmp_path / "model.safetensors")
    assert manifest["weight_bytes"] == sum(value.nbytes for value in stored.values())
    assert "4.weight_format.kept" not in stored
    loaded = load_artifact(tmp_path, other())
    assert torch.equal(loaded(x), expected)
    assert not formatted_weights(loaded)
    told = {entry.name: entry for entry in pack_artifact(tmp_path)}
    assert torch.equal(load_artifact(tmp_path / "weights.packed", other())(x), expected)
    assert told["4.weight"].values == 120
    if FORMATS[label].density < 1:
        zero = torch.zeros(())
        kept = thin(make_net()).get_submodule("4").weight != 0
        assert (loaded.get_parameter("4.weight")[~kept] == zero).all() or FORMATS[label].on_integers


@pytest.mark.parametrize(
    ("layer_format", "values_bytes", "parameter_bytes"),
    [
        (LayerFormat(1, "binary"), 15, 6 * 4),
        (LayerFormat(2, "ternary", "tensor"), 30, 4),
        (LayerFormat(3, "codebook", "tensor"), 45, 8 * 4),
        (LayerFormat(5, "affine", "tensor"), 75, 8),
        (LayerFormat(4, "power_of_two", "group", 7), 60, 6 * 3),
        (LayerFormat(5), 75, 6 * 4),
        (LayerFormat(16, "bfloat16"), 240, 0),
        (LayerFormat(1, "affine", "tensor", density=0.4), 30, 8),
    ],
)
def test_bytes_are_those_of_symbols_and_parameters(layer_format, values_bytes, parameter_bytes, tmp_path):
    module, plan = prepared({"4": layer_format})
    save_artifact(tmp_path, module, plan, inputs())
    stored = load_file(tmp_path / "model.safetensors")
    assert stored["4.weight"].nbytes == values_bytes
    assert sum(value.nbytes for name, value in stored.items() if name.startswith("4.weight_")) == parameter_bytes


def test_a_fresh_process_decodes_every_scheme_to_the_same_bits(tmp_path):
    make = f"nn.Sequential(*[layer for _ in range({len(FORMATS)}) for layer in (nn.Linear(9, 9), nn.Tanh())]).eval()"
    with torch.random.fork_rng():
        torch.manual_seed(0)
        net, x = thin(eval(make), [str(2 * i) for i in range(len(FORMATS))]), torch.randn(4, 9)
    plan = CompressionPlan(layer_formats={str(2 * i): chosen for i, chosen in enumerate(FORMATS.values())})
    module = prepare_quantized(trace(net, x).module, plan, [(x,)], MseQuantizer(steps=10)).eval()
    assert {entry.module.layer_format.scheme for entry in formatted_weights(module)} == set(SCHEME_BITS)
    save_artifact(tmp_path, module, plan, x)
    pack_artifact(tmp_path)
    save_file({"x": x, "y": module(x).detach()}, tmp_path / "expected.safetensors")
    script = f"""
import pathlib, sys
import torch
from safetensors.torch import load_file
from torch import nn
from compress import load_artifact
folder = pathlib.Path({str(tmp_path)!r})
expected = load_file(folder / "expected.safetensors")
for path in (folder, folder / "weights.packed"):
    assert torch.equal(load_artifact(path, {make})(expected["x"]), expected["y"]), path
sys.stdout.write("same")
"""
    done = subprocess.run([sys.executable, "-c", script], cwd=Path(__file__).parents[2], capture_output=True, text=True)
    assert done.stdout == "same", done.stderr


def test_a_damaged_format_is_named(tmp_path):
    module, plan = prepared({"4": LayerFormat(2, "codebook")})
    save_artifact(tmp_path, module, plan, inputs())
    path = tmp_path / "manifest.json"
    manifest = json.loads(path.read_text())
    sound = json.dumps(manifest)
    for key, value in (("scheme", "nothing"), ("granularity", "tensor"), ("bits", 9)):
        manifest = json.loads(sound)
        manifest["tensors"]["4.weight"]["format"][key] = value
        path.write_text(json.dumps(manifest))
        with pytest.raises(ArtifactError):
            load_artifact(tmp_path, other())
    manifest = json.loads(sound)
    manifest["tensors"]["4.weight"]["format"]["parameters"]["centroids"] = "elsewhere"
    path.write_text(json.dumps(manifest))
    with pytest.raises(ArtifactError, match="'elsewhere'"):
        load_artifact(tmp_path, other())


class Tied(nn.Module):
    """An embedding whose weight is also that of the output, and of a product outside of any layer."""

    def __init__(self) -> None:
        super().__init__()
        self.embedding, self.mix = nn.Embedding(11, 6), nn.Linear(6, 6)

    def forward(self, tokens: Tensor) -> Tensor:
        x = self.mix(self.embedding(tokens)) + self.embedding.weight.sum(0)
        return F.linear(x, self.embedding.weight)


def test_a_tied_weight_has_one_format_wherever_it_is_read(tmp_path):
    tokens = torch.randint(0, 11, (2, 4), generator=torch.Generator().manual_seed(0))
    with torch.random.fork_rng():
        torch.manual_seed(0)
        net = Tied().eval()
    plan = CompressionPlan(layer_formats={"embedding": LayerFormat(3, "affine", "group", 4)})
    module = prepare_quantized(trace(net, tokens).module, plan, [], MinMaxQuantizer())
    (entry,) = formatted_weights(module)
    rounded = copy.deepcopy(net)
    rounded.embedding.weight.data = entry.module(module.get_parameter("embedding.weight")).detach()
    torch.testing.assert_close(module(tokens), rounded(tokens))
    save_artifact(tmp_path, module, plan, tokens)
    assert torch.equal(load_artifact(tmp_path, net)(tokens), module(tokens))


def training_batches() -> list[tuple[Tensor, Tensor]]:
    x = torch.cat([inputs(seed) for seed in range(8)])
    return list(zip(x.split(16), (x[:, 0].mean((1, 2)) > 0).long().split(16), strict=True))


@pytest.mark.parametrize("scheme", SCHEME_BITS)
def test_it_trains_holds_its_masks_and_goes_on_after_a_kill(scheme, tmp_path):
    bits = min(3, SCHEME_BITS[scheme][-1]) if SCHEME_BITS[scheme][-1] <= 8 else SCHEME_BITS[scheme][0]
    formats = {
        "0": LayerFormat(4),
        "4": LayerFormat(bits, scheme, density=0.4),
        "6": LayerFormat(bits, scheme, "tensor"),
    }
    module, _ = prepared(formats, trained=True, activation_bits=8)
    kept = module.get_parameter("4.weight") != 0
    before = {name: value.detach().clone() for name, value in module.named_parameters()}
    twin = copy_traced(module)
    settings = {"epochs": 2, "lr": 0.02, "weight_decay": 1e-3, "progress": False}
    report = finetune_(module, TASK, training_batches(), **settings)
    assert report.history[-1]["train_loss"] < report.history[0]["train_loss"]
    assert torch.isfinite(module(inputs())).all()
    changed = {name for name, value in module.named_parameters() if not torch.equal(value, before[name])}
    assert {"4.weight", "6.weight"} <= changed
    ranges = {name for name in before if "_format." in name and not name.endswith("low")}
    assert ranges <= changed
    assert ranges or scheme in ("power_of_two", "float16", "bfloat16", "float32")
    assert torch.equal(module.get_parameter("4.weight") != 0, kept)
    assert (bake_formats(module).get_parameter("4.weight")[~kept] == 0).all()
    file = tmp_path / "training.safetensors"
    with pytest.raises(Killed):
        finetune_(twin, DiesAfter(6), training_batches(), checkpoint=file, checkpoint_every_steps=1, **settings)
    assert finetune_(twin, TASK, training_batches(), checkpoint=file, **settings).resumed
    ours, other = module.state_dict(), twin.state_dict()
    assert ours.keys() == other.keys()
    assert all(torch.equal(ours[name], other[name]) for name in ours)


def test_a_walk_over_the_graph_computes_what_the_module_computes():
    module, _ = prepared({"4": LayerFormat(2, "ternary")})
    walk = Walk(module, [(inputs(),)])
    *_, last = (walk.values[0][node.name] for node in walk.nodes() if node.name in walk.values[0])
    assert torch.equal(last, module(inputs()))


def test_ranges_are_fixed_unless_asked_and_the_source_is_left_alone():
    net = thin(make_net())
    before = {name: value.clone() for name, value in net.state_dict().items()}
    formats = {"4": LayerFormat(3, "codebook"), "6": LayerFormat(2, "ternary")}
    state = torch.get_rng_state()
    module, _ = prepared(formats, net)
    assert {name for name, _ in module.named_parameters()} == {f"{n}.{p}" for n in "046" for p in ("weight", "bias")}
    assert {"4.weight_format.centroids", "6.weight_format.scale"} <= module.state_dict().keys()
    trained, _ = prepared(formats, net, trained=True)
    assert torch.equal(trained(inputs()), module(inputs()))
    assert len(list(trained.parameters())) == len(list(module.parameters())) + 2
    trained(inputs()).sum().backward()
    assert all(torch.equal(value, before[name]) for name, value in net.state_dict().items())
    assert torch.equal(torch.get_rng_state(), state)
    other, _ = prepared(formats, thin(make_net(3)))
    other.load_state_dict(module.state_dict())
    assert torch.equal(other(inputs()), module(inputs()))


def test_masks_of_integer_layers_hold_and_stay_on_integers(tmp_path):
    module, plan = prepared({"4": LayerFormat(4, density=0.4)}, activation_bits=8)
    plain, _ = prepared({"4": LayerFormat(4)}, activation_bits=8)
    assert torch.equal(module(inputs()), plain(inputs()))
    assert [entry.parameter for entry in quantized_weights(module)] == ["4.weight"]
    kept = module.get_parameter("4.weight") != 0
    module.train()(inputs()).square().sum().backward()
    assert (module.get_parameter("4.weight").grad[~kept] == 0).all()
    manifest = save_artifact(tmp_path, module.eval(), plan, inputs())
    assert manifest["tensors"]["4.weight"]["bits"] == 4
    assert torch.equal(load_artifact(tmp_path, other())(inputs()), module(inputs()))
    export_onnx(module, inputs(), tmp_path / "model.onnx")
    kinds = {initializer.data_type for initializer in onnx.load(tmp_path / "model.onnx").graph.initializer}
    assert onnx.TensorProto.INT4 in kinds or onnx.TensorProto.INT8 in kinds


def test_a_layer_that_was_not_pruned_is_told(caplog):
    with caplog.at_level(logging.WARNING, "compress.quantization"):
        prepared({"4": LayerFormat(8, "affine", density=0.4)})
        assert not caplog.records
        prepared({"6": LayerFormat(8, "affine", density=0.4)})
    assert "'6' is to keep 0.4 of its weights, but 1 are not zero" in caplog.text


def test_a_weight_that_is_not_finite_is_refused():
    traced = analyze(make_net(), inputs()).traced.module
    with torch.no_grad():
        traced.get_parameter("6.weight")[0, 0] = torch.nan
    plan = CompressionPlan(layer_formats={"6": LayerFormat(2, "ternary")})
    with pytest.raises(DataError, match="NaN"):
        prepare_quantized(traced, plan, [(inputs(),)], MinMaxQuantizer())


def test_an_unused_format_of_floats_leaves_nothing_behind():
    module, plan = prepared({"4": LayerFormat(32, "float32", rank=2)})
    assert not formatted_weights(module)
    assert plan.layer_formats["4"].rank == 2


@pytest.mark.parametrize(
    ("first", "second"),
    [(LayerFormat(2, "codebook"), LayerFormat(1, "binary", density=0.4)),
     (LayerFormat(3, "affine"), LayerFormat(2, "ternary")),
     (LayerFormat(4, "power_of_two"), LayerFormat(1, "affine")),
     (LayerFormat(16, "float16"), LayerFormat(16, "bfloat16"))],
)  # fmt: skip
def test_stored_formats_leave_as_float_weights(first, second, tmp_path):
    formats = {"0": first, "4": second, "6": LayerFormat(8)}
    module, _ = prepared(formats)
    export_onnx(module, inputs(), tmp_path / "model.onnx")
    (found,) = run_onnx(tmp_path / "model.onnx", inputs())
    torch.testing.assert_close(torch.from_numpy(found), module(inputs()).detach(), rtol=1e-5, atol=1e-6)
    sizes = {i.name: i.data_type for i in onnx.load(tmp_path / "model.onnx").graph.initializer}
    assert list(sizes.values()).count(onnx.TensorProto.FLOAT) >= 4


def test_the_penalty_is_the_squared_distance_by_hand():
    net = nn.Sequential(nn.Linear(2, 1, bias=False), nn.Linear(1, 2, bias=False))
    net[0].weight.data = torch.tensor([[1.0, -3.0]])  # binary: 2, -2
    net[1].weight.data = torch.tensor([[0.7], [-3.0]])  # 2 bits, each its own limit: exact
    formats = {"0": LayerFormat(1, "binary"), "1": LayerFormat(2)}
    module = prepare_quantized(trace(net, torch.rand(3, 2)).module, CompressionPlan(layer_formats=formats),
                               [(torch.rand(3, 2),)], MinMaxQuantizer())  # fmt: skip
    penalty = QuantizationPenalty(alpha=0.5)
    assert isinstance(penalty, TrainingHook)
    penalty.attach(module, 0, 1)
    value = penalty.penalty(module)
    assert value.item() == pytest.approx(0.5 * (1 + 1), abs=1e-6)
    value.backward()
    assert module.get_parameter("0.weight").grad.tolist() == [[-1.0, -1.0]]
    assert module.get_parameter("1.weight").grad.abs().max() < 1e-6
    assert penalty.settings() == {"alpha": 0.5}
    assert penalty.settled(0)


def test_the_penalty_brings_weights_to_their_levels():
    def distance(module):
        weights, rounded = module.state_dict(), bake_formats(module).state_dict()
        return sum((weights[n] - rounded[n]).square().sum().item() for n in ("4.weight", "6.weight"))

    formats = {"4": LayerFormat(2, "affine"), "6": LayerFormat(2, "ternary")}
    ends = []
    for alpha in (0.0, 5.0):
        module, _ = prepared(formats, net=make_net())
        finetune_(
            module, TASK, training_batches(), epochs=3, lr=0.02, hooks=[QuantizationPenalty(alpha)], progress=False
        )
        ends.append(distance(module))
    assert ends[1] < 0.1 * ends[0]


def test_the_penalty_refuses_what_has_no_effect():
    with pytest.raises(CompressError, match="'alpha' parameter"):
        QuantizationPenalty(-1.0)
    for model in (nn.Linear(2, 2), trace(nn.Linear(2, 2), torch.rand(1, 2)).module):
        with pytest.raises(CompressError, match="needs a model with quantised weights"):
            QuantizationPenalty().attach(model, 0, 1)
