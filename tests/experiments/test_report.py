"""The report over a run folder made by hand: numbers, losses and absences told plainly, a page that stands alone."""

import csv
import io
import json
import re
import runpy
import sys
from dataclasses import replace
from html.parser import HTMLParser
from pathlib import Path

import numpy as np
import pytest

from autolabel.tables import FeatureTable, LabelTable
from compress.errors import ArtifactError
from compress.files import read_json, write_json
from compress.plan import CompressionPlan, LayerFormat
from compress.units import UnitTable
from experiments import figures
from experiments.figure_style import figure_style
from experiments.figures import DRAWINGS, write_figures, write_overview
from experiments.figures_units import told_choices
from experiments.front_table import FrontRow
from experiments.methods import gather_methods, judge
from experiments.raw_table import to_csv
from experiments.report import summarize, write_report
from experiments.report_page import render_page
from experiments.run_files import Trial, read_run

ROOT = Path(__file__).resolve().parents[2]
CHOICES = ("8bit", "6bit", "4bit", "3bit", "2bit")
METHODS = {
    "labeler": (78.9, 89.9), "labeler/mac": (83.1, 90.6), "fisher/mac": (81.9, 90.7), "fisher": (62.0, 88.9),
    "second_order": (70.0, 89.2), "second_order/mac": (77.3, 90.2), "taylor": (66.0, 89.0), "taylor/mac": (74.0, 89.8),
    "magnitude": (68.6, 89.1), "magnitude/mac": (71.0, 89.3), "random": (71.3, 88.7), "random/mac": (70.5, 88.5),
}  # fmt: skip
EVERY_FIGURE = {
    "comparison", "accuracy_against_macs", "agreement", "scatter", "calibration", "group_sensitivity",
    "layer_sensitivity", "removed", "bits", "damage", "front", "sizes", "training",
}  # fmt: skip


def make_units() -> UnitTable:
    """Groups and layers of a ResNet-20: the streams of its three stages and the inside of each block."""
    groups = {"conv1:out": 16}
    layers = ["conv1"]
    for stage, width in enumerate((16, 32, 64), start=1):
        for block in range(3):
            groups[f"layer{stage}.{block}.conv1:out"] = width
            layers += [f"layer{stage}.{block}.conv1", f"layer{stage}.{block}.conv2"]
        if stage > 1:
            groups[f"layer{stage}.0.conv2:out"] = width
    layers.append("linear")
    ids = [f"{group}[{i}]" for group, n in groups.items() for i in range(n)] + layers
    group = [group for group, n in groups.items() for _ in range(n)] + layers
    index = [i for n in groups.values() for i in range(n)] + [0] * len(layers)
    kind = ["channel"] * (len(ids) - len(layers)) + ["layer"] * len(layers)
    blocked = (("lstm", "recurrent layers cannot be cut: their state has the size of the cell"),)
    return UnitTable(tuple(ids), np.array(group), np.array(index), np.array(kind), blocked, "f" * 64)


def make_tables(folder: Path, units: UnitTable) -> np.ndarray:
    """Write units, features, labels, held-out labels and layer labels; return the damages of the channels."""
    rng = np.random.default_rng(0)
    n = int(units.removable.sum())
    ids = units.ids[:n]
    depth = np.unique(units.group[:n], return_inverse=True)[1]
    damage = np.exp(rng.normal(-5.5 - 0.12 * depth, 1.2))
    predicted = damage * np.exp(rng.normal(0, 0.45, n))
    measured = rng.random(n) < 0.5
    spread = np.exp(1.645 * 0.42)

    def labels(values: np.ndarray, source: np.ndarray) -> LabelTable:
        error = np.where(source == "measured", 0.05 * values, np.nan)
        return LabelTable(ids, ("removed",), values[:, None], error[:, None], (predicted / spread)[:, None],
                          (predicted * spread)[:, None], source, 1.1e12, 9.0e12)  # fmt: skip

    units.save(folder / "units.npz")
    values = rng.normal(size=(n, 3)).astype(np.float32)
    FeatureTable(values, ("a", "b", "c"), ids, units.group[:n], np.full(n, "resnet20")).save(folder / "features.npz")
    source = np.where(measured, "measured", "predicted")
    labels(np.where(measured, damage, predicted), source).save(folder / "labels.npz")
    labels(predicted, np.full(n, "predicted")).save(folder / "held_out.npz")

    layers = np.flatnonzero(~units.removable)
    base = np.exp(rng.normal(-2.0, 0.9, len(layers)))
    table = np.full((len(units), len(CHOICES)), np.nan)
    for column, factor in enumerate((-0.0004, 0.004, 0.11, 0.7, 5.0)):
        table[layers, column] = base * factor
    LabelTable(units.ids, CHOICES, table, np.abs(table) * 0.1, table, table, np.full(len(units), "measured")).save(
        folder / "layer_labels.npz"
    )
    return damage


def write_rows(folder: Path, methods: dict[str, tuple[float, float]], seeds: int = 3) -> None:
    """Write `comparison.csv`."""
    rng = np.random.default_rng(1)
    text = io.StringIO()
    columns = ["method", "seed", "stage", "metric", "loss", "macs", "weight_bytes", "command", "commit", "versions"]
    writer = csv.writer(text)
    writer.writerow(columns)
    for name, (recovered, tuned) in methods.items():
        for seed in range(seeds):
            values = {"pruned": rng.uniform(10, 26), "recovered": recovered + rng.normal(0, 0.8),
                      "fine_tuned": tuned + rng.normal(0, 0.12)}  # fmt: skip
            macs = 20.3e6 * rng.uniform(0.97, 1.0)
            for stage, value in values.items():
                writer.writerow([name, seed, stage, value, 0.4, macs, 5.1e5, "python -m experiments.run", "abc", "{}"])
    (folder / "comparison.csv").write_text(text.getvalue())


def write_front(folder: Path) -> None:
    """Write `front.csv`: two bounds, and the run's plan above the front."""

    def row(bound, plan, damage, macs, size, lower=None):
        fraction, gap = (None, None) if lower is None else (macs / 40.55e6, 1 - lower / damage)
        return FrontRow(bound, plan, fraction, damage, damage, lower, gap, macs, size, None, None, None, 180, 5.2)

    rows = [row("macs", "front", damage, macs, 118400.0, 0.9 * damage)
            for damage, macs in ((0.2, 30.1e6), (0.4, 20.2e6), (0.9, 10.3e6))]  # fmt: skip
    rows += [row("weight_bytes", "front", damage, 20.2e6, size, 0.999 * damage)
             for damage, size in ((0.3, 200000.0), (0.4, 118400.0))]  # fmt: skip
    rows.append(row("", "labeler/mac", 0.61, 20.21e6, 118400.0))
    (folder / "front.csv").write_text(to_csv(list(vars(rows[0])), map(vars, rows)))


def make_run(folder: Path) -> Path:
    """A run folder with every file, as a finished run on ResNet-20 leaves it."""
    folder.mkdir(parents=True, exist_ok=True)
    units = make_units()
    damage = make_tables(folder, units)
    removed = [units.ids[i] for i in np.argsort(damage)[: int(0.42 * len(damage))]]
    layers = [unit for unit, kind in zip(units.ids, units.kind, strict=True) if kind == "layer"]
    formats = {name: LayerFormat(8 if i in (0, len(layers) - 1) else (4, 6, 8)[i % 3]) for i, name in enumerate(layers)}
    formats.pop(layers[3])
    CompressionPlan.removing(units, removed, layer_formats=formats, activation_bits=8, predicted_damage=0.61).save(
        folder / "plan.json"
    )
    write_rows(folder, METHODS)
    write_front(folder)
    files = {
        "manifest.json": {
            "schema_version": 1, "name": "cifar10_resnet20", "seeds": {"seed": 0, "seeds": [0, 1, 2]},
            "command": "python -m experiments.run experiment=cifar10_resnet20",
            "code": {"version": "0.1.0", "commit": "d3adb33f" * 5, "modified": False}, "threads": 2, "device": "cpu",
            "libraries": {"torch": "2.13.0", "onnxruntime": "1.32.0", "lightgbm": "4.7.0"},
            "machine": {"python": "3.11.7", "system": "Linux 6.1", "processor": "AMD EPYC 7R13", "cores": 2},
        },
        "dense.json": {
            "metric_name": "accuracy_percent", "higher_is_better": True, "test": {"metric": 91.73, "loss": 0.2821},
            "validation": {"metric": 92.1, "loss": 0.27}, "macs": 40.55e6, "params": 269722,
            "weight_bytes": 1078888,
        },
        "costs.json": {
            "layers": [{"name": n, "macs": 2.3e6, "weights": 9216, "params": 64} for n in layers],
            "uncounted": [["relu", 19], ["add", 9]], "dense_macs": 40.55e6, "dense_weight_bytes": 1078888,
        },
        "group_steps.json": {"conv1:out": [{"less": 2, "damage": 0.125, "macs_saved": 0.0312, "bytes_saved": 0.0207}]},
        "labeler.json": {
            "labeler": "gbdt", "n_measured": 256, "n_units": 432, "seconds": 71.2, "forward_macs": 1.1e12,
            "naive_macs": 9.0e12,
            "held_out": [
                {"name": "gbdt", "kind": "labeler", "n": 256, "spearman": 0.871, "spearman_low": 0.84,
                 "spearman_high": 0.9, "within": 0.79},
                *({"name": name, "kind": "criterion", "spearman": value, "lower": value - 0.05, "upper": value + 0.04,
                   "within_group": value * 0.9}
                  for name, value in (("second_order", 0.905), ("fisher", 0.83), ("taylor", 0.72),
                                      ("magnitude", 0.21), ("random", -0.03))),
                {"name": "constant", "kind": "criterion", "spearman": None},
            ],
            "top_features": [
                {"name": name, "share": share, "description": text, "direction": 1} for name, share, text in (
                    ("second_order", 0.34, "half the mean squared change of the loss when a gate closes"),
                    ("fisher_rank", 0.19, "rank of the Fisher score within the layer"),
                    ("activation_rms", 0.11, "root mean square of the channel's activations"),
                    ("layer_macs_share", 0.07, "part of the network's MACs in this layer"),
                )
            ],
            "coverage": 0.87, "won": False,
        },
        "choice.json": {
            "chosen": "labeler/mac", "reason": "lowest validation loss after the stage 'fine_tuned'", "candidates": [
                {"method": "labeler/mac", "validation_metric": 91.0, "validation_loss": 0.301, "macs": 20.2e6},
                {"method": "fisher/mac", "validation_metric": 90.9, "validation_loss": 0.305, "macs": 20.1e6},
            ],
        },
        "result.json": {
            "stages": {"pruned": {"metric": 17.4, "loss": 3.1}, "recovered": {"metric": 83.4, "loss": 0.52},
                       "fine_tuned": {"metric": 90.62, "loss": 0.30}, "quantized": {"metric": 90.55, "loss": 0.303}},
            "macs": 20.21e6, "params": 131000, "weight_bytes": 118400, "predicted_damage": 0.61,
            "realised_damage": {"pruned": 2.83, "recovered": 0.25, "final": 0.02},
            "budget": {"asked": {"macs": 0.5, "weight_bytes": 120000},
                       "met": {"macs": 20.21e6, "weight_bytes": 118400}, "stopped_by": "macs"},
        },
        "export.json": {
            "files": [
                {"path": "artifact/model.onnx", "format": "fp32", "file_bytes": 541200,
                 "metric": 90.62, "loss": 0.3, "discrepancy_relative": 7e-7,
                 "argmax_agreement": 1.0, "tolerance": 1e-4, "ok": True},
                {"path": "artifact/model.int8.onnx", "format": "int8", "file_bytes": 148300,
                 "metric": 90.52, "loss": 0.304, "discrepancy_relative": 0.0031,
                 "argmax_agreement": 0.996, "tolerance": 0.02, "ok": True},
                {"path": "artifact/model.int4.onnx", "format": "int4", "file_bytes": 90000, "metric": 71.0, "loss": 1.2,
                 "discrepancy_relative": 0.21, "argmax_agreement": 0.7, "tolerance": 0.02, "ok": False},
            ],
            "dense_file": {"path": "dense/model.onnx", "file_bytes": 1092345},
            "latency": [
                {"path": path, "batch": batch, "threads": 1, "median_ms": ms, "dense_median_ms": dense,
                 "ratio": dense / ms, "runtime": "onnxruntime 1.32.0", "cpu": "AMD EPYC 7R13"}
                for path, batch, ms, dense in (
                    ("dense/model.onnx", 1, 2.6, 2.6), ("artifact/model.int8.onnx", 1, 1.37, 2.61),
                    ("artifact/model.int8.onnx", 32, 61.0, 58.2))
            ],
        },
        "warnings.json": ["conv1 was pinned and is not pruned", "<b>bias correction</b> had no effect on 3 layers"],
    }  # fmt: skip
    for name, value in files.items():
        write_json(folder / name, value)
    lines = [
        {"kind": "metrics", "step": i, "values": {"finetune/loss": 1.2 / (1 + i / 9) + 0.2, "quantize/loss": 0.3}}
        for i in range(60)
    ]
    (folder / "metrics.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines))
    (folder / ".hydra").mkdir(exist_ok=True)
    (folder / ".hydra" / "config.yaml").write_text("name: cifar10_resnet20\nbudget:\n  macs: 0.5\n")
    return folder


def change(folder: Path, name: str, /, **fields: object) -> None:
    """Set top-level fields of a JSON file of the run."""
    write_json(folder / name, {**read_json(folder / name), **fields})


def page_of(folder: Path) -> str:
    return (folder / "report.html").read_text()


@pytest.fixture
def run(tmp_path: Path) -> Path:
    return make_run(tmp_path / "run")


@pytest.fixture(scope="module")
def written(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A run folder with its report, for tests that only read."""
    folder = make_run(tmp_path_factory.mktemp("written") / "run")
    write_report(folder)
    return folder


def page_without_figures(folder: Path) -> str:
    files = read_run(folder)
    return render_page(files, summarize(files), {})


class _Tags(HTMLParser):
    """Opening tags, and whether every one was closed in order."""

    VOID = {"meta", "br", "img", "link", "hr", "input"}

    def __init__(self) -> None:
        super().__init__()
        self.open: list[str] = []
        self.seen: list[tuple[str, dict[str, str | None]]] = []

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.seen.append((tag, dict(attrs)))
        if tag not in self.VOID:
            self.open.append(tag)

    def handle_startendtag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.seen.append((tag, dict(attrs)))

    def handle_endtag(self, tag: str) -> None:
        assert self.open
        assert self.open.pop() == tag


def test_low_bit_bytes_never_stand_beside_the_accuracy_of_the_float_file(run):
    files = read_json(run / "export.json")["files"]
    change(run, "export.json", files=[{**entry, "ok": entry["format"] == "fp32"} for entry in files])
    compressed = summarize(read_run(run))["compressed"]
    assert (compressed["file"], compressed["file_bytes"]) == (None, None)
    assert compressed["stage"] == "quantized"
    assert compressed["metric"]["value"] == 90.55


def test_json_has_the_promised_keys_and_the_smallest_file_that_runs(written):
    report = read_json(written / "report.json")
    assert report["schema_version"] == 1
    assert report["dense"]["metric"] == {"name": "accuracy_percent", "value": 91.73, "higher_is_better": True}
    assert report["dense"]["file_bytes"] == 1092345
    # The smallest file is not good, so it does not count.
    assert report["compressed"]["file"] == "artifact/model.int8.onnx"
    assert report["compressed"]["file_bytes"] == 148300
    assert report["compressed"]["metric"]["value"] == 90.52
    assert report["compressed"]["stage"] == "exported"
    assert [row["median_ms"] for row in report["compressed"]["latency_ms"]] == [1.37, 61.0]
    assert report["compressed"]["latency_ms"][0]["runtime"] == "onnxruntime 1.32.0"
    assert [row["median_ms"] for row in report["dense"]["latency_ms"]] == [2.61, 58.2]
    assert report["stages"] == {
        "pruned": 17.4, "recovered": 83.4, "fine_tuned": 90.62, "quantized": 90.55, "exported": 90.52
    }  # fmt: skip
    assert (report["predicted_damage"], report["realised_damage"]) == (0.61, 2.83)
    assert len(report["warnings"]) == 2
    assert {method["method"] for method in report["baselines"]} == set(METHODS)
    assert report["baselines"][0]["stages"]["fine_tuned"]["n"] == 3
    assert report["budget"]["asked"] == {"macs": 0.5, "weight_bytes": 120000}


def test_the_same_run_gives_the_same_report(written):
    first = page_of(written)
    assert write_report(written) == read_json(written / "report.json")
    assert page_of(written) == first


def test_page_is_whole_and_needs_nothing_from_outside(written):
    page = page_of(written)
    tags = _Tags()
    tags.feed(page)
    assert not tags.open
    assert not {tag for tag, _ in tags.seen} & {"script", "link", "iframe", "object", "embed"}
    for _, attributes in tags.seen:
        for name in ("src", "href", "xlink:href"):
            assert (attributes.get(name) or "#").startswith(("#", "data:"))
    assert not re.search(r"url\((?!#)|@import", page)
    assert sum(tag == "svg" for tag, _ in tags.seen) == len(EVERY_FIGURE)
    assert "prefers-color-scheme:dark" in page
    assert len(page) < 2_000_000


def test_every_figure_is_written_as_png(written):
    drawn = {path.stem: path for path in (written / "figures").iterdir()}
    assert set(drawn) == EVERY_FIGURE
    for path in drawn.values():
        assert path.read_bytes().startswith(b"\x89PNG")


def test_a_figure_without_data_does_not_stay(run, monkeypatch):
    monkeypatch.setattr(figures, "DRAWINGS", {name: DRAWINGS[name] for name in ("sizes", "bits")})
    (run / "figures").mkdir()
    (run / "figures" / "sizes.png").write_bytes(b"of another time")
    (run / "export.json").unlink()
    assert set(write_figures(read_run(run))) == {"bits"}
    assert [path.name for path in (run / "figures").iterdir()] == ["bits.png"]


def test_a_tensor_in_fewer_bits_than_planned_is_explained(run):
    coded = [{"name": f"{name}.weight", "bits": bits, "values": 100, "packed_bytes": 90, "coded_bytes": 80,
              "entropy": 6.0} for name, bits in (("conv1", 7), ("layer1.0.conv1", 6))]  # fmt: skip
    write_json(run / "packed.json", {"file_bytes": 400, "coder": "auto", "tensors": coded})
    assert "conv1: 8 bits in the plan, 7 here, because 8-bit weights use the integers" in page_without_figures(run)
    change(run, "packed.json", tensors=[{**tensor, "bits": 8} for tensor in coded])
    assert "bits in the plan" not in page_without_figures(run)


def solved(folder: Path, chosen: str = "labeler/knapsack", **told: object) -> str:
    """The page if one solve had made the plan, with this in its provenance."""
    plan = CompressionPlan.load(folder / "plan.json")
    told = {"method": chosen, "allocator": "knapsack", "gap": 0.02, "lower_bound": 0.5978, "solved_damage": 0.61,
            "timed_out": False, **told}  # fmt: skip
    predicted = told.pop("predicted", plan.predicted_damage)
    replace(plan, provenance=told, predicted_damage=predicted).save(folder / "plan.json")
    return page_without_figures(folder)


def test_what_a_solve_proves_is_told(run):
    assert summarize(read_run(run))["solve"] is None
    assert "proven to be" not in page_without_figures(run)
    page = solved(run)
    assert "The plan&#x27;s predicted damage of 0.61 is proven to be within 2 % of the least possible" in page
    found = summarize(read_run(run))["solve"]
    assert (found["damage"], found["lower_bound"], found["gap"]) == (0.61, 0.5978, 0.02)
    assert "The time for the proof was over" in solved(run, timed_out=True)
    assert "within 0.01 % of the least possible" in solved(run, gap=1e-9, lower_bound=0.61)
    # Plans from before the sum was told have it from the gap.
    assert "damage of 0.61 is proven to be within 2 %" in solved(run, solved_damage=None)


@pytest.mark.parametrize(("chosen", "told", "words"), [
    # What seems to help is no credit in the sum, so the bound may lie above the predicted damage.
    ("labeler/knapsack", {"predicted": 0.5}, "made least, 0.61 (it counts choices that seem to help as 0), is proven"),
    ("labeler/knapsack@0.1", {"predicted": 2.5}, "as 0, damages of formats times 0.1), is proven to be within 2 %"),
    ("labeler/knapsack", {"gap": 1.0, "lower_bound": 0.0}, "nothing is proven: the least possible may be 0"),
    ("labeler/knapsack", {"gap": None, "lower_bound": None}, "under this budget is not proven"),
    ("labeler/knapsack", {"gap": 0.0, "lower_bound": 0.0, "solved_damage": 0.0, "predicted": 0.0},
     "predicted damage of 0 is the least possible"),
])  # fmt: skip
def test_a_proof_says_no_more_than_it_proves(run, chosen, told, words):
    page = solved(run, chosen, **told)
    assert words in page
    assert ("is proven to be within" in page) == ("is proven" in words and "nothing" not in words)


def test_a_search_of_plans_proves_nothing(run):
    assert "proven" not in solved(run, "plans/search", predicted=None).partition("What other budgets")[0]


def test_what_other_budgets_would_cost_is_said_to_be_predicted(run):
    page = page_without_figures(run)
    part = page.partition("What other budgets would cost")[2]
    assert "These are predictions, not measurements: damages of single choices" in part
    assert "<td>macs</td><td>74.2 %</td><td>front</td><td>0.2</td><td>0.18</td><td>10 %</td>" in part
    assert "labeler/mac" in part
    (run / "front.csv").unlink()
    assert "What other budgets" not in page_without_figures(run)


def test_the_front_is_drawn_with_its_bound_and_the_plan(run):
    with figure_style():
        drawn = DRAWINGS["front"](read_run(run))
    assert [axes.get_xlabel() for axes in drawn.axes] == ["macs of the plan", "weight_bytes of the plan"]
    found, proven = drawn.axes[0].lines
    assert found.get_ydata().tolist() == [0.9, 0.4, 0.2]
    assert proven.get_ydata() == pytest.approx([0.81, 0.36, 0.18])
    assert proven.get_drawstyle() == "steps-pre", "between two bounds the one of the larger cost holds"
    (star,) = drawn.axes[1].collections
    assert star.get_offsets().tolist() == [[118400.0, 0.61]]


@pytest.mark.parametrize(("realised", "told"), [(0.25, ", above the"), (0.0001, ", below the"), (0.02, None)])
def test_a_damage_outside_of_its_interval_is_said_to_be(run, realised, told):
    found = {"nats": 0.02, "low": 0.01, "high": 0.04, "coverage": 0.9, "measured": 10}
    write_json(run / "plan_damage.json", found)
    change(run, "result.json", realised_damage={"pruned": 2.83, "recovered": realised})
    page = page_without_figures(run)
    assert page.count("the predicted 90 % interval") == (told is not None)
    assert told is None or f"{told} predicted 90 % interval" in page


def test_losses_are_said_plainly(written):
    report, page = read_json(written / "report.json"), page_of(written)
    assert report["labeler"]["ahead_of_best_formula"] == pytest.approx(0.871 - 0.905)
    assert "A formula beats the labeler on held-out units" in page
    assert "slower" in page
    assert "NOT good: do not use" in page
    assert "removals together hurt more than the sum says" in page


def test_a_formula_that_wins_the_comparison_is_named(run):
    write_rows(run, {"labeler": (80.0, 89.0), "taylor": (82.0, 90.5)})
    change(run, "choice.json", chosen="taylor")
    assert summarize(read_run(run))["verdicts"][-1]["gap"] < 0
    page = page_without_figures(run)
    assert "a formula beats the labeler: taylor" in page
    assert "made by the formula taylor, not by labels of single units" in page


@pytest.mark.parametrize(
    ("name", "kind"),
    [
        ("plans/search", "a search of whole plans"),
        ("plans/race", "a race of whole plans"),
        ("refit_loss/search", "a formula-led search of whole plans"),
        ("random/uniform", "chance"),
    ],
)
def test_neither_a_search_of_whole_plans_nor_chance_is_a_formula(run, name, kind):
    write_rows(run, {"labeler": (80.0, 89.0), name: (82.0, 90.5)})
    change(run, "choice.json", chosen=name)
    page = page_without_figures(run)
    assert f"made by {kind} ({name}), not by labels of single units." in page
    assert f"{kind} beats the labeler: {name}." in page
    assert "a formula beats the labeler:" not in page
    assert "by the formula" not in page


def test_methods_that_spend_less_than_the_others_are_named(run):
    with (run / "comparison.csv").open("a") as file:
        file.write("frugal,0,fine_tuned,80.0,0.5,1.0e7,1e5,,,\n")
    page = page_without_figures(run)
    assert "a disadvantage: frugal (49" in page or "a disadvantage: frugal (50" in page


@pytest.mark.parametrize(
    ("bits", "asked", "told"),
    [
        (8, 8, "8 bits of static ranges."),
        (None, None, "float."),
        (None, 8, "float, as always beside layers that do not compute on integers."),
    ],
)
def test_it_says_what_activations_have(bits, asked, told, run):
    plan = CompressionPlan.load(run / "plan.json")
    replace(plan, activation_bits=bits).save(run / "plan.json")
    change(run, "manifest.json", config={"quantize": {"activation_bits": asked}})
    assert f"Activations between quantised layers: {told}" in page_without_figures(run)


@pytest.mark.parametrize(
    ("name", "oracle", "told"),
    [("layer_choice", "repaired_layer_choice.RepairedLayerChoiceOracle",
      "Measured beside random choices of other layers, after the weights made up for it and 20 steps of training."),
     ("removal", "repaired.RepairedOracle",
      "Measured among random removals of others, after a refit and 20 steps of training."),
     ("removal", "context.ContextOracle", "Measured among random removals of others.")],
)  # fmt: skip
def test_it_says_when_damage_was_measured(name, oracle, told, run):
    def captions():
        files = read_run(run)
        return render_page(files, summarize(files), dict.fromkeys(("layer_sensitivity", "group_sensitivity"), "<svg/>"))

    assert told not in captions()
    own = {"_target_": f"autolabel.oracles.{oracle}", "training_steps": 20, "company": 0.5}
    change(run, "manifest.json", config={"oracles": {name: own}})
    assert told in captions()


def test_texts_of_the_run_are_escaped(run):
    change(run, "manifest.json", name="<script>alert(1)</script>")
    page = page_without_figures(run)
    assert "<script" not in page
    assert "&lt;b&gt;bias correction&lt;/b&gt;" in page


def test_an_empty_folder_says_not_run_everywhere(tmp_path):
    report = write_report(tmp_path)
    assert report["dense"] is None
    assert report["compressed"] is None
    assert report["labeler"] is None
    assert set(report["stages"].values()) == {None}
    assert page_of(tmp_path).count("not run") >= 12
    assert "<svg" not in page_of(tmp_path)
    assert not (tmp_path / "figures").exists()


FILES = (
    "manifest.json", "dense.json", "units.npz", "features.npz", "labels.npz", "held_out.npz", "layer_labels.npz",
    "costs.json", "labeler.json", "comparison.csv", "choice.json", "plan.json", "result.json", "export.json",
    "warnings.json", "metrics.jsonl",
)  # fmt: skip


def test_a_group_is_told_by_what_less_of_it_would_cost(run):
    files = read_run(run)
    page = render_page(files, summarize(files), {})
    assert "what a channel or head less would cost, and save" in page
    assert "3.12%" in page
    assert "2.07%" in page


@pytest.mark.parametrize("name", FILES)
def test_any_single_file_may_be_absent(run, name):
    (run / name).unlink()
    files = read_run(run)
    report = summarize(files)
    assert json.loads(json.dumps(report, allow_nan=False)) == report
    page = render_page(files, report, {})
    assert name in ("features.npz", "metrics.jsonl") or "not run" in page


@pytest.mark.parametrize("name", ["dense.json", "units.npz", "labels.npz", "plan.json", "result.json"])
def test_figures_do_without_any_single_file(run, name):
    (run / name).unlink()
    files = read_run(run)
    with figure_style():
        drawn = [name for name, draw in DRAWINGS.items() if draw(files) is not None]
    assert "agreement" in drawn


@pytest.mark.parametrize("name", ["dense.json", "labels.npz", "comparison.csv"])
def test_a_damaged_file_is_named(run, name):
    (run / name).write_bytes(b"{")
    with pytest.raises(ArtifactError, match=name):
        write_report(run)


def test_not_a_folder_is_refused(tmp_path):
    with pytest.raises(ArtifactError, match="not a folder"):
        write_report(tmp_path / "nothing")


def test_numbers_that_are_not_finite_do_not_reach_the_json(run):
    labeler = read_json(run / "labeler.json")
    change(run, "labeler.json", coverage="nan", held_out=[*labeler["held_out"], {"name": "x", "spearman": "nan"}])
    with (run / "comparison.csv").open("a") as file:
        file.write("random,7,fine_tuned,nan,nan,2e7,1e5,,,\n")
    report = summarize(read_run(run))
    random = next(method for method in report["baselines"] if method["method"] == "random")
    assert random["stages"]["fine_tuned"]["failed_seeds"] == ["7"]
    assert random["stages"]["fine_tuned"]["n"] == 3
    assert "1 failed" in page_without_figures(run)
    json.dumps(report, allow_nan=False)


def trials(values: dict[str, list[float]]) -> list[Trial]:
    return [
        Trial(method, str(seed), "fine_tuned", value, None, 1.0, 1.0, "")
        for method, own in values.items()
        for seed, value in enumerate(own)
    ]


def test_mean_and_spread_over_seeds_by_hand():
    methods = gather_methods(trials({"taylor": [1.0, 2.0, 3.0], "labeler": [4.0]}))
    assert [method.name for method in methods] == ["labeler", "taylor"]
    sample = methods[1].stages["fine_tuned"]
    assert (sample.mean, sample.std, len(sample.values)) == (2.0, 1.0, 3)
    assert methods[0].stages["fine_tuned"].std is None


@pytest.mark.parametrize(("labeler", "clear", "words"), [
    ([91.0, 91.1], True, "beyond two standard errors"),
    ([90.1, 90.3], False, "no clear winner"),
    ([91.0], None, "may be chance"),
])  # fmt: skip
def test_verdict_counts_the_noise_of_seeds(labeler, clear, words):
    methods = gather_methods(trials({"labeler": labeler, "taylor": [90.0, 90.2], "random": [10.0, 20.0]}))
    verdict = judge(methods, "fine_tuned")
    assert (verdict.best, verdict.clear) == ("taylor", clear)
    assert words in verdict.sentence


def test_verdict_follows_the_direction_of_the_metric():
    methods = gather_methods(trials({"labeler": [2.0, 2.1], "taylor": [1.0, 1.1]}), higher_is_better=False)
    assert methods[0].name == "taylor"
    assert judge(methods, "fine_tuned", higher_is_better=False).gap == pytest.approx(-1.0)
    assert judge(methods[:1], "fine_tuned") is None


def test_a_verdict_counts_who_stores_all_layers_alike_as_a_formula():
    methods = gather_methods(trials({"labeler/knapsack": [90.0], "taylor/mac": [89.0], "labeler/uniform_bits": [92.0],
                                     "criterion/bits": [95.0]}))  # fmt: skip
    verdict = judge(methods, "fine_tuned")
    assert (verdict.labeler, verdict.best) == ("labeler/knapsack", "labeler/uniform_bits")
    assert verdict.gap == pytest.approx(-2.0)


def test_later_lines_of_a_step_count(run):
    with (run / "metrics.jsonl").open("a") as file:
        file.write('{"step": 3, "finetune/loss": 9.0}\n')
    assert dict(read_run(run).curves["finetune/loss"])[3] == 9.0


def test_overview_figure_by_its_command(written, tmp_path, monkeypatch):
    script = str(ROOT / "scripts" / "draw_figures.py")
    monkeypatch.setattr(sys, "path", [*sys.path])
    monkeypatch.setattr(sys, "argv", [script, str(written), str(tmp_path / "out.svg")])
    runpy.run_path(script, run_name="__main__")
    assert (tmp_path / "out.svg").read_bytes().startswith(b"<?xml")
    monkeypatch.setattr(sys, "argv", [script, str(written), str(tmp_path / "out.gif")])
    with pytest.raises(SystemExit, match=r"\.svg or \.png"):
        runpy.run_path(script, run_name="__main__")


def test_overview_figure_needs_something_to_draw(written, tmp_path):
    write_overview(written, tmp_path / "out.png")
    assert (tmp_path / "out.png").read_bytes().startswith(b"\x89PNG")
    with pytest.raises(ArtifactError, match="nothing to draw"):
        write_overview(tmp_path, tmp_path / "none.svg")


def test_ranks_are_told_in_the_most_bits_with_the_most_weights():
    names = ("32bit_d0.5", "32bit_r0.7", "32bit_d0.5_r0.7", "32bit_r0.9", "6bit_r0.7", "6bit_d0.5_r0.7")
    assert told_choices(names) == [("rank 0.9", None, 3), ("rank 0.7", None, 1)]
    assert told_choices((*names, "6bit", "8bit_codebook")) == [("6 bit", 6, 6)]
