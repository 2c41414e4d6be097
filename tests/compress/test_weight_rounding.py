"""Whole modules rounded and pruned with updates: by hand, on a trained net, and what must stay as it was."""

import pytest
import torch
from torch import nn
from torch.nn import functional as F

from compress.data_free import synthesize_batches
from compress.errors import CompressError, DataError, PlanError
from compress.fake_quantization import quantized_weights
from compress.folding import fold_batch_norm
from compress.formatted_weight import formatted_weights
from compress.graph import trace
from compress.layer_moments import collect_layer_moments
from compress.plan import CompressionPlan, LayerFormat
from compress.quantization import prepare_quantized
from compress.quantizer import round_weight
from compress.quantizers.mse import MseQuantizer
from compress.rounding import SymmetricGrid
from compress.roundings import AdaRounding, GptqRounding, NearestRounding
from compress.second_order_pruning import METHODS, prune_weights_
from compress.second_order_update import sweep_columns
from compress.weight_rounding import round_weights_
from experiments.data import load_digits, make_batches
from experiments.models import DigitsCNN

ROUNDINGS = (NearestRounding(), GptqRounding(), AdaRounding(steps=200))


class Mixed(nn.Module):
    """A grouped conv with stride, a depthwise one, a transposed one, a linear with a tied twin."""

    def __init__(self):
        super().__init__()
        self.a, self.deep = nn.Conv2d(4, 6, 3, stride=2, groups=2), nn.Conv2d(6, 6, 3, padding=1, groups=6)
        self.up, self.fc, self.twin = nn.ConvTranspose2d(6, 4, 2), nn.Linear(4, 4), nn.Linear(4, 4)
        self.twin.weight = self.fc.weight

    def forward(self, x):
        x = torch.relu(self.deep(torch.relu(self.a(x))))
        return self.twin(torch.relu(self.fc(self.up(x).mean((2, 3)))))


def inputs(seed, *shape):
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed))


def make_linear(x):
    with torch.random.fork_rng():
        torch.manual_seed(0)
        return trace(nn.Linear(8, 5, bias=False), x).module


@pytest.fixture(name="mixed")
def mixed_net():
    with torch.random.fork_rng():
        torch.manual_seed(0)
        model = Mixed().eval()
    return trace(model, inputs(0, 2, 4, 7, 7)).module


@pytest.fixture(name="trained", scope="module")
def trained_digits():
    """`(module, batches of calibration images, of other images)` of a small net that knows the digits."""
    data = load_digits()
    with torch.random.fork_rng():
        torch.manual_seed(0)
        model = DigitsCNN((8, 16, 16), hidden=32)
        images, labels = (torch.cat(parts) for parts in zip(*make_batches(data.train, 500), strict=True))
        optimizer = torch.optim.Adam(model.parameters(), lr=5e-3)
        for _ in range(4):
            for chosen in torch.randperm(len(labels)).split(64):
                optimizer.zero_grad()
                F.cross_entropy(model(images[chosen]), labels[chosen]).backward()
                optimizer.step()
    model.eval()
    batches = [(x,) for x, _ in make_batches(data.calibration, 80)]
    tests = make_batches(data.test, 200)
    with torch.no_grad():
        assert torch.cat([model(x).argmax(1) == y for x, y in tests]).float().mean() > 0.9
    return trace(model, batches[0][0]).module, batches, [(x,) for x, _ in tests]


def prepared_of(module, batches, bits, activation_bits=None, density=1.0):
    names = [name.removesuffix(".weight") for name in collect_layer_moments(module, batches[:1])]
    formats = {name: LayerFormat(bits, density=density) for name in names}
    plan = CompressionPlan(layer_formats=formats, activation_bits=activation_bits)
    return prepare_quantized(module, plan, batches, MseQuantizer())


def masked_by_magnitude(module, layers):
    """A copy, batch norms folded, whose layers of these names keep half of their weights."""
    masked = fold_batch_norm(module)
    with torch.no_grad():
        for name in layers:
            weight = masked.get_parameter(f"{name}.weight")
            weight *= weight.abs() > weight.abs().median()
    return masked


def output_loss(module, dense, batches):
    """Mean squared difference of the outputs, as a part of theirs."""
    with torch.no_grad():
        pairs = [(module.eval()(*batch), dense.eval()(*batch)) for batch in batches]
    return sum(float((a - b).square().sum()) for a, b in pairs) / sum(float(b.square().sum()) for _, b in pairs)


def state(module):
    return {name: value.clone() for name, value in module.state_dict().items()}


class TestMoments:
    def test_a_linear_by_hand(self):
        module = trace(nn.Linear(2, 1), inputs(0, 2, 2)).module
        batches = [(torch.tensor([[1.0, 2.0], [3.0, 0.0]]),), (torch.tensor([[0.0, 1.0], [0.0, 1.0]]),)]
        assert collect_layer_moments(module, batches)["weight"].tolist() == [[[2.5, 0.5], [0.5, 1.5]]]

    def test_the_error_of_a_conv_is_what_its_moment_says(self, mixed):
        # A quadratic form of the change of the weight equals the mean square of the change of the outputs.
        x = inputs(1, 5, 4, 7, 7)
        moment = collect_layer_moments(mixed, [(x,)])["a.weight"]
        assert moment.shape == (2, 18, 18)
        change = inputs(2, 6, 2, 3, 3)
        seen = F.conv2d(x, change, stride=2, groups=2).double().square().mean((0, 2, 3))
        rows = change.double().reshape(2, 3, 18)
        torch.testing.assert_close(((rows @ moment) * rows).sum(-1).flatten(), seen, rtol=1e-5, atol=0)

    def test_tied_and_transposed_weights_have_none(self, mixed):
        assert set(collect_layer_moments(mixed, [(inputs(0, 2, 4, 7, 7),)])) == {"a.weight", "deep.weight"}

    def test_rows_are_thinned_by_seed(self, mixed):
        batches = [(inputs(1, 5, 4, 7, 7),)]
        some = [collect_layer_moments(mixed, batches, max_rows=20, seed=s)["a.weight"] for s in (0, 0, 1)]
        assert torch.equal(some[0], some[1])
        assert not torch.equal(some[0], some[2])
        assert all(torch.linalg.matrix_rank(m[0]) <= 20 for m in some)

    def test_refuses_no_data_and_bad_data(self, mixed):
        with pytest.raises(DataError, match="at least one"):
            collect_layer_moments(mixed, [])
        with torch.no_grad():
            mixed.get_parameter("a.bias")[0] = torch.inf
        with pytest.raises(DataError, match="'deep'"):
            collect_layer_moments(mixed, [(inputs(1, 5, 4, 7, 7),)])


class TestRounding:
    @pytest.mark.parametrize("rounding", ROUNDINGS, ids=lambda r: r.name)
    @pytest.mark.parametrize("activation_bits", [None, 8])
    def test_moves_weights_to_the_integers_that_were_chosen(self, mixed, rounding, activation_bits):
        batches = [(inputs(1, 6, 4, 7, 7),)]
        module = prepared_of(mixed, batches, 4, activation_bits)
        before, chosen = state(module), {}

        class Recorded:
            name = "recorded"

            def round(self, weight, grid, moment):
                assert isinstance(grid, SymmetricGrid)
                found = rounding.round(weight, grid, moment)
                chosen[len(chosen)] = grid.integers(found)
                return found

        module.train()
        rng = torch.get_rng_state()
        found = round_weights_(module, Recorded(), batches)
        assert module.training
        assert torch.equal(rng, torch.get_rng_state())
        assert [layer.layer for layer in found] == ["a", "deep"]
        for number, entry in enumerate(quantized_weights(module)):
            weight, scale = module.get_parameter(entry.parameter), module.get_buffer(entry.scale)
            integers = round_weight(weight, scale, entry.largest)
            assert torch.equal(integers.flatten(), chosen[number].flatten())
            assert torch.equal(integers * scale[:, None, None, None], weight)
        after = state(module)
        assert {name for name in before if not torch.equal(before[name], after[name])} == {"a.weight", "deep.weight"}
        assert all(parameter.grad is None for parameter in module.parameters())

    def test_nearest_leaves_the_function_as_it_is(self, trained):
        module, batches, _ = trained
        prepared = prepared_of(module, batches, 3, 8).eval()
        before = prepared(*batches[0])
        found = round_weights_(prepared, NearestRounding(), batches)
        assert torch.equal(prepared(*batches[0]), before)
        assert all(layer.error == layer.error_nearest > 0 for layer in found)

    @pytest.mark.parametrize("rounding", ROUNDINGS, ids=lambda r: r.name)
    def test_errors_are_those_of_the_outputs(self, rounding):
        x = inputs(0, 60, 8) @ inputs(1, 8, 8)
        dense = make_linear(x)
        module, plain = (prepared_of(dense, [(x,)], 3).eval() for _ in range(2))
        (found,) = round_weights_(module, rounding, [(x,)])
        assert found.error == pytest.approx(output_loss(module, dense, [(x,)]), rel=1e-4)
        assert found.error_nearest == pytest.approx(output_loss(plain, dense, [(x,)]), rel=1e-4)

    @pytest.mark.parametrize("bits", [3, 4])
    @pytest.mark.parametrize("rounding", ROUNDINGS[1:], ids=lambda r: r.name)
    def test_loses_less_than_nearest_on_a_trained_net(self, trained, rounding, bits):
        module, batches, others = trained
        nearest, better = prepared_of(module, batches, bits), prepared_of(module, batches, bits)
        found = round_weights_(better, rounding, batches)
        assert all(layer.error < layer.error_nearest for layer in found)
        assert output_loss(better, module, others) < 0.8 * output_loss(nearest, module, others)

    def test_dense_moments_serve_all_layers_at_once(self, trained):
        module, batches, others = trained
        moments = collect_layer_moments(module, batches)
        nearest, better = prepared_of(module, batches, 3), prepared_of(module, batches, 3)
        round_weights_(better, GptqRounding(), moments=moments)
        assert output_loss(better, module, others) < output_loss(nearest, module, others)

    def test_inputs_made_without_data_serve_too(self, trained):
        module, batches, others = trained
        made = synthesize_batches(module, batches[0][0], n_batches=2, batch_size=40, steps=80)
        nearest, better = prepared_of(module, batches, 3), prepared_of(module, batches, 3)
        round_weights_(better, GptqRounding(), made)
        assert output_loss(better, module, others) < 0.7 * output_loss(nearest, module, others)

    def test_warns_where_nothing_can_be_chosen(self, caplog):
        tokens = torch.tensor([[0, 1], [2, 3]])
        model = trace(nn.Sequential(nn.Embedding(5, 4)), tokens).module
        plan = CompressionPlan(layer_formats={"0": LayerFormat(4)})
        with caplog.at_level("WARNING"):
            assert round_weights_(prepare_quantized(model, plan, [], MseQuantizer()), GptqRounding(), [(tokens,)]) == []
        assert "nearest rounding" in caplog.text

    def test_later_layers_see_what_rounded_layers_give(self, trained):
        module, batches, _ = trained
        one, two = (prepared_of(module, batches, 3) for _ in range(2))
        round_weights_(one, GptqRounding(), batches)
        # The first layer's inputs are the data in either case; what the last one saw is what it gets now.
        round_weights_(two, GptqRounding(), moments=collect_layer_moments(one, batches))
        assert torch.equal(one.get_parameter("fc2.weight"), two.get_parameter("fc2.weight"))
        other = prepared_of(module, batches, 3)
        round_weights_(other, GptqRounding(), moments=collect_layer_moments(module, batches))
        assert torch.equal(one.get_parameter("conv1.weight"), other.get_parameter("conv1.weight"))
        assert not torch.equal(one.get_parameter("fc2.weight"), other.get_parameter("fc2.weight"))

    @pytest.mark.parametrize("activation_bits", [None, 8])
    @pytest.mark.parametrize("rounding", ROUNDINGS[1:], ids=lambda r: r.name)
    def test_masked_layers_are_rounded_and_keep_their_zeros(self, trained, rounding, activation_bits):
        module, batches, others = trained
        masked = masked_by_magnitude(module, ("conv1", "conv2", "conv3", "fc1", "fc2"))
        nearest, better = (prepared_of(masked, batches, 4, activation_bits, density=0.5) for _ in range(2))
        (entry,) = [entry for entry in formatted_weights(better) if entry.parameter == "conv2.weight"]
        with torch.no_grad():  # what the mask hides takes no part
            better.get_parameter("conv2.weight").masked_fill_(~entry.module.kept, 5.0)
        found = round_weights_(better, rounding, batches)
        assert [layer.layer for layer in found] == ["conv1", "conv2", "conv3", "fc1", "fc2"]
        assert all(layer.error < layer.error_nearest for layer in found)
        for entry in formatted_weights(better):
            assert not entry.module.kept.all()
            assert (better.get_parameter(entry.parameter)[~entry.module.kept] == 0).all()
        assert output_loss(better, masked, others) < 0.8 * output_loss(nearest, masked, others)

    def test_later_layers_see_what_rounded_layers_give_through_masks(self, trained):
        module, batches, _ = trained
        masked = masked_by_magnitude(module, ("conv1", "fc2"))
        one, two, other = (prepared_of(masked, batches, 3, density=0.5) for _ in range(3))
        round_weights_(one, GptqRounding(), batches)
        round_weights_(two, GptqRounding(), moments=collect_layer_moments(one, batches))
        assert torch.equal(one.get_parameter("fc2.weight"), two.get_parameter("fc2.weight"))
        round_weights_(other, GptqRounding(), moments=collect_layer_moments(other, batches))
        assert torch.equal(one.get_parameter("conv1.weight"), other.get_parameter("conv1.weight"))
        assert not torch.equal(one.get_parameter("fc2.weight"), other.get_parameter("fc2.weight"))

    def test_one_mask_of_several_readers_is_no_weight_of_its_own(self):
        class Twice(nn.Module):
            def __init__(self):
                super().__init__()
                self.fc, self.last = nn.Linear(4, 4), nn.Linear(4, 2)

            def forward(self, x):
                return self.last(self.fc(torch.relu(self.fc(x))))

        x = inputs(0, 20, 4)
        masked = masked_by_magnitude(trace(Twice().eval(), x).module, ("fc", "last"))
        formats = {name: LayerFormat(4, density=0.5) for name in ("fc", "last")}
        prepared = prepare_quantized(masked, CompressionPlan(layer_formats=formats), [(x,)], MseQuantizer())
        assert [layer.layer for layer in round_weights_(prepared, GptqRounding(), [(x,)])] == ["last"]

    def test_says_what_it_lacks(self, mixed):
        batches = [(inputs(1, 6, 4, 7, 7),)]
        with pytest.raises(PlanError, match="no fake-quantised weight"):
            round_weights_(mixed, GptqRounding(), batches)
        prepared = prepared_of(mixed, batches, 4)
        with pytest.raises(CompressError, match="not both"):
            round_weights_(prepared, GptqRounding())
        with pytest.raises(PlanError, match=r"no moment of 'a.weight'"):
            round_weights_(prepared, GptqRounding(), moments={})


class TestPruning:
    @pytest.mark.parametrize("method", METHODS)
    def test_loses_less_than_magnitude_on_a_trained_net(self, trained, method):
        module, batches, others = trained
        kept = {name.removesuffix(".weight"): 0.3 for name in collect_layer_moments(module, batches)}
        magnitude, better = fold_batch_norm(module), fold_batch_norm(module)
        with torch.no_grad():
            for name in kept:
                weight = magnitude.get_parameter(f"{name}.weight")
                weight *= weight.abs() >= weight.abs().flatten().topk(round(0.3 * weight.numel())).values[-1]
        found = prune_weights_(better, kept, batches, method=method)
        for layer in found:
            assert int(layer.kept.sum()) == round(0.3 * layer.kept.numel())
            assert (better.get_parameter(layer.parameter)[~layer.kept] == 0).all()
            assert layer.error < layer.error_masked
        assert output_loss(better, module, others) < 0.7 * output_loss(magnitude, module, others)

    @pytest.mark.parametrize("method", METHODS)
    def test_n_of_m_and_masks_in_grouped_convs(self, mixed, method):
        batches, mask = [(inputs(1, 6, 4, 7, 7),)], inputs(2, 6, 1, 3, 3) > 0
        found = prune_weights_(mixed, {"a": (1, 3), "deep": mask}, batches, method=method)
        assert (found[0].kept.reshape(6, 6, 3).sum(-1) == 1).all()
        assert torch.equal(found[1].kept, mask)
        assert (mixed.get_parameter("deep.weight")[~mask] == 0).all()

    def test_errors_are_those_of_the_outputs(self):
        x = inputs(0, 60, 8) @ inputs(1, 8, 8)
        dense, module, masked = (make_linear(x) for _ in range(3))
        (found,) = prune_weights_(module, {"weight": 0.5}, [(x,)])
        with torch.no_grad():
            masked.get_parameter("weight").mul_(found.kept)
        assert found.error == pytest.approx(output_loss(module, dense, [(x,)]), rel=1e-4)
        assert found.error_masked == pytest.approx(output_loss(masked, dense, [(x,)]), rel=1e-4)

    def test_one_linear_is_the_sweep(self):
        x = inputs(0, 50, 8) @ inputs(1, 8, 8)
        module = trace(nn.Linear(8, 3), x).module
        weight = module.get_parameter("weight").detach().clone()
        prune_weights_(module, {"weight": 0.5}, [(x,)])
        expected, _ = sweep_columns(weight, x.T.double() @ x.double() / 50, keep=0.5, activation_order=True)
        torch.testing.assert_close(module.get_parameter("weight").detach(), expected)

    def test_pruned_and_rounded_in_one_pass(self, trained):
        module, batches, others = trained
        joint, apart = prepared_of(module, batches, 4), prepared_of(module, batches, 4)
        kept = {name: 0.5 for name in ("conv2", "conv3", "fc1")}
        found = prune_weights_(joint, kept, batches)
        for layer in found:
            weight = joint.get_parameter(layer.parameter)
            assert (weight[~layer.kept] == 0).all()
            scale = joint.get_buffer(layer.parameter + "_scale").reshape(-1, *[1] * (weight.dim() - 1))
            assert torch.equal((weight / scale).round() * scale, weight)
            with torch.no_grad():
                apart.get_parameter(layer.parameter).mul_(layer.kept)
        assert output_loss(joint, module, others) < output_loss(apart, module, others)
        # The masks survive rounding afterwards.
        round_weights_(joint, GptqRounding(), batches)
        assert all((joint.get_parameter(layer.parameter)[~layer.kept] == 0).all() for layer in found)

    def test_refuses_what_cannot_be_done(self, mixed):
        batches = [(inputs(1, 6, 4, 7, 7),)]
        for name in ("nowhere", "fc", "up"):
            with pytest.raises(PlanError, match=name):
                prune_weights_(mixed, {name: 0.5}, batches)
        with pytest.raises(CompressError, match="'method' parameter"):
            prune_weights_(mixed, {"a": 0.5}, batches, method="magic")
        with pytest.raises(CompressError, match="must be 'sweep'"):
            prune_weights_(prepared_of(mixed, batches, 4), {"a": 0.5}, batches, method="solve")
        masked = prepared_of(masked_by_magnitude(mixed, ("a", "deep")), batches, 4, density=0.5)
        with pytest.raises(PlanError, match="no mask"):
            prune_weights_(masked, {"a": 0.5}, batches)
        with pytest.raises(CompressError, match="What is kept"):
            prune_weights_(mixed, {"a": 2.0}, batches)
