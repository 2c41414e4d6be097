"""Mixed-precision configurations: rows, resuming, allocations within their budget, the page."""

import dataclasses

import numpy as np
import pytest
import torch
from torch import nn

from autolabel.joint_widths import WidthBench
from compress import ClassificationTask, analyze
from compress.counting import unit_costs
from compress.files import read_json
from compress.quantizers.minmax import MinMaxQuantizer
from compress.quantizers.mse import MseQuantizer
from experiments.config import ConfigError
from experiments.figure_style import figure_style, render_file_svg
from experiments.jobs.mixed_precision import MixedPrecisionJob
from experiments.mixed_precision import (
    AllocationRow,
    WidthRow,
    WidthStudy,
    choose_widths,
    summarize_widths,
    weight_bytes,
)
from experiments.mixed_precision_page import draw_widths, write_page
from experiments.raw_table import read_raw, write_raw
from experiments.run_dir import RunDir
from experiments.settings import Config

BITS = (8, 4, 2)


@pytest.fixture(scope="module")
def network():
    generator = torch.Generator().manual_seed(0)
    centres = torch.randn(4, 12, generator=generator)
    with torch.random.fork_rng():
        torch.manual_seed(0)
        model = nn.Sequential(nn.Linear(12, 16), nn.ReLU(), nn.Linear(16, 16), nn.ReLU(), nn.Linear(16, 4))
    parts = []
    for _ in range(3):
        y = torch.randint(0, 4, (64,), generator=generator)
        parts.append([(centres[y] + 0.8 * torch.randn(64, 12, generator=generator), y)])
    optimizer = torch.optim.Adam(model.parameters(), 0.01)
    for _ in range(150):
        optimizer.zero_grad()
        nn.functional.cross_entropy(model(parts[0][0][0]), parts[0][0][1]).backward()
        optimizer.step()
    return analyze(model.eval(), parts[0][0][0][:2]), parts[1], parts[2]


STUDY = WidthStudy(configs=24, learned=(10, 15), seeds=(0, 1), budgets=(3.0, 5.0))


@pytest.fixture(scope="module")
def found(network, tmp_path_factory):
    folder = tmp_path_factory.mktemp("study")
    structure, label, judged = network
    return folder, *STUDY.run(structure, ClassificationTask(), MseQuantizer(), BITS, label, judged, folder)


def test_every_predictor_has_a_row_for_every_configuration(found):
    folder, rows, chosen = found
    counts = {name: sum(row.predictor == name for row in rows) for name in {row.predictor for row in rows}}
    assert counts == {"mean_bits": 24, "weight_error": 24, "fisher": 24, "sum": 24, "joint_10": 48, "joint_15": 48,
                      "fisher_joint_10": 48, "fisher_joint_15": 48, "pairs_joint_10": 48, "pairs_joint_15": 48,
                      "gauss_newton": 24, "gauss_newton_pairs": 24}  # fmt: skip
    cost = {row.predictor: row.label_cost_forward_macs for row in rows}
    assert cost["mean_bits"] == 0 < cost["sum"] < cost["joint_10"] < cost["joint_15"]
    assert len(chosen) == 2 * (2 + 4 * 2 + 1)
    lines = {line["predictor"]: line for line in summarize_widths(rows)}
    assert lines["joint_15"]["seeds"] == 2
    assert lines["mean_bits"]["within_1.5"] is None
    # Seeds draw other configurations to learn from, and none of them is judged.
    drawn = [
        read_json(folder / "measured" / f"{part}_0000.json")["widths"] for part in ("label_0", "label_1", "judged")
    ]
    assert drawn[0] != drawn[1] != drawn[2] != drawn[0]


def test_a_killed_study_goes_on_and_other_scales_are_measured_anew(found, network, monkeypatch):
    folder, rows, _ = found
    structure, label, judged = network
    calls = []
    evaluate = WidthBench.evaluate
    monkeypatch.setattr(WidthBench, "evaluate", lambda self, w, b: calls.append(1) or evaluate(self, w, b))
    again, _ = STUDY.run(structure, ClassificationTask(), MseQuantizer(), BITS, label, judged, folder)
    assert again == rows
    few = len(calls)
    (folder / "measured" / "judged_0010.json").unlink()
    calls.clear()
    STUDY.run(structure, ClassificationTask(), MseQuantizer(), BITS, label, judged, folder)
    assert len(calls) == few + 10
    calls.clear()
    STUDY.run(structure, ClassificationTask(), MinMaxQuantizer(), BITS, label, judged, folder)
    assert len(calls) >= few + 24 + 2 * 15


def test_allocations_keep_to_their_bytes(found, network):
    structure, _, _ = network
    costs = unit_costs(structure)
    bench = WidthBench(structure, ClassificationTask(), MseQuantizer(), BITS)
    for row in found[2]:
        assert row.weight_bytes <= weight_bytes(structure, costs, dict.fromkeys(bench.layers, row.bits))
        assert row.widths.count("-") == 2
    damage = np.array([0, 0, 9.0, 0, 0, 0.1, 0, 0, 0.1])
    bound = weight_bytes(structure, costs, dict.fromkeys(bench.layers, 4.0))
    assert choose_widths(structure, costs, bench, damage, bound)[0] > 2


def test_the_page_tells_who_won(found, tmp_path):
    _, rows, chosen = found
    page = write_page(rows, chosen, "`command`")
    assert "24 configurations" in page
    assert "| fisher_joint_10 | fisher, learned with 10 configurations |" in page
    assert "| true |" in page
    with figure_style(text_as_paths=True):
        assert render_file_svg(draw_widths(rows)).startswith(b"<?xml")


def test_raw_tables_are_read_back(found, tmp_path):
    _, rows, chosen = found
    with RunDir(tmp_path / "run", {"command": "x"}) as run_dir:
        for kind, name, written in ((WidthRow, "a.csv", rows), (AllocationRow, "b.csv", chosen)):
            write_raw(run_dir, name, [f.name for f in dataclasses.fields(kind)], map(dataclasses.asdict, written))
    for kind, name, written in ((WidthRow, "a.csv", rows), (AllocationRow, "b.csv", chosen)):
        read = read_raw(tmp_path / "run" / name, kind)
        assert [row.widths for row in read] == [row.widths for row in written]
        assert [row.loss for row in read] == pytest.approx([row.loss for row in written], rel=1e-5)


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"configs": 3}, "job.configs must be at least 10"),
        ({"learned": []}, "job.learned must be at least 10"),
        ({"seeds": []}, "job.seeds"),
        ({"budgets": [1.0]}, "job.budgets must lie between"),
        ({}, "model must be chosen"),
    ],
)
def test_a_job_that_cannot_run_is_refused_at_once(settings, message):
    with pytest.raises(ConfigError, match=message):
        MixedPrecisionJob(**settings).check(Config(model=None, data=None))
