"""What holds of every factorizer in `compress.factorizers`, found by walking the package."""

import inspect
from pathlib import Path

import pytest
import torch
from implementations import implementations
from torch import nn

import compress.factorizers
import conf
from compress.attributes import copy_traced
from compress.exporters.onnx import export_onnx
from compress.factorizer import Factorizer
from compress.graph import layers_of, trace
from compress.input_moments import collect_input_moments
from compress.layer_choice import LayerChoice, choice_of
from compress.low_rank import Factorization, factorize
from compress.patches import LinearMap
from compress.plan import RANK_SCHEMES
from compress.runtimes.onnxruntime import check_export
from compress.splitting import SCHEMES, find_splits

FACTORIZERS = implementations(compress.factorizers, "first_dims")


@pytest.fixture(name="case", scope="module")
def a_traced_net():
    with torch.random.fork_rng():
        torch.manual_seed(0)
        model = nn.Sequential(nn.Conv2d(2, 6, 3, stride=(1, 2), padding=1), nn.BatchNorm2d(6), nn.ReLU(),
                              nn.Conv2d(6, 5, (2, 3)), nn.Flatten(), nn.Linear(60, 7)).eval()  # fmt: skip
        x = torch.randn(9, 2, 7, 7)
    return trace(model, x).module, x


def ranks(module, name, part=1.0):
    splits, _ = find_splits(module, name)
    return {layer: Factorization(max(1, int(part * split.full_rank)), name) for layer, split in splits.items()}


def test_the_package_is_walked():
    assert {kind.name for kind in FACTORIZERS} == SCHEMES.keys() >= {"channel", "spatial"}
    assert {kind.__name__ for kind in FACTORIZERS} == set(compress.factorizers.__all__)


@pytest.mark.parametrize("kind", FACTORIZERS)
class TestFactorizer:
    def test_satisfies_the_seam(self, kind):
        assert isinstance(kind(), Factorizer)
        assert kind.name == kind.__module__.rpartition(".")[2]
        assert "arXiv" in inspect.getdoc(kind)

    def test_has_a_config(self, kind):
        config = Path(conf.__file__).parent / "factorizer" / f"{kind.name}.yaml"
        assert f"_target_: {kind.__module__}.{kind.__name__}\n" in config.read_text(encoding="utf-8")

    @pytest.mark.parametrize("dims", range(4))
    def test_names_spatial_dimensions(self, kind, dims):
        how = LinearMap(dims, *((3,) * dims, (1,) * dims, ((1, 1),) * dims, (1,) * dims))
        found = kind().first_dims(how)
        assert list(found) == sorted(set(found) & set(range(dims)))
        assert len(found) >= min(dims, 1), "a conv's first layer has a part of the kernel"

    def test_has_a_letter_in_names_of_choices(self, kind):
        choice = LayerChoice(32, rank=0.5, rank_scheme=kind.name)
        assert choice_of(choice.name) == choice
        assert kind.name in RANK_SCHEMES

    def test_full_rank_loses_nothing(self, kind, case):
        module, x = case
        torch.testing.assert_close(factorize(module, ranks(module, kind.name))(x), module(x), rtol=1e-4, atol=1e-5)

    def test_is_the_same_every_time_and_leaves_everything_as_it_was(self, kind, case):
        module, x = case
        before, rng = copy_traced(module).state_dict(), torch.random.get_rng_state()
        second = collect_input_moments(module, [(x,)])
        one, two = (factorize(module, ranks(module, kind.name, 0.5), second) for _ in range(2))
        assert all(torch.equal(a, b) for a, b in zip(one.parameters(), two.parameters(), strict=True))
        assert torch.equal(torch.random.get_rng_state(), rng)
        assert all(torch.equal(value, before[name]) for name, value in module.state_dict().items())

    def test_trains_saves_and_exports(self, kind, case, tmp_path):
        module, x = case
        low = factorize(module, ranks(module, kind.name, 0.5), collect_input_moments(module, [(x,)]))
        assert len(list(layers_of(low))) > len(list(layers_of(module)))
        low.train()(x).square().mean().backward()
        with torch.no_grad():
            for parameter in low.parameters():
                assert parameter.grad.abs().max() > 0
                parameter -= 0.01 * parameter.grad
        low.eval()
        shapes_alone = factorize(module, ranks(module, kind.name, 0.5))
        shapes_alone.load_state_dict(low.state_dict())
        assert torch.equal(shapes_alone(x), low(x))
        file = export_onnx(low, x[:1], tmp_path / "low.onnx")
        assert check_export(file.path, low, x).rms_relative < 1e-5
