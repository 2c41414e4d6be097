"""Fake-quantisers in the traced graph: where they go, what they round to, and that they train."""

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from compress.errors import CompressError, DataError, PlanError
from compress.fake_quantization import ACTIVATION_OP, quantized_weights, quantizes_activations
from compress.graph import trace
from compress.plan import CompressionPlan, LayerFormat
from compress.quantization import prepare_quantized
from compress.quantizer import quantize_weight
from compress.quantizers.minmax import MinMaxQuantizer
from compress.quantizers.mse import MseQuantizer


class Residual(nn.Module):
    """Two convs with batch norm, an add, a pool, a linear."""

    def __init__(self) -> None:
        super().__init__()
        self.a, self.norm_a = nn.Conv2d(3, 4, 3, padding=1, bias=False), nn.BatchNorm2d(4)
        self.b, self.norm_b = nn.Conv2d(4, 4, 3, padding=1, bias=False), nn.BatchNorm2d(4)
        self.fc = nn.Linear(4, 5)

    def forward(self, x: Tensor) -> Tensor:
        y = self.norm_a(self.a(x)).relu()
        y = (self.norm_b(self.b(y)) + y).relu()
        return self.fc(F.adaptive_avg_pool2d(y, 1).flatten(1))


class Block(nn.Module):
    """Tokens, a pre-norm feed-forward with a residual stream, and an output tied to the embedding."""

    def __init__(self) -> None:
        super().__init__()
        self.embedding, self.norm = nn.Embedding(11, 8), nn.LayerNorm(8)
        self.up, self.down, self.end = nn.Linear(8, 16), nn.Linear(16, 8), nn.LayerNorm(8)

    def forward(self, tokens: Tensor) -> Tensor:
        x = self.embedding(tokens)
        x = x + self.down(F.gelu(self.up(self.norm(x))))
        return F.linear(self.end(x), self.embedding.weight)


def _prepared(model, x, bits=8, activation_bits=8, quantizer=None, layers=None, batches=None, **options):
    traced = trace(model.eval(), x)
    names = layers or [layer.name for layer in traced.layers()]
    plan = CompressionPlan(layer_formats={name: LayerFormat(bits) for name in names}, activation_bits=activation_bits)
    batches = [(x,)] if batches is None else batches
    return prepare_quantized(traced.module, plan, batches, quantizer or MinMaxQuantizer(), **options)


def _quantised_values(module) -> list[str]:
    return [node.args[0].name for node in module.graph.nodes if node.target is ACTIVATION_OP]


@pytest.fixture(autouse=True)
def _seed():
    with torch.random.fork_rng():
        torch.manual_seed(0)
        yield


def test_a_linear_by_hand():
    model = nn.Linear(2, 1)
    model.weight.data, model.bias.data = torch.tensor([[1.27, -0.63]]), torch.tensor([0.5])
    x = torch.tensor([[2.55, 0.0], [1.0, 1.0]])
    module = _prepared(model, x, reduce_range=False).eval()
    # Input steps of 0.01 from 0, weight steps of 0.01: all values lie on the grids.
    assert torch.allclose(module(x), model(x), atol=1e-6)
    assert module(torch.tensor([[9.0, 0.0]])).item() == pytest.approx(2.55 * 1.27 + 0.5, rel=1e-5)


def test_every_edge_of_a_conv_net_is_quantised():
    x = torch.randn(4, 3, 6, 6)
    model = Residual()
    module = _prepared(model, x)
    # Norms are folded; a relu is in the range of what follows it; the logits stay float.
    assert _quantised_values(module) == ["x", "relu", "conv2d_1", "relu_1", "adaptive_avg_pool2d"]
    assert [entry.parameter for entry in quantized_weights(module)] == ["a.weight", "b.weight", "fc.weight"]
    assert torch.allclose(module.eval()(x), model(x), atol=0.05)


def test_a_residual_stream_into_a_layer_norm_stays_float():
    tokens = torch.randint(0, 11, (3, 5))
    module = _prepared(Block(), tokens)
    assert _quantised_values(module) == ["layer_norm", "gelu", "layer_norm_1"]


def test_float_layers_keep_float_inputs():
    model = nn.Sequential(nn.Conv2d(1, 2, 1), nn.ReLU(), nn.Conv2d(2, 2, 1), nn.Conv2d(2, 2, 1))
    module = _prepared(model, torch.rand(2, 1, 3, 3), layers=["0", "3"])
    reads = {layer.name: layer.args[0].target for layer in module.graph.nodes if layer.name.startswith("conv2d")}
    assert reads["conv2d_1"] is not ACTIVATION_OP
    assert reads["conv2d_2"] is ACTIVATION_OP


def test_tied_weights_share_their_integers():
    module = _prepared(Block(), torch.randint(0, 11, (3, 5)), bits=4, activation_bits=None)
    tied = [entry for entry in quantized_weights(module) if entry.parameter == "embedding.weight"]
    assert len(tied) == 2
    # One scale per row: the outputs of the linear.
    assert {entry.scale for entry in tied} == {"embedding.weight_scale"}
    assert module.get_buffer("embedding.weight_scale").shape == (11,)


def test_an_embedding_has_a_scale_per_feature_and_a_transposed_conv_per_output():
    module = _prepared(nn.Sequential(nn.Embedding(7, 3)), torch.randint(0, 7, (2, 4)), activation_bits=None)
    assert module.get_buffer("0.weight_scale").shape == (3,)
    model = nn.ConvTranspose2d(4, 6, 2, groups=2)
    module = _prepared(model, torch.rand(1, 4, 2, 2), activation_bits=None)
    assert module.get_buffer("weight_scale").shape == (3,)


def test_weights_alone_are_the_quantised_weights():
    x = torch.randn(4, 3, 6, 6)
    model = nn.Conv2d(3, 5, 3)
    module = _prepared(model, x, bits=4, activation_bits=None, batches=[])
    assert not quantizes_activations(module)
    integers, scale = quantize_weight(model.weight, 4, MinMaxQuantizer())
    expected = F.conv2d(x, integers.float() * scale[:, None, None, None], model.bias)
    assert torch.allclose(module.eval()(x), expected, atol=1e-6)


@pytest.mark.parametrize("quantizer", [MinMaxQuantizer(), MseQuantizer()], ids=lambda q: q.name)
def test_fewer_bits_are_further_off(quantizer):
    x = torch.randn(8, 3, 6, 6)
    model = Residual()
    errors = [(_prepared(model, x, bits, quantizer=quantizer).eval()(x) - model(x)).norm() for bits in (8, 4, 2)]
    assert errors[0] < errors[1] < errors[2]


def test_it_trains_with_fixed_ranges_and_leaves_the_source_alone():
    x = torch.randn(8, 3, 6, 6)
    traced = trace(Residual(), x)
    before = {name: value.clone() for name, value in traced.module.state_dict().items()}
    traced.module.train()
    plan = CompressionPlan(layer_formats={n: LayerFormat(3) for n in ("a", "b", "fc")}, activation_bits=8)
    module = prepare_quantized(traced.module, plan, [(x,)], MinMaxQuantizer())
    assert traced.module.training
    assert module.training
    assert all(torch.equal(before[name], value) for name, value in traced.module.state_dict().items())
    optimizer = torch.optim.SGD(module.parameters(), lr=0.1)
    target = torch.randn(8, 5)
    losses = []
    for _ in range(30):
        loss = F.mse_loss(module(x), target)
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        losses.append(loss.item())
    assert losses[-1] < 0.8 * losses[0]
    again = _prepared(Residual(), x, bits=3)
    again.load_state_dict(module.state_dict())
    assert torch.equal(again.eval()(x), module.eval()(x))


def test_a_bias_that_would_not_fit_int32_gets_a_coarser_scale():
    model = nn.Linear(2, 2)
    model.weight.data = torch.tensor([[1e-9, 0.0], [1.0, 1.0]])
    model.bias.data = torch.tensor([5.0, 5.0])
    x = torch.rand(4, 2)
    module = _prepared(model, x)
    input_scale = module.get_buffer("activation_ranges.input_1_scale")
    assert (model.bias / (module.get_buffer("weight_scale") * input_scale)).max() < 2**31
    assert torch.allclose(module.eval()(x), model(x), atol=0.02)


def test_plans_that_do_not_fit_are_refused():
    x = torch.rand(2, 3)
    with pytest.raises(PlanError, match="nowhere"):
        _prepared(nn.Linear(3, 2), x, layers=["nowhere"])
    with pytest.raises(PlanError, match="activation_bits"):
        _prepared(nn.Linear(3, 2), x, activation_bits=4)
    with pytest.raises(CompressError, match="bits"):
        _prepared(nn.Linear(3, 2), x, bits=9)


def test_layers_with_one_weight_are_one_layer_of_the_plan():
    model = nn.Sequential(nn.Linear(3, 3), nn.ReLU(), nn.Linear(3, 3))
    model[2].weight = model[0].weight
    x = torch.rand(4, 3)
    module = _prepared(model, x, layers=["0"])
    assert len(quantized_weights(module)) == 2
    assert torch.allclose(module.eval()(x), model(x), atol=0.02)


@pytest.mark.parametrize("batches", [[], [(torch.full((2, 3), float("nan")),)]])
def test_calibration_data_must_be_there_and_finite(batches):
    with pytest.raises(DataError):
        _prepared(nn.Linear(3, 2), torch.rand(2, 3), batches=batches)


def test_ranges_cover_all_batches():
    batches = [(torch.full((2, 3), -1.0),), (torch.full((2, 3), 1.55),)]
    module = _prepared(nn.Linear(3, 2), torch.rand(2, 3), batches=batches)
    assert module.get_buffer("activation_ranges.input_1_scale").item() == pytest.approx(0.01)
    assert module.get_buffer("activation_ranges.input_1_zero_point").item() == 100


def test_a_plan_without_formats_quantises_nothing():
    x = torch.rand(2, 3)
    model = nn.Linear(3, 2)
    module = prepare_quantized(trace(model, x).module, CompressionPlan(), [(x,)], MinMaxQuantizer())
    assert torch.equal(module(x), model(x))
    assert not quantized_weights(module)


def test_bits_that_a_graph_lost_follow_from_its_integers():
    model, x = nn.Sequential(*(nn.Linear(3, 3) for _ in range(7))), torch.randn(2, 3)
    formats = {str(i): LayerFormat(bits) for i, bits in enumerate((2, 3, 4, 5, 6, 7, 8))}
    traced = trace(model.eval(), x).module
    for reduce_range, expected in ((False, [2, 3, 4, 5, 6, 7, 8]), (True, [2, 3, 4, 5, 6, 8, 8])):
        plan = CompressionPlan(layer_formats=formats)
        module = prepare_quantized(traced, plan, [], MinMaxQuantizer(), reduce_range=reduce_range)
        assert [entry.bits for entry in quantized_weights(module)] == [2, 3, 4, 5, 6, 7, 8]
        for node in module.graph.nodes:
            node.meta.pop("bits", None)
        # 63 may be the largest of 7 bits or of 8 in a reduced range: nothing else tells.
        assert [entry.bits for entry in quantized_weights(module)] == expected
