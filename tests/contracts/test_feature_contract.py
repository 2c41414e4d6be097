"""What holds of every group of features in `autolabel.features`, found by walking the package."""

import importlib
import inspect
import pkgutil
import re
import warnings

import numpy as np
import pytest
import torch
from torch import nn
from torch.nn import functional as F

import autolabel.features
from autolabel.extraction import extract_features, extract_layer_features
from autolabel.feature import FeatureGroup, describe_features, feature_groups
from compress.errors import CompressError, DataError
from compress.layer_statistics import collect_layer_statistics
from compress.quantizer import fake_quantize_weight, largest_integer, weight_scale
from compress.quantizers.minmax import MinMaxQuantizer
from compress.statistics import collect_statistics
from compress.structure import analyze
from compress.task import ClassificationTask

GROUPS = (*feature_groups("removed"), *feature_groups("bits"))


class Awkward(nn.Module):
    """Dead rectifiers, constant channels, zero weights, a coupled residual, and layers without batch norm."""

    def __init__(self):
        super().__init__()
        self.a, self.norm, self.b = nn.Conv2d(2, 6, 3, padding=1), nn.BatchNorm2d(6), nn.Conv2d(6, 6, 3, padding=1)
        self.c, self.fc, self.dead, self.out = nn.Conv2d(6, 4, 1), nn.Linear(4, 5), nn.Linear(5, 3), nn.Linear(3, 3)

    def forward(self, x):
        x = torch.relu(self.norm(self.a(x)))
        x = torch.relu(self.c(x + torch.relu(self.b(x)))).mean((2, 3))
        return self.out(torch.relu(self.dead(torch.relu(self.fc(x)))))


def awkward():
    with torch.random.fork_rng():
        torch.manual_seed(0)
        model = Awkward().eval()
    with torch.no_grad():
        model.norm.weight[0], model.norm.bias[0] = 0.0, 1.0
        model.norm.weight[1], model.norm.bias[1] = 0.0, 0.0
        model.b.weight[3] = 0.0
        model.c.weight[1], model.c.bias[1] = 0.0, -1.0
        model.c.weight[2], model.c.bias[2] = 0.0, 2.0
        model.dead.weight.zero_()
        model.dead.bias.fill_(-1.0)
    return model


class Attention(nn.Module):
    """Two heads, a gated feed-forward part, layer norm, and token inputs."""

    def __init__(self):
        super().__init__()
        self.embed, self.norm = nn.Embedding(11, 8), nn.LayerNorm(8)
        self.qkv, self.proj, self.up, self.down = nn.Linear(8, 24), nn.Linear(8, 8), nn.Linear(8, 6), nn.Linear(6, 8)
        self.out = nn.Linear(8, 3)

    def forward(self, tokens):
        x = self.embed(tokens)
        b, t, _ = x.shape
        q, k, v = self.qkv(self.norm(x)).view(b, t, 3, 2, 4).permute(2, 0, 3, 1, 4)
        x = x + self.proj(F.scaled_dot_product_attention(q, k, v).transpose(1, 2).reshape(b, t, 8))
        return self.out((x + self.down(F.gelu(self.up(x)))).mean(1))


def images(n_batches=2):
    generator = torch.Generator().manual_seed(1)
    return [(torch.randn(4, 2, 5, 5, generator=generator), torch.tensor([0, 1, 2, 0])) for _ in range(n_batches)]


def sentences():
    generator = torch.Generator().manual_seed(1)
    return [(torch.randint(0, 11, (4, 5), generator=generator), torch.tensor([0, 1, 2, 0])) for _ in range(2)]


def attention():
    with torch.random.fork_rng():
        torch.manual_seed(0)
        return Attention().eval()


@pytest.fixture(name="cases", scope="module")
def statistics_of_both():
    """Name -> {choice: statistics}."""
    found = {}
    for name, model, batches in (("awkward", awkward(), images()), ("attention", attention(), sentences())):
        structure = analyze(model, batches[0][0])
        task = ClassificationTask()
        found[name] = {
            "removed": collect_statistics(structure, task, batches),
            "bits": collect_layer_statistics(structure, task, batches, MinMaxQuantizer()),
        }
    return found


def test_the_package_is_walked():
    modules = {module.name for module in pkgutil.iter_modules(autolabel.features.__path__)}
    assert {group.name for group in GROUPS} == modules
    assert modules >= {"structure", "weights", "activations", "saliency", "redundancy", "quantization", "criteria"}
    assert {type(group).__name__ for group in GROUPS} == set(autolabel.features.__all__)


def test_an_unknown_choice_is_refused():
    with pytest.raises(CompressError, match="'choice' parameter"):
        feature_groups("density")


def test_names_are_many_unique_and_documented():
    names = [name for group in GROUPS for name in group.columns]
    assert len(names) == len(set(names))
    assert sum(len(group.columns) for group in feature_groups("removed")) >= 40
    described = describe_features()
    assert list(described) == names
    for name, text in described.items():
        assert re.fullmatch(r"[a-z][a-z0-9_]*", name)
        assert len(text) > 3
        assert "\n" not in text
        # The labeler adds a column of this name.
        assert name != "bits"


@pytest.mark.parametrize("group", GROUPS, ids=lambda group: group.name)
class TestFeatureGroup:
    def test_satisfies_the_seam(self, group):
        assert isinstance(group, FeatureGroup)
        assert type(group).__module__ == f"autolabel.features.{group.name}"
        assert inspect.getdoc(type(group))

    @pytest.mark.parametrize("name", ["awkward", "attention"])
    def test_is_finite_on_dead_and_constant_units(self, group, cases, name):
        with warnings.catch_warnings(), np.errstate(all="raise", under="ignore"):
            warnings.simplefilter("error")
            values = np.asarray(group.compute(cases[name][group.choice]), dtype=np.float64)
        statistics = cases[name][group.choice]
        n_rows = statistics.n_units if group.choice == "removed" else len(statistics.names)
        assert values.shape == (n_rows, len(group.columns))
        assert np.isfinite(values).all()
        assert np.abs(values).max() < 1e9

    def test_repeats(self, group, cases):
        statistics = cases["awkward"][group.choice]
        np.testing.assert_array_equal(group.compute(statistics), group.compute(statistics))

    def test_imports_no_sibling(self, group):
        source = inspect.getsource(importlib.import_module(type(group).__module__))
        assert "autolabel.features" not in source


def test_no_two_columns_say_the_same(cases):
    """On a net without ties; without batch norm its criterion falls back to magnitude by design."""
    table = extract_features(cases["attention"]["removed"].structure, statistics=cases["attention"]["removed"])
    own = [i for i, name in enumerate(table.names) if not name.startswith("bn_scale")]
    varied = [i for i in own if len(np.unique(table.values[:, i])) > len(table.unit_ids) // 2]
    same = [(table.names[i], table.names[j]) for i in varied for j in varied if i < j and
            np.array_equal(table.values[:, i], table.values[:, j])]  # fmt: skip
    assert not same
    assert len(varied) > 40


def test_dead_and_constant_units_are_told(cases):
    statistics = cases["awkward"]["removed"]
    table = extract_features(statistics.structure, statistics=statistics)
    row = {unit: i for i, unit in enumerate(table.unit_ids)}
    dead, constant, shut = row["c:out[1]"], row["c:out[2]"], row["dead:out[0]"]
    assert table.column("act_zeros")[dead] == 1
    assert table.column("act_active_examples")[dead] == 0
    assert table.column("grad_active")[dead] == 0
    assert table.column("unexplained")[[dead, constant]].tolist() == [0, 0]
    assert table.column("act_constancy")[constant] == 1
    assert table.column("act_std")[constant] == 0
    assert table.column("error_silenced_log")[constant] > -1
    assert table.column("error_averaged_log")[constant] == -12
    assert table.column("weight_zeros")[shut] == 1
    assert table.column("weight_error_4bit")[shut] == 0


def test_structure_by_hand(cases):
    statistics = cases["awkward"]["removed"]
    table = extract_features(statistics.structure, statistics=statistics)
    row = {unit: i for i, unit in enumerate(table.unit_ids)}
    joined, fc = row["a:out[0]"], row["fc:out[0]"]
    assert table.column("n_producers")[[joined, fc]].tolist() == [2, 1]
    # The residual sum is read by b and by c.
    assert table.column("n_consumers")[[joined, fc]].tolist() == [2, 1]
    assert table.column("depth")[[joined, fc]] == pytest.approx([0, 3 / 5])
    assert 10 ** table.column("log_fan_in")[joined] == pytest.approx(2 * 9 + 6 * 9)
    assert 10 ** table.column("log_fan_in")[fc] == pytest.approx(4)
    assert 10 ** table.column("log_group_size")[joined] == pytest.approx(6)
    assert 10 ** table.column("log_positions")[joined] == pytest.approx(25)
    # fc: 4 inputs and 3 outputs of weights, and one bias.
    assert 10 ** table.column("log_macs_saved")[fc] == pytest.approx(7)
    assert 10 ** table.column("log_bytes_saved")[fc] == pytest.approx(32)
    heads = extract_features(cases["attention"]["removed"].structure, statistics=cases["attention"]["removed"])
    assert heads.column("is_head").sum() == 2


def test_quantization_by_hand():
    model = nn.Sequential(nn.Linear(3, 2, bias=False), nn.ReLU(), nn.Linear(2, 2)).eval()
    with torch.no_grad():
        model[0].weight.copy_(torch.tensor([[1.0, 0.4, -1.0], [2.0, -2.0, 2.0]]))
    batches = [(torch.ones(2, 3), torch.tensor([0, 1]))]
    table = extract_features(model, None, ClassificationTask(), batches)
    # Two bits take -1, 0, 1: 0.4 is lost. Three bits take thirds: 1/3 is left of it.
    assert table.column("weight_error_2bit") == pytest.approx([0.16 / 2.16, 0], abs=1e-6)
    assert table.column("weight_error_3bit") == pytest.approx([(0.4 - 1 / 3) ** 2 / 2.16, 0], abs=1e-6)


def test_rows_follow_the_units_asked_for():
    model, batches = awkward(), images()
    structure = analyze(model, batches[0][0])
    statistics = collect_statistics(structure, ClassificationTask(), batches)
    full = extract_features(structure, statistics=statistics, model_name="awkward")
    assert full.unit_ids == structure.units.ids[: structure.n_removable]
    assert full.group.tolist() == structure.units.group[: structure.n_removable].tolist()
    assert set(full.model.tolist()) == {"awkward"}
    some = structure.units.select([7, 2, len(structure.units) - 1])
    part = extract_features(structure, some, statistics=statistics)
    assert part.unit_ids == some.ids[:2]
    np.testing.assert_array_equal(part.values, full.values[[7, 2]])


def test_a_model_is_enough_and_stays_as_it_was():
    model, batches = awkward().train(), images()
    before = {name: value.clone() for name, value in model.state_dict().items()}
    units = analyze(model, batches[0][0]).units
    table = extract_features(model, units, ClassificationTask(), batches)
    layers = extract_layer_features(model, units, ClassificationTask(), batches, quantizer=MinMaxQuantizer())
    assert table.unit_ids + layers.unit_ids == units.ids
    assert layers.group.tolist() == list(layers.unit_ids)
    assert model.training
    assert all(torch.equal(before[name], value) for name, value in model.state_dict().items())
    assert all(parameter.grad is None and parameter.requires_grad for parameter in model.parameters())


def test_a_model_without_removable_units_gives_an_empty_table():
    model, batches = nn.Linear(3, 2), [(torch.ones(2, 3), torch.tensor([0, 1]))]
    assert extract_features(model, None, ClassificationTask(), batches).values.shape[0] == 0
    layers = extract_layer_features(model, None, ClassificationTask(), batches, quantizer=MinMaxQuantizer())
    assert len(layers.unit_ids) == 1


def test_wrong_calls_are_refused(cases):
    model, batches, task = awkward(), images(), ClassificationTask()
    with pytest.raises(CompressError, match="needs 'task' and 'calibration'"):
        extract_features(model)
    with pytest.raises(CompressError, match="at least one batch"):
        extract_features(model, None, task, [])
    with pytest.raises(DataError, match="Batch 1 has shape"):
        extract_features(model, None, task, [batches[0], (torch.ones(2, 2, 5, 6), torch.tensor([0, 1]))])
    with pytest.raises(DataError, match="at least one calibration batch"):
        extract_layer_features(cases["awkward"]["removed"].structure, None, task, [])
    other = cases["attention"]["removed"]
    with pytest.raises(CompressError, match="another model"):
        extract_features(cases["awkward"]["removed"].structure, statistics=other)
    with pytest.raises(CompressError, match="Unknown unit"):
        extract_features(other.structure, cases["awkward"]["removed"].units, statistics=other)
    two = collect_layer_statistics(analyze(model, batches[0][0]), task, batches, MinMaxQuantizer(), (8, 4))
    with pytest.raises(CompressError, match="widths"):
        extract_layer_features(model, statistics=two)


def test_layer_derivatives_are_those_of_the_rounding_error():
    """Against finite differences: E[t] is the slope of the mean loss from W towards the rounded W."""
    model, batches, task = attention().double(), sentences(), ClassificationTask()
    structure = analyze(model, batches[0][0])
    found = collect_layer_statistics(structure, task, batches, MinMaxQuantizer(), (4,))

    def losses():
        with torch.no_grad():
            return torch.cat([task.loss(model(*task.inputs(batch)), batch) for batch in batches])

    for row, name in enumerate(found.names):
        weight = model.get_parameter(f"{name}.weight")
        axis = 1 if name == "embed" else 0
        largest = largest_integer(4)
        keep = weight.detach().clone()
        scale = weight_scale(keep, largest, MinMaxQuantizer(), axis)
        error = fake_quantize_weight(keep.float(), scale, largest, axis).double() - keep.float().double()
        ends = []
        for step in (1e-4, -1e-4):
            weight.data = keep + step * error
            ends.append(losses())
        weight.data = keep
        t = (ends[0] - ends[1]) / 2e-4
        assert found.first[row, 0] == pytest.approx(float(t.mean()), rel=1e-4, abs=1e-7)
        assert found.second[row, 0] == pytest.approx(float(t.square().mean()), rel=1e-4, abs=1e-9)
        assert found.weight_error[row, 0] == pytest.approx(float(error.square().sum() / keep.square().sum()), rel=1e-4)


def test_layer_statistics_by_hand():
    """A linear layer whose weights 1 and 0.4 become 1 and 0 at two bits."""
    model = nn.Sequential(nn.Linear(2, 1, bias=False), nn.Linear(1, 2, bias=False)).eval()
    with torch.no_grad():
        model[0].weight.copy_(torch.tensor([[1.0, 0.4]]))
        model[1].weight.copy_(torch.tensor([[1.0], [1.0]]))

    class FirstOutput(ClassificationTask):
        def loss(self, outputs, batch):
            return outputs[:, 0]

    x = torch.tensor([[1.0, 1.0], [0.0, 2.0]])
    structure = analyze(model, x)
    found = collect_layer_statistics(structure, FirstOutput(), [(x, None)], MinMaxQuantizer(), (2,))
    assert found.names == ("0", "1")
    assert found.weight_error[0, 0] == pytest.approx(0.16 / 1.16)
    # The outputs 1.4 and 0.8 change by -0.4 and -0.8, and so does the loss.
    assert found.output_error[0, 0] == pytest.approx((0.16 + 0.64) / (1.96 + 0.64))
    assert found.first[0, 0] == pytest.approx(-0.6)
    assert found.second[0, 0] == pytest.approx(0.4)
    # The gradient of the sum is (1, 3), dW = (0, -0.4): (3 * 0.4)^2 over two examples.
    assert found.fisher[0, 0] == pytest.approx(0.72)
    assert found.first[1, 0] == 0
    assert found.input_max[0] == 2
    scores = found.scores()
    assert scores.choices == ("2bit",)
    assert scores.scale == "nats"
    np.testing.assert_allclose(scores.values[structure.units.positions(["0"]), 0], [-0.6 + 0.2], rtol=1e-6)
