"""Ranges taken at run time: the formula by hand and as ONNX computes it, training, files, and ONNX Runtime."""

import json
import subprocess
import sys

import numpy as np
import onnx
import pytest
import torch
from onnx import TensorProto, helper
from onnx.reference import ReferenceEvaluator
from torch import Tensor, nn
from torch.nn import functional as F

from compress.artifact import save_artifact
from compress.dynamic_ranges import ROUND_OP, dynamic_parameters, quantize_dynamically, round_dynamically
from compress.errors import ArtifactError, PlanError
from compress.exporters.onnx import export_onnx
from compress.fake_quantization import ACTIVATION_OP
from compress.graph import trace
from compress.packed_artifact import pack_artifact
from compress.plan import CompressionPlan, LayerFormat
from compress.quantization import prepare_quantized
from compress.quantizer import quantize_weight
from compress.quantizers.minmax import MinMaxQuantizer
from compress.runtimes.onnxruntime import check_export, run_onnx

# Of an even kernel, which pads more behind than before.
pytestmark = pytest.mark.filterwarnings("ignore:Using padding='same'")
DYNAMIC = {"activation_bits": 8, "activation_ranges": "dynamic"}


class Net(nn.Module):
    """A conv, one of asymmetric padding, a depthwise one, one in one dimension, two linears of one input."""

    def __init__(self) -> None:
        super().__init__()
        self.a = nn.Conv2d(3, 8, (4, 3), padding="same", dilation=(1, 2), bias=False)
        self.b, self.c = nn.Conv2d(8, 8, 3, 2, 1, groups=8), nn.Conv1d(8, 6, 3)
        self.d, self.e = nn.Linear(7, 5), nn.Linear(7, 5, bias=False)

    def forward(self, x: Tensor) -> Tensor:
        y = self.c(self.b(self.a(x).relu()).flatten(2)).sigmoid()
        return self.d(y) + self.e(y)


@pytest.fixture(autouse=True)
def _seed():
    with torch.random.fork_rng():
        torch.manual_seed(0)
        yield


def prepared(model, x, bits=8, **options):
    traced = trace(model.eval(), x)
    formats = {layer.name: LayerFormat(bits) for layer in traced.layers()}
    plan = CompressionPlan(layer_formats=formats, **DYNAMIC)
    return prepare_quantized(traced.module, plan, [], MinMaxQuantizer(), **options), plan


@pytest.mark.parametrize(
    ("values", "scale", "zero_point", "levels"),
    [
        ([0.0, 2.55, 1.0], 0.01, 0, [0, 255, 100]),
        ([5.1, 5.1], 0.02, 0, [255, 255]),  # zero belongs to every range
        ([-2.55, -1.0], 0.01, 255, [0, 155]),
        ([-1.0, 1.55, 0.0], 0.01, 100, [0, 255, 100]),
        ([-100.5, 154.5, 3.0], 1.0, 100, [0, 254, 103]),  # halves to even, of the level and of the zero point
        ([-101.5, 153.5, 0.0], 1.0, 102, [0, 255, 102]),  # the last one of 256 levels is cut off
        ([0.0, 0.0], 1.0, 0, [0, 0]),
    ],
)
def test_the_range_by_hand(values, scale, zero_point, levels):
    x = torch.tensor(values)
    assert [value.item() for value in dynamic_parameters(x)] == pytest.approx([scale, zero_point])
    assert quantize_dynamically(x)[0].tolist() == levels
    assert torch.allclose(round_dynamically(x), (torch.tensor(levels) - zero_point) * scale)


def test_it_is_the_operator_of_onnx(tmp_path):
    value = helper.make_tensor_value_info
    graph = helper.make_graph(
        [helper.make_node("DynamicQuantizeLinear", ["x"], ["levels", "scale", "zero"])], "g",
        [value("x", TensorProto.FLOAT, ["n"])],
        [value("levels", TensorProto.UINT8, ["n"]), value("scale", TensorProto.FLOAT, []),
         value("zero", TensorProto.UINT8, [])],
    )  # fmt: skip
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 21)], ir_version=10)
    onnx.save(model, tmp_path / "m.onnx")
    x = torch.randn(1000)
    for values in (x, x.abs() + 3, -x.abs() - 3, 1e-30 * x, 1e30 * x, torch.full((9,), -7.0), torch.zeros(9)):
        found = [value.numpy() for value in quantize_dynamically(values)]
        told = run_onnx(tmp_path / "m.onnx", values)
        if values.any():  # the reference divides by zero
            reference = ReferenceEvaluator(model).run(None, {"x": values.numpy()})
            assert all(np.array_equal(*pair) for pair in zip(found, reference, strict=True))
        assert all(np.array_equal(*pair) for pair in zip(found, told, strict=True))


def test_what_is_not_finite_is_not_hidden():
    for bad in (torch.nan, torch.inf):
        assert not round_dynamically(torch.tensor([1.0, bad])).isfinite().all()


def test_the_gradient_passes_straight_through():
    x = torch.randn(3, 5, requires_grad=True)
    weight = torch.randn(3, 5)
    (round_dynamically(x) * weight).sum().backward()
    assert torch.equal(x.grad, weight)


def test_inputs_of_quantised_convs_and_linears_alone_are_rounded_once_each():
    x = torch.randn(4, 3, 6, 6)
    module, _ = prepared(Net(), x)
    nodes = module.graph.nodes
    assert [n.args[0].name for n in nodes if n.target is ROUND_OP] == ["x", "relu", "flatten", "sigmoid"]
    assert not [n for n in nodes if n.target is ACTIVATION_OP]
    model = nn.Sequential(nn.Conv2d(3, 4, 1), nn.ConvTranspose2d(4, 4, 2), nn.Flatten(2), nn.Linear(49, 2))
    traced = trace(model.eval(), x)
    plan = CompressionPlan(layer_formats={name: LayerFormat(8) for name in ("1", "3")}, **DYNAMIC)
    module = prepare_quantized(traced.module, plan, [], MinMaxQuantizer())
    assert [n.args[0].name for n in module.graph.nodes if n.target is ROUND_OP] == ["flatten"]


def test_a_linear_is_rounded_weights_times_rounded_inputs():
    x, model = torch.randn(6, 5), nn.Linear(5, 3)
    module, _ = prepared(model, x, bits=4)
    integers, scale = quantize_weight(model.weight, 4, MinMaxQuantizer())
    expected = F.linear(round_dynamically(x), integers.float() * scale[:, None], model.bias)
    assert torch.allclose(module.eval()(x), expected, atol=1e-6)


def test_zero_and_constant_inputs_give_finite_outputs():
    module, _ = prepared(Net(), torch.randn(4, 3, 6, 6))
    for value in (0.0, -3.0):
        assert module.eval()(torch.full((2, 3, 6, 6), value)).isfinite().all()


def test_it_trains():
    x = torch.randn(64, 6)
    y = x[:, :3].argmax(1)
    module, _ = prepared(nn.Sequential(nn.Linear(6, 16), nn.ReLU(), nn.Linear(16, 3)), x, bits=4)
    before = F.cross_entropy(module(x), y).item()
    optimizer = torch.optim.SGD(module.parameters(), lr=0.5)
    for _ in range(40):
        optimizer.zero_grad()
        F.cross_entropy(module(x), y).backward()
        optimizer.step()
    assert F.cross_entropy(module(x), y).item() < 0.8 * before


_LOADER = """
import sys, numpy, torch
from torch import nn
from compress.artifact import load_artifact
x = torch.from_numpy(numpy.load(sys.argv[1]))
for path in sys.argv[2:]:
    base = nn.Sequential(nn.Conv2d(2, 4, 3), nn.ReLU(), nn.Flatten(), nn.Linear(16, 3))
    numpy.save(path + ".npy", load_artifact(path, base)(x).detach().numpy())
"""


def test_a_fresh_process_decodes_the_same_bits(tmp_path):
    x = torch.randn(5, 2, 4, 4)
    module, plan = prepared(nn.Sequential(nn.Conv2d(2, 4, 3), nn.ReLU(), nn.Flatten(), nn.Linear(16, 3)), x)
    expected = module.eval()(x).detach().numpy()
    save_artifact(tmp_path / "artifact", module, plan, x)
    pack_artifact(tmp_path / "artifact")
    np.save(tmp_path / "x.npy", x.numpy())
    paths = [str(tmp_path / "artifact"), str(tmp_path / "artifact" / "weights.packed")]
    subprocess.run([sys.executable, "-c", _LOADER, tmp_path / "x.npy", *paths], check=True, timeout=300)
    for path in paths:
        assert np.array_equal(np.load(f"{path}.npy"), expected)


def test_plans_say_which_ranges_and_older_ones_mean_static(tmp_path):
    plan = CompressionPlan(layer_formats={"0": LayerFormat(8)}, **DYNAMIC)
    plan.save(tmp_path / "plan.json")
    assert CompressionPlan.load(tmp_path / "plan.json") == plan
    data = json.loads((tmp_path / "plan.json").read_text())
    del data["activation_ranges"]
    assert CompressionPlan.from_json(data, "plan.json").activation_ranges == "static"
    with pytest.raises(ArtifactError, match="activation_ranges"):
        CompressionPlan.from_json({**data, "activation_ranges": "running"}, "plan.json")
    with pytest.raises(PlanError, match="'activation_ranges' parameter of CompressionPlan"):
        CompressionPlan(activation_ranges="running")


@pytest.mark.parametrize(("bits", "reduce_range", "stored"), [
    (8, True, TensorProto.INT8), (8, False, TensorProto.UINT8), (4, True, TensorProto.INT8),
])  # fmt: skip
def test_onnx_runtime_computes_the_simulation_on_integers(bits, reduce_range, stored, tmp_path):
    x = torch.randn(6, 3, 6, 6)
    module, _ = prepared(Net(), x, bits, reduce_range=reduce_range)
    file = export_onnx(module.eval(), x[:1], tmp_path / "m.onnx")
    assert file.dynamic_batch
    for inputs in (x, x[:1], 100 * x, torch.zeros_like(x), torch.full_like(x, -3.0)):
        found = check_export(file.path, module, inputs, tolerance=1e-5)
        assert found.overflow == 0
    graph = onnx.load(file.path).graph
    kinds = [node.op_type for node in graph.node]
    # The two linears share their input's range.
    assert [kinds.count(name) for name in ("DynamicQuantizeLinear", "ConvInteger", "MatMulInteger")] == [4, 3, 2]
    assert not {"Conv", "MatMul", "Gemm", "DequantizeLinear"} & set(kinds)
    weights = [t.data_type for t in graph.initializer if len(t.dims) > 1 and np.prod(t.dims) > 8]
    assert len(weights) == 5
    assert set(weights) <= {stored, TensorProto.INT4}


def test_a_tied_linear_and_an_embedding_leave_too(tmp_path):
    model = nn.Sequential(nn.Embedding(40, 12), nn.Linear(12, 12), nn.Tanh(), nn.Linear(12, 40))
    model[3].weight = model[0].weight
    tokens = torch.randint(0, 40, (3, 7))
    module, _ = prepared(model, tokens)
    file = export_onnx(module.eval(), tokens, tmp_path / "m.onnx")
    assert check_export(file.path, module, torch.randint(0, 40, (2, 9))).rms_relative < 1e-5
