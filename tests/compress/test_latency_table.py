"""Times of layers: what is measured, once for each shape, and what a budget in milliseconds makes of it."""

import dataclasses
import json

import numpy as np
import onnx
import pytest
import torch
from torch import Tensor, nn

import compress
from compress.allocation import check_budget
from compress.errors import ArtifactError, CompressError
from compress.latency_table import LatencyTable, measure_latencies
from compress.layer_choice import choice_of
from compress.number_format import NumberFormat
from compress.runtime import Latency
from compress.runtimes.onnxruntime import OnnxRuntime

CHOICES = ("8bit", "4bit_d0.5", "32bit_r0.5", "16bit", "4bit_codebook")


class Net(nn.Module):
    """Two linears of one shape, the second used twice, and a narrower one."""

    def __init__(self) -> None:
        super().__init__()
        self.embed, self.a, self.b = nn.Embedding(9, 8), nn.Linear(8, 8), nn.Linear(8, 8)
        self.out = nn.Linear(8, 2)

    def forward(self, x: Tensor) -> Tensor:
        x = self.b(self.b(self.a(self.embed(x)).relu()).relu()).relu()
        return self.out(x.mean(1))


class Clock(OnnxRuntime):
    """Says that a call takes 1 ms, each further file 2 ms more, and each pass over the layers 0.5 ms more again."""

    def __init__(self) -> None:
        super().__init__()
        self.seen = []

    def measure(self, paths, inputs, threads=1, repeats=200):
        ops = [{node.op_type for node in onnx.load(path).graph.node} for path in paths]
        self.seen.append((ops, inputs[0].shape))
        late = 0.5 * ((len(self.seen) - 1) // 2)
        medians = [1.0, *(1.0 + 2 * i + late for i in range(1, len(paths)))]
        return [Latency(m, m, m, len(inputs[0]), threads, repeats, "a clock", "", True) for m in medians]


@pytest.fixture(name="measured", scope="module")
def measured_by_a_clock():
    with torch.random.fork_rng():
        torch.manual_seed(0)
        model = Net().eval()
    structure = compress.analyze(model, torch.zeros(2, 3, dtype=torch.long))
    clock = Clock()
    choices = [choice_of(name) for name in CHOICES]
    return structure, measure_latencies(structure, choices, batch=4, passes=2, runtime=clock), clock


def test_every_shape_is_measured_once_a_pass(measured):
    _, table, clock = measured
    assert [shape for _, shape in clock.seen] == [(4, 3, 8), (4, 8)] * 2
    # A call that does nothing; float, 8 bits (and so 4 bits), two factors in float.
    assert [len(ops) for ops, _ in clock.seen] == [4, 4, 4, 4]
    ops = clock.seen[0][0]
    assert not {"MatMul", "Gemm"} & ops[0]
    assert "QuantizeLinear" in ops[2]
    assert not any("QuantizeLinear" in ops[i] for i in (0, 1, 3))
    assert table.about == {"batch": 4, "threads": 1, "repeats": 200, "passes": 2, "runtime": "a clock", "cpu": "",
                           "vnni": True}  # fmt: skip


def test_times_are_those_of_the_fastest_pass_without_the_call(measured):
    _, table, _ = measured
    assert table.median_ms["32bit"] == {"a": 2.0, "b": 4.0, "out": 2.0}
    assert table.median_ms["16bit"] == table.median_ms["4bit_codebook"] == table.median_ms["32bit"]
    assert table.median_ms["8bit"] == table.median_ms["4bit_d0.5"] == {"a": 4.0, "b": 8.0, "out": 4.0}
    assert table.median_ms["32bit_r0.5"] == {"a": 6.0, "b": 12.0, "out": 6.0}
    assert table.spread_ms["8bit"] == {"a": 0.5, "b": 0.5, "out": 0.5}


def test_what_is_decoded_to_floats_takes_the_time_of_floats(measured):
    structure, _, _ = measured
    choices = [choice_of("4bit"), choice_of("8bit"), choice_of("4bit_symmetric")]
    table = measure_latencies(structure, choices, passes=1, runtime=Clock(), number_format=NumberFormat("codebook"))
    assert table.median_ms["4bit"] == table.median_ms["8bit"] == table.median_ms["32bit"]
    assert table.median_ms["4bit_symmetric"]["a"] == 2 * table.median_ms["32bit"]["a"]


def test_a_budget_in_milliseconds_is_spent(measured):
    structure, table, _ = measured
    costs = compress.unit_costs(structure)
    costs = dataclasses.replace(costs, latency_ms=table.for_layers(costs.layer_names))
    assert costs.dense["latency_ms"] == 8.0
    # By the clock few bits are slow, so only channels can go: of the two groups, those of no harm.
    values = np.full((len(structure.units), 2), np.nan)
    values[structure.units.removable, 0] = 1.0
    values[~structure.units.removable, 1] = 0.0
    scores = compress.Scores(structure.units.ids, ("removed", "8bit"), values, "nats")
    plan = compress.allocate(structure.units, scores, costs, compress.Budget(latency_ms=0.6), allocator="knapsack")
    assert plan.predicted_cost["latency_ms"] <= 0.6 * 8
    assert plan.remove_channels
    assert plan.layer_formats == {}
    quick = {choice: times * 0.005 for choice, times in costs.latency_ms.items()}
    with pytest.raises(compress.BudgetError, match=r"1e-05 allows 4e-07 of 0\.04, .* needs 0\.\d+ \("):
        check_budget(structure.units, dataclasses.replace(costs, latency_ms=quick), compress.Budget(latency_ms=1e-5))


def test_a_table_survives_its_file_and_damage_is_named(measured, tmp_path):
    _, table, _ = measured
    path = tmp_path / "latencies.json"
    table.save(path)
    assert LatencyTable.load(path) == table
    good = json.loads(path.read_text())
    for broken in (
        [], {"schema_version": 1}, {**good, "schema_version": 2}, {**good, "median_ms": {"8bit": {"a": 1.0}}},
        {**good, "median_ms": {"32bit": {"a": -1.0}}}, {**good, "median_ms": {"32bit": {"a": 1.0}, "8bit": {"b": 1.0}}},
        {**good, "spread_ms": {"32bit": {"a": "1"}}}, {**good, "about": 3},
    ):  # fmt: skip
        path.write_text(json.dumps(broken))
        with pytest.raises(ArtifactError, match=r"latencies\.json is not a"):
            LatencyTable.load(path)


def test_another_model_and_wrong_settings_are_refused(measured):
    structure, table, _ = measured
    with pytest.raises(CompressError, match="another model: it has a layer 'b'"):
        table.for_layers(["a", "out"])
    with pytest.raises(CompressError, match="'passes'"):
        measure_latencies(structure, passes=0)
    tokens = compress.analyze(nn.Embedding(3, 2), torch.zeros(1, 2, dtype=torch.long))
    with pytest.raises(CompressError, match="It has none"):
        measure_latencies(tokens)


def test_the_engine_itself_times_a_wide_layer_above_a_narrow_one():
    model = nn.Sequential(nn.Linear(256, 1024), nn.ReLU(), nn.Linear(1024, 4)).eval()
    table = measure_latencies(compress.analyze(model, torch.zeros(1, 256)), (), repeats=30)
    assert list(table.median_ms) == ["32bit", "8bit"]
    assert 0 < table.median_ms["32bit"]["2"] < table.median_ms["32bit"]["0"] < 100
    assert table.about["runtime"].startswith("onnxruntime")
