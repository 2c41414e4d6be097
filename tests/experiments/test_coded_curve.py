"""The job that spends the same bytes in several ways, its table, and its page."""

import csv
import re
from dataclasses import replace

import numpy as np
import pytest
from hydra import compose, initialize_config_module

from autolabel.oracles import LayerChoiceOracle
from autolabel.tables import LabelTable
from experiments.coded_curve import CurveRow, draw_curves, write_page
from experiments.compared_methods import Method
from experiments.composition import compose_config
from experiments.config import ConfigError
from experiments.jobs.coded_curve import CodedCurveJob
from experiments.raw_table import read_raw, write_raw
from experiments.results import collect_rows
from experiments.run_dir import RunDir
from experiments.seeding import seeded
from experiments.settings import CompareSettings
from experiments.tracker import RunInfo
from experiments.trackers.null import NullTracker

BASE = [
    "experiment=quickstart", "debug=fast", "model.widths=[4,8,8]", "model.hidden=16", "train.epochs=1",
    "measure.sample=8", "measure.plans=0", "compare.methods=[criterion/knapsack]", "criterion=fisher",
    "allocator=knapsack", "allocator.always_quantize=true", "finetune.epochs=0", "quantize.epochs=0",
    "budget.macs=null", "budget.weight_bytes=null", "budget.coded_bytes=0.2", "export.coder=zstd",
]  # fmt: skip
ROW = CurveRow("cifar10_coded", "joint", "budget.coded_bytes=0.1", 0, "accuracy_percent", 91.7, 91.0, 110, 1100, 1e6,
               "c", "a", "{}")  # fmt: skip


def test_each_way_alone_is_a_part_of_the_menu():
    names = ("8bit", "3bit", "8bit_d0.5", "3bit_d0.5", "8bit_r0.5", "32bit_d0.5", "4bit_codebook")
    damage = np.arange(14.0).reshape(2, 7)
    table = LabelTable(("a", "b"), names, damage, damage, damage, damage, np.array(["measured"] * 2))
    menus = {
        way: Method(f"fisher/{way}").menu(table, CompareSettings()) for way in ("bits", "widths", "masks", "unmasked")
    }
    assert menus["bits"] is table
    assert menus["widths"].choices == ("8bit", "3bit", "4bit_codebook")
    assert menus["unmasked"].choices == ("8bit", "3bit", "8bit_r0.5", "4bit_codebook")
    # Floats with a mask are no way to come to few bytes.
    assert menus["masks"].choices == ("8bit", "8bit_d0.5")
    assert menus["masks"].damage.tolist() == [[0.0, 2.0], [7.0, 9.0]]
    assert Method("fisher/widths").menu(table, CompareSettings(formats_for=["bits"])) is None


def test_arms_are_compared_at_equal_bytes():
    rows = [
        replace(ROW, arm=arm, point=str(size), file_bytes=size, metric=metric)
        for arm, files in {"joint": {100: 90.0, 10: 80.0}, "bits alone": {1000: 92.0, 10: 88.0},
                           "masks alone": {50: 70.0}, "fisher": {100: 99.0}}.items()
        for size, metric in files.items()
    ]  # fmt: skip
    page = write_page(rows)
    # Half of the way from 10 to 1000 in the logarithm.
    assert "| times smaller | joint | bits alone | masks alone | joint against the best that comes to it |" in page
    assert "| 11.0 | 90.00 | 90.00 | >= 70.00 | +0.00 (bits alone) |" in page
    assert "| 110.0 | 80.00 | 88.00 | none (70.00 at 22.0x) | -8.00 (bits alone) |" in page
    # So little larger is alike.
    alike = write_page([replace(row, file_bytes=104) if row.arm == "masks alone" else row for row in rows])
    assert "| 11.0 | 90.00 | 90.00 | 70.00 | +0.00 (bits alone) |" in alike
    alone = write_page([row for row in rows if row.arm != "bits alone"])
    assert "| 11.0 | 90.00 | >= 70.00 | +20.00 (masks alone) |" in alone
    assert "| 110.0 | 80.00 | none (70.00 at 22.0x) | - |" in alone
    assert "equal bytes" not in write_page([row for row in rows if row.arm != "joint"])


@pytest.fixture(scope="module")
def config():
    return compose_config(["experiment=coded_curve"])


@pytest.mark.parametrize(
    ("changed", "match"),
    [
        ({"alone": {"spread": ["seed=1"]}}, r"job\.alone.*'spread'"),
        ({"base": ["seed=1"]}, r"job\.base must hold"),
        ({"points": ["penalty=l7"]}, "no 'penalty/l7'"),
    ],
)
def test_what_cannot_be_tried_is_refused(config, changed, match):
    good = {"base": BASE, "arms": {"joint": []}, "points": ["budget.coded_bytes=0.2"]}
    CodedCurveJob(**good).check(config)
    # Points of an arm that is left out are no mistake.
    left_out = good | {"arms": {"joint": [], "spread": None}, "alone": {"spread": ["seed=1"]}}
    assert CodedCurveJob(**left_out).places == [("joint", "budget.coded_bytes=0.2")]
    with pytest.raises(ConfigError, match=match):
        CodedCurveJob(**{**good, **changed}).check(config)


def test_arms_share_the_network_and_meet_the_point(config, tmp_path, monkeypatch, caplog):
    measured, measure = [], LayerChoiceOracle.measure

    def counted(self, structure, replay, rows, known, notes):
        measured.append(len(rows) * len(self.choices) - len(known))
        return measure(self, structure, replay, rows, known, notes)

    monkeypatch.setattr(LayerChoiceOracle, "measure", counted)
    job = CodedCurveJob(
        BASE,
        {
            "joint": [],
            "bits alone": ["constraints.floor=1.0"],
            "gone": None,
            "uniform": ["constraints.floor=0.999"],
            "no channel": ["compare.methods=[criterion/bits,criterion/masks]", "quantize.densities=[1.0,0.9]"],
            "no mask": ["compare.methods=[criterion/unmasked]", "quantize.densities=[1.0,0.9]"],
        },
        ["budget.coded_bytes=0.2", "budget.coded_bytes=0.03"],
        alone={"uniform": ["budget.coded_bytes=1.0 quantize.bits=[8]"], "no mask": ["budget.coded_bytes=0.15"]},
    )
    with RunDir(tmp_path) as run_dir, seeded("coded_curve", 0):
        told = job.run(config, run_dir, NullTracker(RunInfo("coded_curve", tmp_path)))["coded_curve"]
    rows = read_raw(tmp_path / "coded_curve.csv", CurveRow)
    # Without channels going none comes to a thirtieth, and masks at 8 bits not to a fifth.
    assert [row.arm for row in rows] == ["joint", "bits alone", "no channel", "joint", "uniform", "no mask"]
    assert list(told.values()) == [pytest.approx(row.metric, rel=1e-5) for row in rows]
    joint, bits, other, small, uniform, unmasked = rows
    assert small.file_bytes < joint.file_bytes
    assert {row.dense for row in rows} == {joint.dense}
    # The prediction of the plan before training; the header and biases come on top.
    assert max(joint.file_bytes, bits.file_bytes) < 0.25 * joint.dense_bytes
    assert bits.macs == uniform.macs > small.macs
    assert uniform.file_bytes > bits.file_bytes
    assert "budget.coded_bytes=1.0 'quantize.bits=[8]' constraints.floor=0.999" in uniform.command
    assert {row.chosen for row in rows if row not in (other, unmasked)} == {"criterion/knapsack"}
    assert (other.chosen, unmasked.chosen) == ("criterion/bits", "criterion/unmasked")
    assert "criterion/masks takes no part: " in caplog.text
    # What a file holds is told layer by layer.
    with (tmp_path / "coded_curve.layers.csv").open() as file:
        layers = [line for line in csv.DictReader(file) if line["arm"] == "bits alone"]
    assert len(layers) == 5
    assert {line["point"] for line in layers} == {bits.point}
    assert sum(int(line["dense_weights"]) for line in layers) * 4 < bits.dense_bytes
    assert bits.file_bytes * 0.5 < sum(int(line["coded_bytes"]) for line in layers) < bits.file_bytes
    # Arms that offer the same choices share what was measured of them: once for all, once for 8 bits alone.
    layers, widths = 5, (2, 1, 4)
    shared = [path.read_text().count("unit_id") for path in (tmp_path / "base" / "layer_rows").iterdir()]
    assert sorted(shared) == sorted(layers * n for n in widths)
    assert sorted(measured) == [0, 0, 0, 0, 0, 0, layers, 2 * layers, 4 * layers]


def test_tables_of_several_runs_come_together(tmp_path):
    rows = [replace(ROW, seed=seed, metric=90.0 + seed) for seed in (0, 2)]
    for row in rows:
        folder = tmp_path / str(row.seed)
        with RunDir(folder) as run_dir:
            write_raw(run_dir, "coded_curve.csv", list(vars(row)), [vars(row)])
    folders = [tmp_path / "0", tmp_path / "2"]
    assert collect_rows(folders, "coded_curve.csv", CurveRow, tmp_path / "raw.csv") == 2
    assert read_raw(tmp_path / "raw.csv", CurveRow) == rows


def test_the_page_and_the_figure_tell_means_over_seeds():
    rows = [ROW, replace(ROW, seed=1, metric=90.0), replace(ROW, arm="bits alone", metric=80.0)]
    page = write_page(rows)
    assert "| joint | 10.0 | 110 | 90.50 | 0.71 | 2 |" in page
    assert "| bits alone | 10.0 | 110 | 80.00 | - | 1 |" in page
    assert "Plans that" not in page
    # A gap as small as seeds make it is told as such.
    spread = [
        replace(ROW, seed=1, metric=90.0),
        *(replace(ROW, arm="bits alone", seed=s, metric=90.2 + s) for s in (0, 1)),
    ]
    assert "-0.20 (bits alone; within two standard errors)" in write_page([ROW, *spread])
    assert "+10.50 (bits alone)" in write_page(
        [ROW, replace(ROW, seed=1, metric=90.0), replace(ROW, arm="bits alone", metric=80.0)]
    )
    told = [
        replace(row, chosen=name) for row, name in zip(rows, ("labeler/knapsack", "criterion/bits", "x"), strict=True)
    ]
    # Of the third nothing is known; its size is the mean of all three.
    told += [
        replace(ROW, seed=2, file_bytes=220),
        replace(ROW, point="smaller", file_bytes=55, chosen="criterion/bits"),
    ]
    assert (
        "seeds where it is known: at 7.5x `labeler/knapsack` 1, `criterion/bits` 1; at 20.0x `criterion/bits` 1"
        in write_page(told)
    )
    figure = draw_curves([*rows, replace(ROW, point="budget.coded_bytes=0.05", file_bytes=55, metric=85.0)])
    (axes,), (legend,) = figure.axes, figure.legends
    assert [text.get_text() for text in legend.get_texts()] == ["joint", "bits alone"]
    joint = axes.containers[0].lines[0]
    assert joint.get_xdata().tolist() == [10.0, 20.0]
    assert joint.get_ydata().tolist() == [90.5, 85.0]


def test_an_arm_looks_the_same_in_every_panel():
    rows = [ROW, replace(ROW, arm="bits alone"), replace(ROW, network="another", arm="bits alone")]
    first, second = draw_curves(rows).axes
    colors = [[container.lines[0].get_color() for container in axes.containers] for axes in (first, second)]
    assert colors[0][1] == colors[1][0] != colors[0][0]


@pytest.mark.parametrize(
    "experiment", ["coded_curve", "coded_curve_lenet300", "coded_curve_lenet5", "coded_curve_minilm"]
)
def test_the_page_says_what_every_arm_is(experiment):
    with initialize_config_module("conf", version_base="1.3"):
        arms = compose("config", [f"experiment={experiment}"]).job.arms
    page = write_page([replace(ROW, arm=arm) for arm in arms])
    for arm in arms:
        assert re.search(rf"^\| {arm} \| [^\d|]", page, re.MULTILINE), arm


def test_what_was_tried_as_measured_is_told_and_not_drawn():
    rows = [ROW, replace(ROW, arm="as measured", metric=80.0)]
    (axes,) = draw_curves(rows).axes
    assert len(axes.containers) == 1
    assert "| as measured | 10.0 |" in write_page(rows)


def test_no_two_arms_look_alike():
    """Of more arms than there are colours too."""
    (axes,) = draw_curves([replace(ROW, arm=f"arm {i}") for i in range(12)]).axes
    lines = [container.lines[0] for container in axes.containers]
    looks = {(line.get_color(), line.get_marker(), line.get_linestyle(), line.get_markerfacecolor()) for line in lines}
    assert len(looks) == 12
