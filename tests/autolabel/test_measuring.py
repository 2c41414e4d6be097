"""Measuring: rows on disk, kills, adaptive looks, layer choices, and input that is refused."""

import json
import os
import signal
import subprocess
import sys
import types

import numpy as np
import pytest
import torch
from torch import nn

import compress
from autolabel.measuring import _key, measure
from autolabel.oracle import Moments
from autolabel.oracles import LayerChoiceOracle, RemovalOracle
from autolabel.strata import StratifiedMoments, hardest_first
from compress.errors import ArtifactError, CompressError, DataError
from compress.quantizer import dequantize_weight, quantize_weight
from compress.quantizers import PercentileQuantizer
from compress.replay import Replay
from compress.task import ClassificationTask

TASK = ClassificationTask()


def make_model(seed: int = 0) -> nn.Module:
    with torch.random.fork_rng():
        torch.manual_seed(seed)
        return nn.Sequential(nn.Linear(5, 8), nn.ReLU(), nn.Linear(8, 6), nn.ReLU(), nn.Linear(6, 3)).eval()


def make_batches(n_batches: int = 2, size: int = 8, seed: int = 1) -> list[tuple[torch.Tensor, torch.Tensor]]:
    generator = torch.Generator().manual_seed(seed)
    return [(torch.randn(size, 5, generator=generator), torch.randint(0, 3, (size,), generator=generator))
            for _ in range(n_batches)]  # fmt: skip


class CountingOracle(RemovalOracle):
    """Writes down which rows it was asked for."""

    def __init__(self, relative_error: float = 0.0) -> None:
        super().__init__(relative_error)
        self.asked = []

    def measure(self, structure, replay, rows, done=(), notes=None):
        ids = [structure.units.ids[row] for row in rows]
        self.asked += [unit for unit in ids if (unit, "removed") not in done]
        yield from super().measure(structure, replay, rows, done, notes)


def assert_same(first, second):
    assert first.unit_ids == second.unit_ids
    for name in ("damage", "std_err", "lower", "upper"):
        np.testing.assert_array_equal(getattr(first, name), getattr(second, name))
    assert first.naive_macs == second.naive_macs
    assert first.forward_macs == pytest.approx(second.forward_macs)


def test_damage_and_standard_error_of_a_removal():
    model, batches = make_model(), make_batches()
    table = measure(model, None, TASK, batches, RemovalOracle())
    structure = compress.analyze(model, batches[0][0])
    plan = compress.CompressionPlan.removing(structure.units, ["2:out[4]"])
    masked = compress.simulate_plan(structure, plan)
    with torch.no_grad():
        changes = torch.cat([TASK.loss(masked(x), (x, y)) - TASK.loss(model(x), (x, y)) for x, y in batches]).double()
    row = table.unit_ids.index("2:out[4]")
    assert table.damage[row, 0] == pytest.approx(changes.mean().item(), abs=1e-6)
    assert table.std_err[row, 0] == pytest.approx(changes.std().item() / 4, abs=1e-6)
    assert table.upper[row, 0] - table.lower[row, 0] == pytest.approx(2 * 1.96 * table.std_err[row, 0])
    assert np.isnan(table.damage[~structure.units.removable]).all()
    assert 0 < table.forward_macs < table.naive_macs
    assert table.naive_macs == 14 * 16 * (40 + 48 + 18)


def test_layer_choices_are_the_model_with_the_weight_replaced():
    model, batches = make_model(), make_batches()
    oracle = LayerChoiceOracle((8, 3))
    table = measure(model, None, TASK, batches, oracle)
    for name in ("0", "2", "4"):
        for column, bits in enumerate(oracle.bits):
            changed = make_model()
            weight = changed.get_submodule(name).weight.data
            weight.copy_(dequantize_weight(*quantize_weight(weight, bits, oracle.quantizer, 0), 0))
            with torch.no_grad():
                losses = [TASK.loss(changed(x), (x, y)) - TASK.loss(model(x), (x, y)) for x, y in batches]
            expected = torch.cat(losses).double().mean().item()
            assert table.damage[table.unit_ids.index(name), column] == pytest.approx(expected, abs=1e-6)
    assert 0 < table.forward_macs <= table.naive_macs


def test_adaptive_looks_at_fewer_examples_and_keeps_the_order():
    model, batches = make_model(), make_batches(n_batches=12, size=64)
    for linear in (model[0], model[2]):
        linear.weight.data *= torch.logspace(-1, 0.8, len(linear.weight))[:, None]  # some matter far more than others
    with torch.no_grad():
        batches = [(x, model(x).argmax(1)) for x, _ in batches]
    exact = measure(model, None, TASK, batches, RemovalOracle())
    fewer = measure(model, None, TASK, batches, RemovalOracle(relative_error=0.3))
    dense = 2 * exact.naive_macs / 14  # one pass for the losses, one for the values that are kept
    assert fewer.forward_macs - dense < 0.6 * (exact.forward_macs - dense)
    assert fewer.naive_macs == exact.naive_macs
    known = np.isfinite(exact.damage[:, 0])
    ranks = [table.damage[known, 0].argsort().argsort() for table in (exact, fewer)]
    assert np.corrcoef(ranks)[0, 1] > 0.95
    assert (np.abs(fewer.damage - exact.damage)[known] <= 4 * fewer.std_err[known]).all()


def test_hard_examples_come_first_and_the_estimate_is_unbiased():
    model, batches = make_model(), make_batches(n_batches=3, size=8)
    replay = Replay(compress.analyze(model, batches[0][0]), TASK, batches)
    dealt, n_hard = hardest_first(replay, 0.5)
    losses = np.sort(np.concatenate(replay.dense))[::-1]
    np.testing.assert_array_equal(np.concatenate(dealt.dense[:n_hard]), losses[:12])
    np.testing.assert_allclose(np.sort(np.concatenate(dealt.dense[n_hard:]))[::-1], losses[12:])
    recomputed = Replay(replay.structure, TASK, dealt.batches)
    np.testing.assert_allclose(np.concatenate(recomputed.dense), np.concatenate(dealt.dense), atol=1e-6)
    generator = np.random.default_rng(0)
    values = generator.normal(size=24)
    means, errors = [], []
    for _ in range(2000):
        moments = StratifiedMoments(12, 12)
        moments.hard.add(values[:12])
        moments.rest.add(generator.permutation(values[12:])[:4])
        means.append(moments.mean - values.mean())
        errors.append(moments.sampling_error)
    assert abs(np.mean(means)) < 3 * np.std(means) / 2000**0.5
    assert np.std(means) == pytest.approx(np.sqrt(np.mean(np.square(errors))), rel=0.1)
    moments.rest = Moments()
    moments.rest.add(values[12:])
    assert moments.mean == pytest.approx(values.mean())
    assert moments.sampling_error == 0
    assert moments.std_err == pytest.approx(values.std(ddof=1) / 24**0.5)


def test_batches_that_cannot_be_divided_stay():
    class WithNames(ClassificationTask):
        def loss(self, outputs, batch):
            return super().loss(outputs, batch[:2])

    batches = [(*batch, "a name") for batch in make_batches()]
    replay = Replay(compress.analyze(make_model(), batches[0][0]), WithNames(), batches)
    assert hardest_first(replay, 0.5) == (replay, 2)


def test_batches_of_several_shapes_are_measured_exactly():
    batches = [(torch.zeros(6, length, 5), torch.zeros(6)) for length in (2, 3)]
    sentences = types.SimpleNamespace(batches=batches, sizes=[6, 6], dense=[np.zeros(6)] * 2)
    assert hardest_first(sentences, 0.5) == (sentences, 2)
    moments = StratifiedMoments(12, 0)
    moments.hard.add(np.arange(12.0))
    assert moments.sampling_error == 0
    assert moments.std_err == pytest.approx(np.arange(12.0).std(ddof=1) / 12**0.5)


def test_rows_of_exact_measuring_do_not_depend_on_what_is_adaptive_alone(tmp_path):
    model, batches, file = make_model(), make_batches(), tmp_path / "rows.jsonl"
    measure(model, None, TASK, batches, RemovalOracle(hard_fraction=0.25), rows_file=file)
    written = file.read_bytes()
    measure(model, None, TASK, batches, RemovalOracle(hard_fraction=0.5), rows_file=file)
    assert file.read_bytes() == written
    with pytest.raises(ArtifactError, match="another model, data set or oracle"):
        measure(model, None, TASK, batches, RemovalOracle(0.3, hard_fraction=0.5), rows_file=file)


def test_rows_of_other_settings_of_a_component_are_refused(tmp_path):
    file = tmp_path / "rows.jsonl"
    measure(make_model(), None, TASK, make_batches(), LayerChoiceOracle(quantizer=PercentileQuantizer(99.9)), 1,
            rows_file=file)  # fmt: skip
    with pytest.raises(ArtifactError, match="another model, data set or oracle"):
        measure(make_model(), None, TASK, make_batches(), LayerChoiceOracle(quantizer=PercentileQuantizer(60)), 1,
                rows_file=file)  # fmt: skip


def test_rows_of_the_default_number_format_are_those_from_before_there_were_others():
    structure = compress.analyze(make_model(), torch.zeros(1, 5))
    replay = Replay(structure, TASK, make_batches())

    def key(oracle, *left_out):
        told = {name: value for name, value in vars(oracle).items() if name not in left_out}
        return _key(structure, types.SimpleNamespace(name=LayerChoiceOracle.name, **told), replay)

    plain = LayerChoiceOracle()
    assert key(plain) == key(plain, "number_format")
    others = [{"scheme": "affine"}, {"granularity": "tensor"},
              *({"granularity": "group", "group_size": size} for size in (2, 4))]  # fmt: skip
    assert len({key(plain), *(key(LayerChoiceOracle(**other)) for other in others)}) == 5


def test_a_sample_measures_only_its_units():
    oracle = CountingOracle()
    seen = []
    table = measure(make_model(), None, TASK, make_batches(), oracle, 5, on_row=lambda *done: seen.append(done))
    assert len(oracle.asked) == 5
    assert set(np.array(table.unit_ids)[np.isfinite(table.damage[:, 0])]) == set(oracle.asked)
    assert seen == [(i, 5) for i in range(1, 6)]


def test_resume_after_a_torn_line_measures_nothing_twice(tmp_path):
    model, batches, file = make_model(), make_batches(), tmp_path / "deep" / "rows.jsonl"
    whole = measure(model, None, TASK, batches, CountingOracle(), rows_file=file)
    lines = file.read_bytes().splitlines(keepends=True)
    assert len(lines) == 1 + 14
    file.write_bytes(b"".join(lines[:6]) + lines[6][:20])
    oracle = CountingOracle()
    resumed = measure(model, None, TASK, batches, oracle, rows_file=file)
    assert_same(resumed, whole)
    known = [json.loads(line)["unit_id"] for line in lines[1:6]]
    assert sorted(oracle.asked + known) == sorted(json.loads(line)["unit_id"] for line in lines[1:])
    oracle = CountingOracle()
    assert_same(measure(model, None, TASK, batches, oracle, rows_file=file), whole)
    assert oracle.asked == []


def test_a_torn_first_line_starts_over(tmp_path):
    file = tmp_path / "rows.jsonl"
    file.write_bytes(b'{"key": "ab')
    oracle = CountingOracle()
    measure(make_model(), None, TASK, make_batches(), oracle, rows_file=file)
    assert len(oracle.asked) == 14


@pytest.mark.parametrize("other", ["model", "data", "oracle"])
def test_rows_of_something_else_are_refused(tmp_path, other):
    file = tmp_path / "rows.jsonl"
    measure(make_model(), None, TASK, make_batches(), RemovalOracle(), 3, rows_file=file)
    model = make_model(seed=int(other == "model"))
    batches = make_batches(seed=2 if other == "data" else 1)
    oracle = RemovalOracle(0.3 if other == "oracle" else 0.0)
    before = file.read_bytes()
    with pytest.raises(ArtifactError, match="another model, data set or oracle"):
        measure(model, None, TASK, batches, oracle, 3, rows_file=file)
    assert file.read_bytes() == before


@pytest.mark.parametrize(
    ("line", "damage"),
    [(2, b"garbage\n"), (2, b'{"unit_id": "0:out[0]"}\n'), (0, b"[]\n"), (2, b"\xff\xfe\n"), (2, b"3\n"),
     (2, b'{"unit_id": "0:out[0]", "choice": "removed", "damage": "x", "std_err": 1, "n_examples": 1, '
         b'"forward_macs": 1, "naive_macs": 1}\n'),
     (2, b'{"unit_id": "9:out[0]", "choice": "removed", "damage": 1, "std_err": 1, "n_examples": 1, '
         b'"forward_macs": 1, "naive_macs": 1}\n')],
)  # fmt: skip
def test_damaged_rows_are_refused(tmp_path, line, damage):
    file = tmp_path / "rows.jsonl"
    measure(make_model(), None, TASK, make_batches(), RemovalOracle(), rows_file=file)
    lines = file.read_bytes().splitlines(keepends=True)
    lines[line] = damage
    file.write_bytes(b"".join(lines))
    with pytest.raises(ArtifactError, match=r"rows\.jsonl is damaged.*Delete it to measure again"):
        measure(make_model(), None, TASK, make_batches(), RemovalOracle(), rows_file=file)


def test_a_kill_loses_at_most_the_row_in_hand(tmp_path):
    """SIGKILL in another process right after its sixth row, then the same call."""
    file = tmp_path / "rows.jsonl"
    script = (
        "import os, runpy, signal, sys\n"
        "test = runpy.run_path(sys.argv[1])\n"
        "kill = lambda done, total: done == 6 and os.kill(os.getpid(), signal.SIGKILL)\n"
        "test['measure'](test['make_model'](), None, test['TASK'], test['make_batches'](), test['RemovalOracle'](),\n"
        "                rows_file=sys.argv[2], on_row=kill)\n"
    )
    environment = {**os.environ, "OMP_NUM_THREADS": "1"}
    done = subprocess.run([sys.executable, "-c", script, __file__, str(file)], env=environment, check=False)
    assert done.returncode == -signal.SIGKILL
    assert len(file.read_bytes().splitlines()) == 1 + 6
    seen = []
    resumed = measure(make_model(), None, TASK, make_batches(), RemovalOracle(), rows_file=file,
                      on_row=lambda *done: seen.append(done))  # fmt: skip
    assert seen == [(i, 14) for i in range(7, 15)]
    assert_same(resumed, measure(make_model(), None, TASK, make_batches(), RemovalOracle()))


def test_a_file_that_cannot_be_written_is_named(tmp_path):
    (tmp_path / "rows.jsonl").mkdir()
    with pytest.raises(ArtifactError, match=r"rows\.jsonl"):
        measure(make_model(), None, TASK, make_batches(), RemovalOracle(), rows_file=tmp_path / "rows.jsonl")
    (tmp_path / "file").write_text("")
    with pytest.raises(ArtifactError, match=r"rows\.jsonl"):
        measure(make_model(), None, TASK, make_batches(), RemovalOracle(), rows_file=tmp_path / "file" / "rows.jsonl")


def test_bad_calibration_is_refused():
    model, batches = make_model(), make_batches()
    (x, y), oracle = batches[0], CountingOracle()
    with pytest.raises(DataError, match="'calibration' parameter of measure must hold at least one batch"):
        measure(model, None, TASK, [], oracle)
    with pytest.raises(DataError, match="Batch 1 is empty"):
        measure(model, None, TASK, [batches[0], (x[:0], y[:0])], oracle)
    with pytest.raises(DataError, match="Batch 1 holds NaN"):
        measure(model, None, TASK, [batches[0], (x.log(), y)], oracle)
    with pytest.raises(DataError, match=r"Batch 1 has shape \(8, 4\)"):
        measure(model, None, TASK, [batches[0], (x[:, :4], y)], oracle)
    model[2].weight.data *= 1e30
    with pytest.raises(DataError, match="loss is not finite"):
        measure(model, None, TASK, [(x * 1e20, y)], oracle, example_inputs=x)
    assert oracle.asked == []


def test_bad_units_and_settings_are_refused():
    batches = make_batches()
    other = compress.find_units(nn.Sequential(nn.Linear(5, 20), nn.Linear(20, 3)), batches[0][0])
    with pytest.raises(CompressError, match=r"Unknown unit '0:out\[8\]'"):
        measure(make_model(), other, TASK, batches, RemovalOracle())
    with pytest.raises(CompressError, match="'strategy' parameter"):
        measure(make_model(), None, TASK, batches, RemovalOracle(), 3, strategy="best")
    with pytest.raises(CompressError, match="'relative_error' parameter of RemovalOracle must be >= 0"):
        RemovalOracle(-0.1)
    model = make_model()
    model[0].weight.data[0, 0] = float("nan")
    with pytest.raises(DataError, match=r"0\.weight"):
        measure(model, None, TASK, batches, RemovalOracle())


@pytest.mark.parametrize("oracle", [RemovalOracle(), LayerChoiceOracle((8, 2), ranks=(0.5,))])
def test_nothing_is_in_hand_but_one_row(oracle):
    """All that was computed when a row comes belongs to rows that came: a kill loses no more than the next one."""
    batches = make_batches(n_batches=4, size=8)
    structure = compress.analyze(make_model(), batches[0][0])
    replay = Replay(structure, TASK, batches)
    rows = structure.units.positions([i for i, kind in zip(structure.units.ids, structure.units.kind, strict=True)
                                      if (kind == "layer") == (oracle.kind == "layer")])  # fmt: skip
    begun, total, kept = replay.forward_macs, 0.0, []
    for measurement in oracle.measure(structure, replay, rows):
        total += measurement.forward_macs
        kept.append((replay.forward_macs - begun - total) / (replay.full_macs * replay.n_examples))
    assert len(kept) >= 3
    # What comes on top are passes for values that are kept and for moments of inputs: whole ones, of the dense model.
    assert kept == pytest.approx(np.round(kept), abs=1e-9)
    assert max(kept) <= 4


def test_choices_of_a_layer_that_were_measured_are_not_measured_again(tmp_path):
    model, batches, file = make_model(), make_batches(), tmp_path / "rows.jsonl"
    oracle = LayerChoiceOracle((8, 4, 2), ranks=(0.3, 0.6))
    whole = measure(model, None, TASK, batches, oracle, rows_file=file)
    lines = file.read_bytes().splitlines(keepends=True)
    for left in (1, 4, 7, len(lines)):
        file.write_bytes(b"".join(lines[:left]))
        seen = []
        assert_same(measure(model, None, TASK, batches, oracle, rows_file=file, on_row=lambda *d, s=seen: s.append(d)),
                    whole)  # fmt: skip
        assert len(seen) == len(lines) - left
        assert sorted(file.read_bytes().splitlines()) == sorted(line.strip() for line in lines)
