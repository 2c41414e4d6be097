"""Layers that become two: the same outputs at full rank, the promised ones below, and a model that lives on."""

import pytest
import safetensors.torch
import torch
from torch import Tensor, fx, nn
from torch.nn import functional as F
from zoo import ZOO, build

from compress.attributes import copy_traced, value_of
from compress.errors import PlanError
from compress.exporters.onnx import export_onnx
from compress.factors import factor_weight
from compress.folding import fold_batch_norm
from compress.graph import layers_of, trace
from compress.input_moments import collect_input_moments
from compress.low_rank import Factorization, factorize
from compress.plan import CompressionPlan, LayerFormat
from compress.quantization import prepare_quantized
from compress.quantizers.minmax import MinMaxQuantizer
from compress.runtimes.onnxruntime import check_export
from compress.splitting import find_splits, part_names
from compress.structure import analyze

LAYERS = {
    "linear": (lambda: nn.Linear(6, 4), (5, 6)),
    "linear on sequences, no bias": (lambda: nn.Linear(6, 4, bias=False), (5, 3, 6)),
    "conv1d": (lambda: nn.Conv1d(3, 5, 4, stride=2, padding=1, dilation=2), (2, 3, 12)),
    "1 x 1": (lambda: nn.Conv2d(3, 5, 1, stride=2), (2, 3, 6, 6)),
    "stride": (lambda: nn.Conv2d(3, 5, 3, stride=(2, 1), padding=1), (2, 3, 7, 9)),
    "not square": (lambda: nn.Conv2d(3, 5, (2, 5), padding=(0, 3), bias=False), (2, 3, 7, 8)),
    "dilation": (lambda: nn.Conv2d(3, 5, (3, 2), stride=(1, 2), padding=(2, 1), dilation=(2, 3)), (2, 3, 9, 9)),
    "same": (lambda: nn.Conv2d(3, 5, (4, 3), padding="same", dilation=(1, 2)), (2, 3, 7, 8)),
    "valid": (lambda: nn.Conv2d(3, 5, 3, padding="valid", stride=2), (2, 3, 7, 8)),
    "circular": (lambda: nn.Conv2d(3, 5, 3, padding=1, padding_mode="circular"), (2, 3, 7, 8)),
    "conv3d": (lambda: nn.Conv3d(2, 3, (3, 2, 1), stride=(1, 2, 1), padding=(1, 1, 0)), (2, 2, 5, 5, 4)),
}  # fmt: skip


def seeded(*shape: int, seed: int = 0, dtype: torch.dtype = torch.float32) -> Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed), dtype=dtype)


def made(make, seed: int = 0) -> nn.Module:
    with torch.random.fork_rng():
        torch.manual_seed(seed)
        return make().eval()


class Net(nn.Module):
    """Convs with and without batch norm, a depthwise one, a transposed one, an embedding tied to a linear."""

    def __init__(self) -> None:
        super().__init__()
        self.conv1, self.norm1 = nn.Conv2d(3, 8, 3, padding=1, bias=False), nn.BatchNorm2d(8)
        self.conv2, self.depthwise = nn.Conv2d(8, 8, 3, stride=2, padding=1), nn.Conv2d(8, 8, 3, groups=8)
        self.grouped, self.up = nn.Conv2d(8, 8, 1, groups=2), nn.ConvTranspose2d(8, 4, 2)
        self.fc, self.twice = nn.Linear(4 * 9, 12), nn.Linear(12, 12)
        self.codes, self.names = nn.Embedding(5, 12), nn.Embedding(5, 5)
        self.register_buffer("order", torch.arange(5))

    def forward(self, x: Tensor) -> Tensor:
        x = F.relu(self.norm1(self.conv1(x)))
        x = F.relu(self.up(self.grouped(self.depthwise(F.relu(self.conv2(x))))))
        x = self.twice(F.relu(self.twice(F.relu(self.fc(x.flatten(1))))))
        return F.linear(x, self.codes.weight) + self.codes(self.order).sum(1) + self.names(self.order[0])


@pytest.fixture(name="net", scope="module")
def a_traced_net():
    x = seeded(6, 3, 8, 8)
    model = made(Net)
    model.train()(x)
    return trace(model.eval(), x).module, x


@pytest.mark.filterwarnings("ignore:Using padding='same' with even kernel")
@pytest.mark.parametrize("name", LAYERS)
def test_one_layer(name):
    make, shape = LAYERS[name]
    x = seeded(*shape, dtype=torch.float64)
    model = made(lambda: nn.Sequential(make())).double()
    module, weight, dense = trace(model, x).module, model[0].weight.detach(), model(x)
    for scheme in ("channel", "spatial"):
        splits, refused = find_splits(module, scheme)
        assert not refused
        split = splits["0"]
        whole = factorize(module, {"0": Factorization(split.full_rank, scheme)})
        torch.testing.assert_close(whole(x), dense)
        low = factorize(module, {"0": Factorization(split.full_rank - 1, scheme)})
        (factors,) = factor_weight(weight, split.first_dims, [split.full_rank - 1])
        assert factors.weight_error > 1e-4
        torch.testing.assert_close(low(x), torch.func.functional_call(model, {"0.weight": factors.weight}, (x,)))
        layers = list(layers_of(low))
        assert [layer.name for layer in layers] == list(part_names("0"))
        assert [layer.bias for layer in layers] == [None, "0.expand.bias" if model[0].bias is not None else None]
        sizes = [value_of(low, layer.weight).numel() for layer in layers]
        assert sizes == [(split.full_rank - 1) * each for each in split.per_rank]
        assert split.n_weights == weight.numel()


def test_names_modes_and_gradients_of_the_copy(net):
    module, x = net
    before = {name: value.clone() for name, value in module.state_dict().items()}
    nodes = [node.name for node in module.graph.nodes if node.op == "call_function"]
    low = factorize(module, {"conv1": 3, "conv2": Factorization(4, "spatial"), "fc": 5})
    assert low.state_dict().keys() ^ before.keys() == {
        "conv1.weight", "conv2.weight", "conv2.bias", "fc.weight", "fc.bias", "conv1.reduce.weight",
        "conv1.expand.weight", "conv2.reduce.weight", "conv2.expand.weight", "conv2.expand.bias", "fc.reduce.weight",
        "fc.expand.weight", "fc.expand.bias"}  # fmt: skip
    assert low.get_parameter("conv1.reduce.weight").shape == (3, 3, 3, 3)
    assert low.get_parameter("conv1.expand.weight").shape == (8, 3, 1, 1)
    assert low.get_parameter("conv2.reduce.weight").shape == (4, 8, 3, 1)
    assert low.get_parameter("conv2.expand.weight").shape == (8, 4, 1, 3)
    assert torch.equal(low.get_parameter("fc.expand.bias"), before["fc.bias"])
    assert set(nodes) < {node.name for node in low.graph.nodes}
    assert {name: torch.equal(value, before[name]) for name, value in module.state_dict().items()} == dict.fromkeys(
        before, True)  # fmt: skip
    assert not low.training
    low.train()(x).square().sum().backward()
    assert all(parameter.grad is not None for parameter in low.parameters())
    twin = copy_traced(low).eval()
    assert torch.equal(twin(x), low.eval()(x))


def test_frozen_weights_stay_frozen(net):
    module, _ = net
    module.get_parameter("fc.weight").requires_grad_(False)
    low = factorize(module, {"fc": 2})
    module.get_parameter("fc.weight").requires_grad_(True)
    frozen = [name for name, parameter in low.named_parameters() if not parameter.requires_grad]
    assert frozen == ["fc.reduce.weight", "fc.expand.weight"]


def test_what_has_been_divided_can_be_divided_again(net):
    module, x = net
    low = factorize(module, {"conv2": 8, "fc": 12})
    lower = factorize(low, {"conv2.reduce": Factorization(24, "spatial"), "fc.expand": 12})
    assert {"conv2.reduce.reduce", "conv2.reduce.expand"} <= {layer.name for layer in layers_of(lower)}
    torch.testing.assert_close(lower(x), module(x), rtol=1e-4, atol=1e-5)


REFUSED = {
    "nowhere": (2, "no layer of that name"),
    "depthwise": (1, "in 8 groups"),
    "grouped": (1, "in 2 groups"),
    "up": (1, "transposed"),
    "twice": (2, "more than once"),
    "codes": (2, "more than once"),
    "names": (2, "looks up its rows"),
    "conv1": (9, "at most 8, its full rank. Got 9"),
    "fc": (Factorization(13, "spatial"), "at most 12, its full rank. Got 13"),
}


@pytest.mark.parametrize("name", REFUSED)
def test_what_cannot_be_divided_is_named(net, name):
    rank, reason = REFUSED[name]
    with pytest.raises(PlanError, match=f"'{name}'.*{reason}"):
        factorize(net[0], {name: rank})


def test_splits_list_every_layer_once(net):
    splits, refused = find_splits(net[0])
    assert list(splits) == ["conv1", "conv2", "fc"]
    assert set(dict(refused)) == {"depthwise", "grouped", "up", "twice", "codes", "names"}
    assert splits["conv1"].full_rank == 8
    assert splits["fc"].per_rank == (36, 12)


def test_other_refusals(net):
    for rank in (0, True, 2.0):
        with pytest.raises(PlanError, match="'rank' parameter of Factorization"):
            Factorization(rank)
    for attempt in (lambda: Factorization(1, "tucker"), lambda: find_splits(net[0], "tucker")):
        with pytest.raises(PlanError, match=r"'scheme' parameter .* must be one of \['channel', 'spatial'\]"):
            attempt()

    class Taken(nn.Linear):
        def __init__(self) -> None:
            super().__init__(4, 4)
            self.reduce = nn.Linear(4, 4)

        def forward(self, x: Tensor) -> Tensor:
            return super().forward(self.reduce(x))

    x = torch.ones(2, 4)
    with pytest.raises(PlanError, match=r"'inner' cannot be factorised: the name 'inner.reduce' is taken"):
        factorize(trace(_Holder(Taken()), x).module, {"inner": 1})
    names = _Holder(nn.Linear(4, 4))
    names.alias = names.inner
    with pytest.raises(PlanError, match="several names"):
        factorize(trace(names, x).module, {"inner": 1})


class _Holder(nn.Module):
    def __init__(self, inner: nn.Module) -> None:
        super().__init__()
        self.inner = inner

    def forward(self, x: Tensor) -> Tensor:
        return self.inner(x)


class _Plain(nn.Module):
    """A weight that is no module's, with a name of its own."""

    def __init__(self) -> None:
        super().__init__()
        self.kernel, self.offset = nn.Parameter(seeded(5, 4)), nn.Parameter(seeded(5, seed=1))

    def forward(self, x: Tensor) -> Tensor:
        return F.linear(x, self.kernel, self.offset) + self.offset


def test_a_bare_parameter_and_a_bias_that_is_read_twice():
    x = seeded(3, 4)
    model = _Plain()
    low = factorize(trace(model, x).module, {"kernel": 4})
    assert sorted(low.state_dict()) == ["kernel.expand.bias", "kernel.expand.weight", "kernel.reduce.weight", "offset"]
    assert low.get_parameter("offset") is low.get_parameter("kernel.expand.bias"), "it stays tied"
    torch.testing.assert_close(low(x), model(x))


def test_weights_of_another_seed_take_the_state(net, tmp_path):
    module, x = net
    ranks = {"conv1": 3, "conv2": Factorization(4, "spatial"), "fc": 5}
    low = factorize(module, ranks, collect_input_moments(module, [(x,)]))
    safetensors.torch.save_model(low, tmp_path / "low.safetensors")
    other = factorize(trace(made(Net, seed=1), x).module, ranks)
    assert not torch.allclose(other(x), low(x))
    safetensors.torch.load_model(other, tmp_path / "low.safetensors")
    assert torch.equal(other(x), low(x))


def test_folding_before_and_after_leads_to_the_same_names(net):
    module, x = net
    ranks = {"conv1": 8, "conv2": 3}
    early = factorize(fold_batch_norm(module, x), ranks)
    late = fold_batch_norm(factorize(module, ranks), x)
    shapes = [{name: value.shape for name, value in m.state_dict().items()} for m in (early, late)]
    assert shapes[0] == shapes[1]
    assert "conv1.expand.bias" in shapes[0]
    assert "norm1.weight" not in shapes[0]
    torch.testing.assert_close(early(x), late(x), rtol=1e-4, atol=1e-5)


def test_outputs_come_closer_than_weights_do(net):
    module, x = net
    second = collect_input_moments(module, [(x,)])
    for name, ranks in (("conv1", (2, 3)), ("conv2", (2, Factorization(3, "spatial"))), ("fc", (2, 4))):
        for rank in ranks:
            errors = []
            for moments in (None, second):
                low = factorize(module, {name: rank}, moments, ridge=0.0)
                errors.append(float((_value(low, name, x) - _value(module, name, x)).square().sum()))
            assert errors[1] < 0.99 * errors[0], (name, rank)


def _value(module, name, x):
    """What the layer of this name gives, or what the last of the two in its place does."""
    wanted = next(layer.node for layer in layers_of(module) if layer.name in (name, part_names(name)[1]))
    interpreter = fx.Interpreter(module, garbage_collect_values=False)
    interpreter.run(x)
    return interpreter.env[wanted].detach()


@pytest.mark.parametrize("bits", [None, 8])
def test_a_file_computes_what_the_two_layers_compute(net, tmp_path, bits):
    module, x = net
    low = factorize(module, {"conv1": 3, "conv2": Factorization(6, "spatial"), "fc": 6}, ridge=0.1)
    tolerance = 1e-5
    if bits:
        formats = {layer.name: LayerFormat(bits) for layer in layers_of(low) if layer.name.startswith(("conv", "fc."))}
        assert set(formats) >= {"conv1.reduce", "conv1.expand", "conv2.reduce", "conv2.expand", "fc.expand"}
        plan = CompressionPlan(layer_formats=formats, activation_bits=8)
        low, tolerance = prepare_quantized(low, plan, [x], MinMaxQuantizer()).eval(), 5e-3
    file = export_onnx(low, x[:1], tmp_path / "low.onnx")
    assert file.dynamic_batch
    assert check_export(file.path, low, x).rms_relative < tolerance


@pytest.mark.parametrize("name", ["ViT", "hand_attention", "conv1d", "Inception"])
def test_real_shapes_of_nets_survive_full_rank(name):
    entry = ZOO[name]
    model, x = build(entry), entry.inputs(3)
    structure = analyze(model, x)
    splits, _ = find_splits(structure.traced.module)
    assert splits
    whole = factorize(structure.traced.module, {layer: split.full_rank for layer, split in splits.items()})
    torch.testing.assert_close(whole(x), model(x), rtol=1e-4, atol=1e-4)
    again = analyze(whole, x)
    assert {part for layer in splits for part in part_names(layer)} <= set(again.units.ids)
