"""The whole road through the real command line, on next to nothing: what a run leaves, resumes, refuses and repeats."""

import collections
import contextlib
import csv
import functools
import hashlib
import html.parser
import json
import logging
import math
import os
import re
import shutil
import signal
import subprocess
import sys
import time
import warnings
from dataclasses import replace
from pathlib import Path

import numpy as np
import onnx
import onnxruntime
import pytest
import safetensors.numpy
import torch
from filelock import FileLock

from autolabel import FeatureTable, LabelTable, after_repair
from autolabel.joint_damage import JointDamage
from autolabel.plan_search import PlanSearch
from autolabel.pretrained import PRETRAINED
from compress import Budget, CompressionPlan, UnitTable, analyze
from compress.artifact import load_artifact
from compress.artifact_files import verify_artifact
from compress.criteria import MagnitudeCriterion
from compress.errors import ArtifactError, CompressError, DataError
from compress.files import write_json
from compress.prunable_weights import prunable_weights
from compress.splitting import find_splits
from experiments import report as report_files
from experiments import run as command
from experiments import searched_plan
from experiments.coded_table import CodedRow, collect_coded
from experiments.compared_methods import Method
from experiments.comparison import _Seed
from experiments.config import config_of
from experiments.data import load_digits
from experiments.evaluate import evaluate_run
from experiments.explain import explain_unit
from experiments.join import join_run
from experiments.manifest import hash_file
from experiments.models import DigitsCNN
from experiments.packed_evaluation import evaluate_file
from experiments.plan_prediction import predict_recovered
from experiments.quantities import REPORTED
from experiments.raw_table import read_raw
from experiments.reproduction import compare_runs
from experiments.reproduction import main as reproduce
from experiments.results import collect_results
from experiments.run_dir import RunDir, read_manifest
from experiments.run_files import read_run
from experiments.searched_plan import PlanFinder
from experiments.stages import Experiment
from experiments.tracker import RunInfo, flatten
from experiments.trackers.null import NullTracker
from experiments.whole_runs import WholeRun, collect_runs, write_page

ROOT = Path(__file__).parents[1]
# Bounds of knapsacks are proven in tests/compress/test_allocators.py; here that takes longer than all else together.
WHOLE = ["experiment=quickstart", "debug=fast", "threads=1", "allocator.proof_rounds=0", "allocator.rounds=2",
         "labeler.rounds=6", "export.coder=zstd"]  # fmt: skip
WIDTHS, HIDDEN = (8, 16, 16), 32
SHORT = [*WHOLE, f"model.widths={[*WIDTHS]}", f"model.hidden={HIDDEN}"]
FAST = [*SHORT, "quantize.joint_plans=10", "measure.plans=4", "front=[1.5]"]
STAGES = {
    "dense",
    "units",
    "features",
    "layers",
    "joint",
    "predict",
    "labels",
    "compare",
    "front",
    "compress",
    "pack",
    "export",
}


def begin(*arguments, module="experiments.run"):
    environment = {**os.environ, "OMP_NUM_THREADS": "1", "WANDB_MODE": "offline"}
    for name in ("WANDB_API_KEY", "WANDB_DIR"):
        environment.pop(name, None)
    return subprocess.Popen(
        [sys.executable, "-m", module, *map(str, arguments)],
        cwd=ROOT, env=environment, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True,
    )  # fmt: skip


def call(*arguments, module="experiments.run"):
    with begin(*arguments, module=module) as process:
        output = process.communicate(timeout=280)[0]
    assert process.returncode == 0, output
    return output


@contextlib.contextmanager
def here(*arguments, figures=False):
    """The command line with these arguments in this process, which it leaves as it was: nothing to import again."""
    # It sets these for its own process.
    deterministic, threads = torch.are_deterministic_algorithms_enabled(), torch.get_num_threads()
    with pytest.MonkeyPatch.context() as patch, warnings.catch_warnings():
        warnings.simplefilter("default")
        patch.setattr(sys, "argv", ["autolabel", *map(str, arguments)])
        # What a search comes to is seen in tests/autolabel/test_plans.py.
        patch.setattr(searched_plan, "PlanSearch", functools.partial(PlanSearch, 8, 3, 16, reference=20))
        if not figures:
            # The fixture `run` draws them; elsewhere they would take a third of the time.
            patch.setattr(report_files, "write_figures", lambda files: {})
        try:
            yield command.main
        finally:
            torch.use_deterministic_algorithms(deterministic)
            torch.set_num_threads(threads)
            for handler in list(logging.getLogger().handlers):
                if isinstance(handler, logging.FileHandler):
                    logging.getLogger().removeHandler(handler)
                    handler.close()


def call_here(*arguments, figures=False):
    with here(*arguments, figures=figures) as main:
        main()


def read(path):
    return json.loads(Path(path).read_text())


def stage_times(run):
    return {path.stem: path.stat().st_mtime_ns for path in (run / "stages").iterdir()}


@pytest.fixture(scope="module")
def run(tmp_path_factory):
    """The folder of one whole run with W&B."""
    folder = tmp_path_factory.mktemp("end_to_end") / "run"
    call(*FAST, "export.coder=auto", "tracker=wandb", f"hydra.run.dir={folder}")
    return folder


@pytest.fixture(scope="module")
def resumed(run, tmp_path_factory):
    """The folder of the same run without exports, killed in the middle of fine-tuning and taken up again."""
    folder = tmp_path_factory.mktemp("killed") / "run"
    # What comes before is taken over, and made again in another folder by `test_a_run_is_reproduced_from_its_folder`.
    shutil.copytree(run, folder)
    for name in ("artifact", "checkpoint", "unquantized", "result.json", "packed.json", "export.json"):
        delete(folder / name)
    arguments = [*FAST, "export.formats=[]", f"hydra.run.dir={folder}"]
    checkpoint = folder / "checkpoint" / "float.safetensors"
    with begin(*arguments) as process:
        while not checkpoint.exists():
            assert process.poll() is None, process.stdout.read()
            time.sleep(0.01)
        process.send_signal(signal.SIGKILL)
        process.communicate()
    assert read(folder / "stages" / "compress.json")["status"] == "running"
    assert not (folder / "result.json").exists()
    said = len((folder / "run.log").read_text())
    call_here(*arguments)
    log = (folder / "run.log").read_text()[said:]
    assert log.count("already done, skipped") == len(STAGES - {"compress", "pack", "export"})
    assert "stage compress: resumed" in log
    assert "goes on from" in log
    return folder


@pytest.fixture(scope="module")
def measured_again(tmp_path_factory):
    """The folder of the same run, killed in the middle of measuring and taken up again, and what was kept of it."""
    folder = tmp_path_factory.mktemp("killed_early") / "run"
    # What follows the measuring is as short as can be.
    arguments = [*SHORT, "export.formats=[]", "measure.sample=null", "measure.plans=0", "quantize.enabled=false",
                 "budget.weight_bytes=null", "compare.methods=[random]", "finetune.epochs=0",
                 f"hydra.run.dir={folder}"]  # fmt: skip
    rows = folder / "rows.jsonl"
    with begin(*arguments) as process:
        while not rows.exists() or rows.read_bytes().count(b"\n") < 9:
            assert process.poll() is None, process.stdout.read()
            time.sleep(0.002)
        process.send_signal(signal.SIGKILL)
        process.communicate()
    kept = rows.read_bytes()
    call_here(*arguments)
    return folder, kept


def delete(path):
    shutil.rmtree(path) if path.is_dir() else path.unlink(missing_ok=True)


class _Links(html.parser.HTMLParser):
    def __init__(self):
        super().__init__()
        self.found = []

    def handle_starttag(self, tag, attrs):
        self.found += [value for name, value in attrs if name in ("src", "href", "srcset", "data")]


def numbers(value):
    if isinstance(value, dict):
        return [n for item in value.values() for n in numbers(item)]
    if isinstance(value, list):
        return [n for item in value for n in numbers(item)]
    return [value] if isinstance(value, (int, float)) else []


def test_a_run_leaves_what_it_promises(run):
    manifest, report = read_manifest(run), read(run / "report.json")
    assert manifest["status"] == "finished"
    assert {"command", "code", "libraries", "threads", "seeds", "device", "machine"} <= set(manifest)
    assert manifest["outputs"]["plan.json"] == hash_file(run / "plan.json")
    units, features, labels = (
        kind.load(run / name)
        for kind, name in ((UnitTable, "units.npz"), (FeatureTable, "features.npz"), (LabelTable, "labels.npz"))
    )
    assert len(features.names) >= 40
    assert set(labels.unit_ids) <= set(units.ids)
    assert {"measured", "predicted"} <= set(map(str, labels.source))
    assert list((run / "labeler").iterdir())
    assert report["schema_version"] == 1
    assert {"dense", "compressed", "stages", "labeler", "predicted_damage", "realised_damage", "baselines", "budget",
            "warnings"} <= set(report)  # fmt: skip
    for side in ("dense", "compressed"):
        assert {"metric", "loss", "macs", "params", "weight_bytes", "file_bytes", "latency_ms"} <= set(report[side])
        assert {"name", "value", "higher_is_better"} <= set(report[side]["metric"])
    assert numbers(report)
    reported = {name for name, value in flatten(report).items() if type(value) in (int, float)}
    assert reported - {"machine.cores"} <= set(REPORTED)
    assert all(map(math.isfinite, numbers(report)))
    metrics = [json.loads(line) for line in (run / "metrics.jsonl").read_text().splitlines()]
    assert "finetune/train/loss" in json.dumps(metrics)
    assert all(map(math.isfinite, numbers(metrics)))


def test_single_labels_are_explained(run):
    found, page = read(run / "explanations.json"), (run / "report.html").read_text()
    assert set(found) >= {"least predicted damage", "median", "most predicted damage"}
    assert len({told["unit_id"] for told in found.values()}) == len(found)
    labels = LabelTable.load(run / "labels.npz")
    for told in found.values():
        row = labels.unit_ids.index(told["unit_id"])
        assert told["damage"] == pytest.approx(labels.damage[row, labels.choices.index("removed")])
        assert told["reasons"]
        assert {labels.source[labels.unit_ids.index(other["unit_id"])] for other in told["relatives"]} == {"measured"}
        assert told["unit_id"] in page
        assert len(told["reasons"][0]["means"]) > 5
        assert html.escape(told["reasons"][0]["means"]) in page
    assert found["least predicted damage"]["damage"] < found["most predicted damage"]["damage"]
    assert (run / "figures" / "reasons.png").stat().st_size > 1000


def test_any_unit_is_explained_from_the_command_line(run, tmp_path):
    labels = LabelTable.load(run / "labels.npz")
    unit = labels.unit_ids[int(np.flatnonzero(labels.source == "measured")[0])]
    told = call(run, unit, "--figure", tmp_path / "unit.svg", module="experiments.explain")
    assert f"{unit}, removed: predicted damage" in told
    assert "Measured units most alike:" in told
    assert told.strip() == str(explain_unit(run, unit))
    assert unit in (tmp_path / "unit.svg").read_text()
    with pytest.raises(CompressError, match="no unit 'nothing:0'"):
        explain_unit(run, "nothing:0")


def test_half_of_the_measurements_may_go_where_the_plan_hangs_on_them(tmp_path):
    folder = tmp_path / "run"
    call_here(*SHORT, "measure.sampling=active", "quantize.enabled=false", "criterion=ziplm",
              "budget.weight_bytes=null", "compare.methods=[random]", "finetune.epochs=0", "export.formats=[]",
              f"hydra.run.dir={folder}")  # fmt: skip
    labels, told = LabelTable.load(folder / "labels.npz"), read(folder / "labeler.json")
    assert (labels.source == "measured").sum() == told["n_measured"] == 24
    # The labeler is judged on those that were drawn.
    assert told["held_out"][0]["n"] == 12
    # Beside every criterion: those that are compared, those that are features, and the configured one.
    names = [entry["name"] for entry in told["held_out"] if entry["kind"] == "criterion"]
    assert len(names) == len(set(names))
    assert {
        "random",
        "magnitude_l1",
        "magnitude_l2",
        "taylor",
        "taylor_signed",
        "taylor_abs_mean",
        "fisher",
        "ziplm",
        "second_order",
        "reconstruction",
        "bn_scale",
        "activation",
        "wanda",
        "apoz",
        "geometric_median",
    } < {*names}
    assert read(folder / "report.json")["criterion"].startswith("ziplm")
    assert "“criterion” is ziplm" in (folder / "report.html").read_text()


@pytest.mark.parametrize("company", [["context"], ["repaired", "oracles.removal.training_steps=2"]])
def test_units_may_be_labelled_in_thinned_company(company, tmp_path, monkeypatch):
    (oracle, *settings), trained, finetune = company, [], after_repair.finetune_
    monkeypatch.setattr(after_repair, "finetune_", lambda *a, **k: (trained.append(len(a[2])), finetune(*a, **k)))
    call_here(*SHORT, f"oracle@oracles.removal={oracle}", *settings, "oracles.removal.masks=8", "measure.images=64",
              "measure.plans=0", "quantize.enabled=false", "budget.weight_bytes=null", "compare.methods=[labeler/mac]",
              "finetune.epochs=0", "export.formats=[]", "train.epochs=1", f"hydra.run.dir={tmp_path}")  # fmt: skip
    labels = LabelTable.load(tmp_path / "labels.npz")
    measured = labels.source == "measured"
    assert 0 < measured.sum() < len(measured)
    # Each of eight networks is trained twice, on one half of the examples and on the other.
    assert trained == [2] * (16 if settings else 0)
    # A marginal effect among few random masks has a standard error, and may well be negative.
    assert (labels.std_err[measured] > 0).all()
    assert read(tmp_path / "choice.json")["chosen"]


def test_plans_are_tried_in_their_formats(tmp_path):
    tight = ["budget.macs=null", "budget.weight_bytes=null", "budget.coded_bytes=0.17", "quantize.joint_plans=0"]
    methods = "compare.methods=[labeler/knapsack@0.1,labeler/knapsack,fisher/bits]"
    call_here(*WHOLE, *tight, methods, "baselines=standard", "compare.trial_steps=20",
              "compare.choose_after=tried", "compare.finetune_epochs=0", "seeds=[0]", "export.formats=[]",
              "measure.plans=0", f"hydra.run.dir={tmp_path}")  # fmt: skip
    with (tmp_path / "comparison.csv").open() as file:
        rows = [row for row in csv.DictReader(file) if row["stage"] == "tried"]
    # More than an epoch of digits has: two shorter ones, and not a step less.
    lines = [json.loads(line) for line in (tmp_path / "metrics.jsonl").read_text().splitlines()]
    told = [line for line in lines if any("/trial/train/epoch_loss" in name for name in line.get("values") or ())]
    assert {line["step"] for line in told} == {10, 20}
    choice = read(tmp_path / "choice.json")
    assert choice["chosen"] == min(rows, key=lambda row: float(row["validation_loss"]))["method"]
    plans = {
        path.name.split("_0.")[0]: CompressionPlan.load(path) for path in tmp_path.glob("comparison/*/*.plan.json")
    }
    assert set(plans) == {"labeler-knapsack@0.1", "labeler-knapsack", "fisher-bits", "criterion-mac"}
    assert plans["labeler-knapsack"].remove_channels
    assert not plans["fisher-bits"].remove_channels
    # A plan in which formats are said to heal foretells the damage that was measured, and removes less for it.
    healed, units = plans["labeler-knapsack@0.1"], UnitTable.load(tmp_path / "units.npz")
    labels, formats = (LabelTable.load(tmp_path / name) for name in ("labels.npz", "layer_labels.npz"))
    removed = [str(name) for name in np.array(units.ids)[healed.removed_mask(units)]]
    damage = sum(labels.damage[labels.unit_ids.index(name), 0] for name in removed)
    for name, layer_format in healed.layer_formats.items():
        damage += formats.damage[formats.unit_ids.index(name), formats.choices.index(f"{layer_format.bits}bit")]
    assert healed.predicted_damage == pytest.approx(damage, rel=1e-6)
    assert healed.removed_mask(units).sum() < plans["labeler-knapsack"].removed_mask(units).sum()


def test_channels_and_ranks_are_chosen_in_one_solve(tmp_path):
    ranks = ["factorizer=spatial", "quantize.bits=[32]", "quantize.ranks=[0.2,0.4,0.6,0.8]",
             "quantize.activation_bits=null", "allocator.always_quantize=false"]  # fmt: skip
    methods = "compare.methods=[labeler/knapsack,criterion/bits,criterion/uniform_bits]"
    call_here(*SHORT, *ranks, methods, "budget.macs=0.4", "budget.weight_bytes=null", "seeds=[0]",
              "measure.plans=0", "train.epochs=10", f"hydra.run.dir={tmp_path}", figures=True)  # fmt: skip
    plans = {
        path.name.split("_0.")[0]: CompressionPlan.load(path) for path in tmp_path.glob("comparison/*/*.plan.json")
    }
    assert set(plans) >= {"labeler-knapsack", "criterion-bits", "criterion-uniform_bits"}
    assert not plans["criterion-bits"].remove_channels
    alike = plans["criterion-uniform_bits"]
    assert not alike.remove_channels
    structure = analyze(DigitsCNN(WIDTHS, HIDDEN), load_digits().example_inputs())
    splits, _ = find_splits(structure.traced.module, "spatial")
    of_parts = [
        {name: max(1, int(part * split.useful_rank + 1e-9)) for name, split in splits.items()}
        for part in (0.2, 0.4, 0.6, 0.8)
    ]
    ranked = {name: layer_format.rank for name, layer_format in alike.layer_formats.items()}
    assert any(ranked.items() <= part.items() for part in of_parts)
    assert len(ranked) >= 3
    assert {layer_format.rank_scheme for layer_format in alike.layer_formats.values()} == {"spatial"}
    # Whoever stores all layers alike owes nothing to labels.
    assert not Method("labeler/uniform_bits").learned
    assert Method("criterion/bits").solves_formats
    assert not Method("criterion/uniform_bits").solves_formats
    # What a method's row says is what its plan becomes.
    chosen, result = read(tmp_path / "choice.json")["chosen"], read(tmp_path / "result.json")
    with (tmp_path / "comparison.csv").open() as file:
        rows = {row["stage"]: row for row in csv.DictReader(file) if row["method"] == chosen}
    for stage in ("pruned", "recovered"):
        assert float(rows[stage]["metric"]) == result["stages"][stage]["metric"]
    assert float(rows["pruned"]["macs"]) == result["macs"] <= 0.4 * read(tmp_path / "dense.json")["macs"]
    assert not any("promised" in warning for warning in read(tmp_path / "report.json")["warnings"])
    page = (tmp_path / "report.html").read_text()
    assert "became two layers of low rank" in page
    assert ", rank " in page
    assert "rank 0.8" in page
    # The files hold the layers as they were divided.
    divided = sum(f.rank is not None for f in plans[chosen.replace("/", "-")].layer_formats.values())
    layers = [
        sum(node.op_type in ("Conv", "Gemm", "MatMul") for node in onnx.load(tmp_path / name / "model.onnx").graph.node)
        for name in ("dense", "artifact")
    ]
    assert layers[1] == layers[0] + divided > layers[0]
    # Whoever may not choose ranks spends on channels alone.
    call_here(*SHORT, *ranks, "compare.methods=[magnitude,taylor/mac]", "compare.formats_for=[knapsack]",
              "budget.macs=0.4", "budget.weight_bytes=null", "seeds=[0]", "measure.plans=0", "train.epochs=10",
              "export.formats=[]", f"hydra.run.dir={tmp_path}")  # fmt: skip
    plan = read(tmp_path / "artifact" / "plan.json")
    assert plan["remove_channels"]
    assert not plan["layer_formats"]
    assert read(tmp_path / "result.json")["macs"] <= 0.4 * read(tmp_path / "dense.json")["macs"]


def test_other_budgets_were_solved_for(run):
    rows, plan, page = read_run(run).front, CompressionPlan.load(run / "plan.json"), (run / "report.html").read_text()
    *front, own = rows
    dense = {"macs": read(run / "costs.json")["dense_macs"], "weight_bytes": read(run / "dense.json")["weight_bytes"]}
    for bound, asked in (("macs", {0.4, 0.6}), ("weight_bytes", {0.07, 0.105})):
        of_bound = [row for row in front if row.bound == bound]
        # debug=fast asks for half as much again; a plan that another one beats is left out.
        assert {round(row.fraction, 4) for row in of_bound} <= asked
        assert all(getattr(row, bound) <= row.fraction * dense[bound] * (1 + 1e-4) for row in of_bound)
    assert (own.plan, own.units_removed) == (
        read(run / "choice.json")["chosen"],
        sum(map(len, plan.remove_channels.values())),
    )
    assert own.macs == pytest.approx(plan.predicted_cost["macs"], rel=1e-5)
    assert 4 <= own.mean_bits <= 8
    assert (run / "figures" / "front.png").stat().st_size > 1000
    assert "These are predictions, not measurements" in page


def test_other_fronts_leave_all_else_of_a_run_as_it_is(run, tmp_path):
    folder = tmp_path / "run"
    shutil.copytree(run, folder)
    config, whole = config_of(folder), (folder / "front.csv").read_bytes()
    for front, redone in (([1.5, 2.0], {"front"}), ([], set())):
        before = stage_times(folder)
        with RunDir(folder) as run_dir:
            Experiment(replace(config, front=front), run_dir, NullTracker(RunInfo("x", folder))).run()
        assert {stage for stage, time in stage_times(folder).items() if time != before[stage]} == redone
        assert (folder / "front.csv").exists() == bool(front)
        assert not front or (folder / "front.csv").read_bytes() != whole


def test_damage_after_the_repair_was_predicted(run):
    found, report = read(run / "plan_damage.json"), read(run / "report.json")
    assert found["measured"] == len(found["measured_damages"]) == 4
    assert 0 < found["low"] < found["nats"] < found["high"]
    assert found["forward_macs"] > 4 * 64 * read(run / "dense.json")["macs"]
    assert report["predicted_recovered_damage"] == found
    assert "predicted after the repair, from 4 other plans" in (run / "report.html").read_text()


def test_damage_is_not_predicted_where_no_other_plan_has_the_size(run, tmp_path):
    folder = tmp_path / "run"
    shutil.copytree(run, folder)
    experiment = Experiment(config_of(folder), RunDir(folder), NullTracker(RunInfo("x", folder)))
    experiment.load_dense()
    units = experiment.structure.units
    assert "removes nothing" in predict_recovered(experiment, CompressionPlan.removing(units, []), 4)["skipped"]
    # Smaller than the floor allows.
    experiment.parts = replace(experiment.parts, constraints=replace(experiment.parts.constraints, floor=0.9))
    plan = CompressionPlan.load(folder / "plan.json")
    assert "no other plans of its size" in predict_recovered(experiment, plan, 4)["skipped"]


def test_widths_were_priced_by_what_they_do_together(run):
    joint = JointDamage.load(run / "joint_widths.npz")
    assert joint.plans == 10
    assert "random plans were measured" in (run / "report.html").read_text()


@pytest.mark.parametrize(("exponent", "scale"), [(2.0, 50.0), (0.5, 1.0)])
def test_widths_are_priced_by_what_they_do_together(run, tmp_path, exponent, scale):
    law = JointDamage.load(run / "joint_widths.npz")
    folder = tmp_path / "run"
    shutil.copytree(run, folder)
    experiment = Experiment(config_of(folder), RunDir(folder), NullTracker(RunInfo("x", folder)))
    experiment.load_dense()
    comparison = experiment.comparison()
    comparison.joint = replace(law, exponent=exponent, scale=scale)
    seed, method = _Seed(comparison, experiment.config.seed), Method("labeler/knapsack")

    def damage(plan):
        table = dict(zip(comparison.labels.unit_ids, comparison.labels.damage[:, 0], strict=True))
        gone = np.array(experiment.structure.units.ids)[plan.removed_mask(experiment.structure.units)]
        bench = experiment.width_bench
        widths = [plan.layer_formats[name].bits for name in bench.layers]
        return sum(table[unit] for unit in gone) + comparison.joint.predict(bench.taken(np.array([widths])))[0]

    added = seed._added_plan(method, comparison.formats)
    found = seed.plan(method)
    assert found.predicted_damage == pytest.approx(damage(found))
    assert damage(found) <= damage(added)


def test_the_unit_of_a_criterion_does_not_decide_between_channels_and_widths(run, tmp_path, monkeypatch):
    folder = tmp_path / "run"
    shutil.copytree(run, folder)
    experiment = Experiment(config_of(folder), RunDir(folder), NullTracker(RunInfo("x", folder)))
    experiment.load_dense()
    # Bytes that can be met in many ways.
    experiment.parts = replace(experiment.parts, budget=Budget(macs=0.6, weight_bytes=0.14))
    seed, method, score = _Seed(experiment.comparison(), 0), Method("magnitude/mac"), MagnitudeCriterion.score
    plan = seed.plan(method)
    monkeypatch.setattr(MagnitudeCriterion, "score", lambda self, statistics: 1e-5 * score(self, statistics))
    again = seed.plan(method)
    assert plan.remove_channels == again.remove_channels
    assert plan.layer_formats == again.layer_formats


def test_the_budget_is_met(run):
    report, dense = read(run / "report.json"), read(run / "dense.json")
    assert report["compressed"]["macs"] <= 0.4 * dense["macs"]
    assert report["compressed"]["weight_bytes"] <= 0.07 * dense["weight_bytes"]
    plan = CompressionPlan.load(run / "plan.json")
    assert plan.remove_channels
    assert {spec.bits for spec in plan.layer_formats.values()} <= {8, 4}
    # The experiment stores every layer in at most 8 bits, whichever method wrote the plan.
    units = UnitTable.load(run / "units.npz")
    layers = {unit for unit, kind in zip(units.ids, units.kind, strict=True) if kind == "layer"}
    for path in (run / "comparison").glob("*/*.plan.json"):
        assert set(CompressionPlan.load(path).layer_formats) == layers, path.name


def test_the_page_is_self_contained(run):
    page = (run / "report.html").read_text()
    links = _Links()
    links.feed(page)
    assert all(link.startswith(("data:", "#")) for link in links.found), links.found
    assert "http://" not in page.replace("http://www.w3.org", "").replace("http://purl.org", "").replace(
        "http://creativecommons.org", ""
    )
    assert str(ROOT) not in page


def test_the_artifact_is_whole_and_its_files_run(run):
    folder = run / "artifact"
    manifest = read(folder / "manifest.json")
    assert (folder / "plan.json").read_bytes() == (run / "plan.json").read_bytes()
    assert {"shape", "mean", "std", "layout"} <= set(manifest["input"])
    hashes = manifest["files"]
    files = {path.name for path in folder.iterdir()} - {"manifest.json"}
    assert set(hashes) == files
    assert {"model.safetensors", "plan.json", "model.onnx", "model.int8.onnx"} <= files
    for name, recorded in hashes.items():
        assert hash_file(folder / name) == (recorded["sha256"] if isinstance(recorded, dict) else recorded)
    models = sorted(folder.glob("*.onnx"))
    images = np.random.default_rng(0).random((3, *manifest["input"]["shape"]), dtype=np.float32)
    for model in models:
        session = onnxruntime.InferenceSession(model, providers=["CPUExecutionProvider"])
        outputs = session.run(None, {session.get_inputs()[0].name: images})[0]
        assert outputs.shape == (3, len(manifest["class_names"]))
        assert np.isfinite(outputs).all()


def test_wandb_was_told_everything(run):
    record = next((run / "wandb").rglob("run-*.wandb")).read_bytes()
    for told in (b"allocator", b"finetune/train/loss", b"labels", b"compressed", b"higher_is_better"):
        assert told in record, told
    tables = [path for path in (run / "wandb").rglob("*.table.json") if "labels" in path.name]
    assert tables
    assert read(tables[0])["columns"][0] == "unit"


def test_the_same_command_does_nothing_new(run, tmp_path):
    folder = tmp_path / "run"
    shutil.copytree(run, folder)
    before, said = stage_times(folder), len((folder / "run.log").read_text())
    call_here(*FAST, "export.coder=auto", "tracker=jsonl", f"hydra.run.dir={folder}")
    assert (folder / "run.log").read_text()[said:].count("already done, skipped") == len(STAGES)
    assert stage_times(folder) == before
    assert set(before) == STAGES
    assert (folder / "plan.json").read_bytes() == (run / "plan.json").read_bytes()
    assert read_manifest(folder)["sessions"] == 2


def test_the_same_command_makes_again_what_was_lost_or_altered(run, tmp_path):
    folder = tmp_path / "run"
    shutil.copytree(run, folder)
    whole = read(folder / "artifact" / "manifest.json")
    for lost, altered, redone in (
        (("packed.json",), ("artifact/weights.packed", "artifact/model.int8.onnx"), {"pack", "export"}),
        (("result.json", "unquantized/model.safetensors"), (), {"compress", "pack", "export"}),
    ):
        before = stage_times(folder)
        for name in lost:
            (folder / name).unlink()
        for name in altered:
            (folder / name).write_bytes((folder / name).read_bytes()[:-9])
        with RunDir(folder) as run_dir:
            Experiment(config_of(folder), run_dir, NullTracker(RunInfo("x", folder))).run()
        assert {stage for stage, time in stage_times(folder).items() if time != before[stage]} == redone
        manifest = verify_artifact(folder / "artifact")
        assert manifest["files"].keys() == whole["files"].keys()
        assert {**manifest, "files": {}} == {**whole, "files": {}}


def test_a_rerun_that_fails_leaves_nothing_that_tells_of_the_artifact_before(run, tmp_path, monkeypatch):
    folder = tmp_path / "run"
    shutil.copytree(run, folder)

    def breaks(self):
        raise DataError("The loss is not finite.")

    monkeypatch.setattr(Experiment, "compress", breaks)
    config = config_of(folder)
    with RunDir(folder) as run_dir:
        experiment = Experiment(
            replace(config, finetune=replace(config.finetune, lr=1e12)), run_dir, NullTracker(RunInfo("x", folder))
        )
        with pytest.raises(DataError):
            experiment.run()
    gone = {path.name for path in run.iterdir()} - {path.name for path in folder.iterdir()}
    told = {"report.html", "report.json", "packed.json", "export.json", "warnings.json", "figures"}
    assert told | {"artifact", "result.json"} <= gone
    assert (folder / "plan.json").exists()


def test_a_run_killed_while_measuring_keeps_its_rows(measured_again):
    folder, kept = measured_again
    log = (folder / "run.log").read_text()
    whole = kept[: kept.rindex(b"\n") + 1]
    assert (folder / "rows.jsonl").read_bytes().startswith(whole)
    assert f"{whole.count(b'{') - 1} of " in log
    assert "measured rows found" in log
    labels = LabelTable.load(folder / "labels.npz")
    assert set(labels.source) == {"measured"}
    assert np.isfinite(labels.damage).all()


def test_another_process_helps_with_the_rows_that_are_missing(run, tmp_path):
    folder = tmp_path / "run"
    shutil.copytree(run, folder)
    rows = sorted((folder / "comparison").glob("*/*.rows.json"))
    assert len(rows) == 5
    told = [read(path) for path in rows]
    busy, *missing = rows
    for path in rows:
        path.unlink()
    with begin(folder, module="experiments.join") as helper:
        with FileLock(busy.with_suffix(".lock")):  # the run itself is at it
            while not all(path.exists() for path in missing):
                assert helper.poll() is None, helper.stdout.read()
                time.sleep(0.05)
            assert not busy.exists()
            write_json(busy, told[0])
        output = helper.communicate(timeout=60)[0]
    assert helper.returncode == 0, output
    assert [read(path) for path in rows] == told


def test_raw_rows_are_collected_with_what_made_them(run, tmp_path):
    assert collect_results(run, tmp_path / "raw.csv") == 12
    with (tmp_path / "raw.csv").open() as file:
        rows = list(csv.DictReader(file))
    by_stage = collections.Counter(row["stage"] for row in rows)
    assert by_stage == {"pruned": 5, "recovered": 5, "fine_tuned": 1, "quantized": 1}
    manifest, chosen = read(run / "manifest.json"), read(run / "choice.json")["chosen"]
    assert {row["commit"] for row in rows} == {manifest["code"]["commit"]}
    assert {row["method"] for row in rows if row["stage"] in ("fine_tuned", "quantized")} == {chosen}
    assert all(row["command"].startswith("python -m experiments.run") for row in rows)
    assert str(run) not in (tmp_path / "raw.csv").read_text()
    assert json.loads(rows[0]["versions"])["torch"] == torch.__version__
    # Rows of another run stay, those that this run has too are its own.
    text = (tmp_path / "raw.csv").read_text().splitlines()
    other = [
        line.replace(rows[0]["method"], "another/mac", 1) for line in text[1:] if line.startswith(rows[0]["method"])
    ]
    (tmp_path / "raw.csv").write_text("\n".join([text[0], *other, text[-1].replace(",1", ",2")]) + "\n")
    assert collect_results(run, tmp_path / "raw.csv", add=True) == 12 + len(other)
    merged = (tmp_path / "raw.csv").read_text().splitlines()
    assert set(text) < set(merged)
    assert set(other) < set(merged)
    with pytest.raises(ArtifactError):
        collect_results(tmp_path, tmp_path / "none.csv")
    (tmp_path / "raw.csv").write_text("board,network\n")
    with pytest.raises(ArtifactError, match="no table of a comparison"):
        collect_results(run, tmp_path / "raw.csv", add=True)


def test_a_whole_run_is_told_in_a_line(run, tmp_path):
    assert collect_runs([run, run], tmp_path / "raw.csv") == 2
    row, _ = read_raw(tmp_path / "raw.csv", WholeRun)
    export, packed = read(run / "export.json"), run / "artifact" / "weights.packed"
    sizes = {entry["file_bytes"]: entry for entry in export["files"]}
    assert row.file_bytes == min(sizes) < row.dense_bytes == export["dense_file"]["file_bytes"]
    assert row.metric == pytest.approx(sizes[row.file_bytes]["metric"], abs=1e-3)
    assert (row.packed_bytes, row.chosen) == (packed.stat().st_size, read(run / "choice.json")["chosen"])
    assert 0 < row.macs < 1
    assert min(row.faster, row.faster_large) > 0
    assert str(run) not in (tmp_path / "raw.csv").read_text()
    assert (
        f"| `{row.experiment}` | 2 | accuracy percent | {row.dense:.2f} ± 0.00 -> {row.metric:.2f} ± 0.00 |"
        in write_page([row, row])
    )
    with pytest.raises(ArtifactError, match="manifest"):
        collect_runs([tmp_path], tmp_path / "none.csv")


def test_the_packed_file_is_told_layer_by_layer(run, tmp_path):
    path = tmp_path / "raw.csv"
    assert collect_coded([run], path) > 2
    rows = read_raw(path, CodedRow)
    whole, *layers = rows
    packed = run / "artifact" / "weights.packed"
    assert (whole.layer, whole.file_bytes) == ("", packed.stat().st_size)
    assert whole.coded_bytes == sum(row.coded_bytes for row in layers) < whole.file_bytes
    assert whole.metric == pytest.approx(read(run / "result.json")["stages"]["quantized"]["metric"], abs=1e-4)
    assert all(0 < row.kept_weights <= row.dense_weights for row in layers)
    plan = CompressionPlan.load(run / "plan.json")
    for row in layers:
        assert row.packed_bytes < row.raw_bytes <= 4 * row.dense_weights
        assert row.packed_bytes == -(-row.raw_bytes // 4 * row.bits // 8)
        assert 0 < row.entropy <= row.bits
        assert row.bits in (plan.layer_formats[row.layer].bits, 7)  # of 8 bits 7, see reduce_range
    assert whole.coded_bytes < whole.packed_bytes == sum(row.packed_bytes for row in layers)
    assert whole.raw_bytes == sum(row.raw_bytes for row in layers)
    mean = sum(row.entropy * row.raw_bytes for row in layers) / whole.raw_bytes
    assert whole.entropy == pytest.approx(mean, abs=1e-3)


def test_what_cannot_be_helped_is_one_line(run, tmp_path):
    with pytest.raises(ArtifactError, match="manifest"):
        join_run(tmp_path)
    manifest = read(run / "manifest.json")
    for name in ("code", "libraries"):
        write_json(tmp_path / "manifest.json", {**manifest, name: {"commit": "another"}})
        with pytest.raises(ArtifactError, match=f"runs with other {name}"):
            join_run(tmp_path)
    folder = tmp_path / "run"
    shutil.copytree(run, folder)
    config = folder / ".hydra" / "config.yaml"
    config.write_text(config.read_text().replace("floor: 0.1", "floor: 0.2"))
    with pytest.raises(ArtifactError, match="has not begun to compare with these settings"):
        join_run(folder)


def test_the_files_are_scored_again_by_the_runtime_alone(run):
    told = json.loads(call(run, module="experiments.evaluate").splitlines()[-1])
    # Decoded in a process that knows nothing else of it.
    packed, own = told["packed"], read(run / "packed.json")
    assert packed["file_bytes"] == own["file_bytes"] == (run / "artifact" / "weights.packed").stat().st_size
    assert packed["metric"] == read(run / "result.json")["stages"]["quantized"]["metric"]
    tensors = own["tensors"]
    assert sum(tensor["coded_bytes"] for tensor in tensors) < packed["file_bytes"]
    assert all(8 * t["coded_bytes"] < t["values"] * (t["entropy"] + 0.2) + 8 * 40 for t in tensors if t["entropy"])
    assert "coded, bits per weight" in (run / "report.html").read_text()
    assert told["ok"]
    metrics = {row["path"]: row["metric"] for row in told["files"]}
    assert set(metrics) == {"dense/model.onnx", "artifact/model.onnx", "artifact/model.int8.onnx"}
    report = read(run / "report.json")
    assert metrics["artifact/model.int8.onnx"] == report["compressed"]["metric"]["value"]
    assert metrics["artifact/model.onnx"] == pytest.approx(report["stages"]["fine_tuned"], abs=0.5)


def test_a_student_is_scored_from_its_file(tmp_path):
    call_here(*WHOLE, "model@student=digits_mlp", "quantize.bits=[8]", "quantize.reduce_range=false",
              "export.formats=[]", f"hydra.run.dir={tmp_path}")  # fmt: skip
    packed = tmp_path / "artifact" / "weights.packed"
    told = evaluate_file(packed)
    assert (told["model"], told["data"]) == ("digits_mlp", "digits")
    assert told["metric"] == pytest.approx(read(tmp_path / "result.json")["stages"]["quantized"]["metric"])
    assert told["error_percent"] == pytest.approx(100 - told["metric"])
    assert told["file_bytes"] == packed.stat().st_size
    sizes = {tensor["name"]: tensor for tensor in told["tensors"]}
    own = {tensor["name"]: tensor for tensor in read(tmp_path / "packed.json")["tensors"]}
    assert sizes.keys() == own.keys()
    for name, tensor in sizes.items():
        assert tensor["raw_bytes"] == 4 * own[name]["values"]
        assert all(tensor[key] == own[name][key] for key in ("bits", "packed_bytes", "coded_bytes", "entropy"))
    # Of a file that lies elsewhere nothing is known but itself, and that is enough.
    other = tmp_path / "weights.packed"
    shutil.copy(packed, other)
    assert evaluate_file(other, limit=30)["tensors"] == told["tensors"]
    # All 8 bits, which was asked for; and a run that exported nothing is judged by this file.
    assert read(tmp_path / "artifact" / "manifest.json")["quantized"]["reduce_range"] is False
    again = evaluate_run(tmp_path)
    assert (again["files"], again["packed"]["metric"], again["ok"]) == ([], told["metric"], True)
    result = read(tmp_path / "result.json")
    result["stages"]["quantized"]["metric"] -= 1
    write_json(tmp_path / "result.json", result)
    assert evaluate_run(tmp_path)["disagreeing"] == ["artifact/weights.packed"]


def test_weights_below_a_threshold_go_once_it_is_set(tmp_path):
    def weights():
        base = analyze(DigitsCNN(WIDTHS, HIDDEN), load_digits().example_inputs())
        model = load_artifact(tmp_path / "artifact", base)
        return {name: weight.tensor.detach() for name, weight in prunable_weights(model).items()}

    # Units may be labelled after a repair too.
    line = [*SHORT, "compare.methods=[labeler/mac]", "quantize.enabled=false", "export.formats=[]",
            "oracle@oracles.removal=repaired", "oracles.removal.masks=8", f"hydra.run.dir={tmp_path}"]  # fmt: skip
    call_here(*line, "finetune.epochs=0")
    labels = LabelTable.load(tmp_path / "labels.npz")
    assert (labels.std_err[labels.source == "measured"] > 0).all()
    repaired, before = weights(), stage_times(tmp_path)
    call_here(*line, "finetune.epochs=1", "sparsify.threshold=0.05")
    assert {name for name, time in stage_times(tmp_path).items() if time != before[name]} == {"compress", "pack"}
    trained = weights()
    for name, weight in repaired.items():
        assert (trained[name] != 0).equal(weight.abs() >= 0.05), name
    kept = sum(int((weight != 0).sum()) for weight in trained.values())
    assert 0.1 < kept / sum(weight.numel() for weight in trained.values()) < 0.9
    assert any(not trained[name].equal(weight * (weight.abs() >= 0.05)) for name, weight in repaired.items())


def test_a_killed_run_ends_like_an_uninterrupted_one(run, resumed):
    weights, uninterrupted = (
        safetensors.numpy.load_file(folder / "artifact" / "model.safetensors") for folder in (resumed, run)
    )
    assert weights.keys() == uninterrupted.keys()
    for name, value in weights.items():
        np.testing.assert_array_equal(value, uninterrupted[name], err_msg=name)
    assert read(resumed / "result.json")["stages"] == read(run / "result.json")["stages"]


def test_a_run_is_reproduced_from_its_folder(resumed, tmp_path, monkeypatch, capsys):
    folder, again = resumed, tmp_path / "again"
    monkeypatch.setattr(sys, "argv", ["reproduce.py", str(folder), "--into", str(again)])
    with pytest.raises(SystemExit) as stop:
        reproduce()
    assert not stop.value.code
    assert "0 differences" in capsys.readouterr().out.splitlines()[-1]
    comparison = compare_runs(folder, again)
    assert not comparison.differences
    assert comparison.compared["metrics"] > 20
    assert (folder / "plan.json").read_bytes() == (again / "plan.json").read_bytes()


@pytest.fixture
def refuse(tmp_path, monkeypatch, capsys):
    """Runs a command line that must end before any work; gives its status and its one line."""
    monkeypatch.chdir(tmp_path)

    def run(*arguments, folder=tmp_path / "run"):
        line = ["experiment=quickstart", "threads=1", f"hydra.run.dir={folder}", *arguments]
        with here(*line) as main, pytest.raises(SystemExit) as stop:
            main()
        told = capsys.readouterr().err.strip().splitlines()
        assert not (Path(folder) / "dense").exists()
        return stop.value.code, told

    return run


@pytest.mark.parametrize(
    ("argument", "status", "message"),
    [
        ("budget.macs=0.001", 2, "Closest feasible: Budget(macs="),
        ("budget.macs=0.001", 2, "budget.macs cannot be met: 0.001 allows 1,822 of 1,821,952"),
        ("labelr=ridge", 2, "Unknown configuration key 'labelr'. Did you mean 'labeler'?"),
        ("sparsify.skip=[conv9]", 2, "sparsify.skip: 'conv9' names no layer of this model"),
        ("constraints.pinned=[conv9]", 2, "constraints.pinned names 'conv9', which this model does not have"),
        ("constraints.max_bits_only=[convv1]", 2, "constraints.max_bits_only names 'convv1', which this model"),
        ("+constraints.floors={conv9: 0.5}", 2, "constraints.floors names 'conv9', which this model does not have"),
    ],
)
def test_what_cannot_be_done_is_one_line_before_any_work(refuse, argument, status, message):
    code, told = refuse(argument)
    assert code == status
    assert len(told) == 1
    assert message in told[0]


def test_a_folder_that_cannot_be_written_is_one_line(refuse, tmp_path):
    if os.geteuid():
        folder = tmp_path / "locked"
        folder.mkdir(mode=0o500)
    else:
        # The superuser may write into read-only folders; below a file nobody can.
        folder = tmp_path / "file"
        folder.write_text("")
    code, told = refuse(folder=folder / "run")
    assert code == 1
    assert len(told) == 1
    assert "Cannot write into the run folder" in told[0]


def widened_solves(monkeypatch):
    """A list that grows with every solve in which all units may go, because what was found is not enough."""
    widened, solve = [], PlanFinder._solve

    def counted(self, damage, allocator):
        widened.extend([True] * bool(np.isfinite(damage[self.experiment.structure.units.removable]).all()))
        return solve(self, damage, allocator)

    monkeypatch.setattr(PlanFinder, "_solve", counted)
    return widened


# Seven hundredths of the bytes in 4 bits and more: half of the weights must go, more than a tenth of the MACs asks for.
@pytest.mark.parametrize(("formats", "macs"), [(False, 0.5), (True, 0.9)])
def test_the_pretrained_labeler_searches_a_plan_that_no_label_was_measured_for(tmp_path, monkeypatch, formats, macs):
    run, widened = tmp_path / "run", widened_solves(monkeypatch)
    budget = [] if formats else ["quantize.enabled=false", "budget.weight_bytes=null", "compare.search_plans=3"]
    call_here(*SHORT, *budget, "compare.methods=[plans/search,refit_loss/search,random]", "measure.sample=0",
              "measure.plans=0", "finetune.epochs=0", "quantize.epochs=0", f"budget.macs={macs}", "export.formats=[]",
              f"hydra.run.dir={run}")  # fmt: skip
    with (run / "comparison.csv").open() as file:
        rows = [row for row in csv.DictReader(file) if row["method"] == "plans/search"]
    assert {row["stage"] for row in rows} == {"pruned", "recovered"}
    (path,) = run.glob("comparison/*/plans-search_0.plan.json")
    plan, units = CompressionPlan.load(path), UnitTable.load(run / "units.npz")
    assert plan.removed_mask(units).any()
    assert plan.predicted_damage is None
    assert plan.predicted_cost["macs"] <= macs * read(run / "costs.json")["dense_macs"] * (1 + 1e-9)
    # Three plans were repaired and measured on the way.
    assert plan.provenance["plan_labeler"] == ("blend" if formats else "blend+3")
    (path,) = run.glob("comparison/*/refit_loss-search_0.plan.json")
    formula = CompressionPlan.load(path)
    assert formula.provenance["plan_labeler"] == "formula:refitted_loss_sum" + "+3" * (not formats)
    assert "competence" not in formula.provenance
    assert formula.removed_mask(units).any()
    notes = sorted(run.glob("comparison/*/search_*_0_0.jsonl"))
    assert [path.name for path in notes] == (
        [] if formats else ["search_formula_0_0.jsonl", "search_labeler_0_0.jsonl"]
    )
    assert all(path.read_text().count("after repair of") == 3 for path in notes)
    assert plan.provenance.get("search_plans", {}).get("measured") == (None if formats else 3)
    # More than founders and their children.
    assert plan.provenance["search"]["judged"] > 32
    assert widened == [True, True] * formats
    choice = read(run / "choice.json")
    (told,) = choice["plan_labeler"]
    assert told.endswith(f"By validation loss the plan of {choice['chosen']} was taken.")
    report = (run / "report.html").read_text()
    assert all(f"<td>{name}</td>" in report for name in ("plans/search", "refit_loss/search"))
    assert not (run / "labels.npz").exists()
    assert "no labeler.json" in report
    assert "within the labeler&#x27;s competence" in report
    favourite, tried = r"Its favourite out of [\d,]+ plans", r"Of [\d,]+ plans 3 were .*; the one that lost least"
    assert re.search(rf"{favourite if formats else tried} has a score of -\d", report)
    assert re.search(r"its members differ by \d", report)
    assert ("Each search of whole plans repaired and measured up to 3 of them" in report) == (not formats)
    assert bool(plan.layer_formats) == formats
    if formats:
        assert plan.predicted_cost["weight_bytes"] <= 0.07 * read(run / "costs.json")["dense_weight_bytes"]


def test_units_and_bits_are_searched_together_where_bytes_are_the_only_bound(tmp_path, refuse):
    budget = [*SHORT, "budget.macs=null", "budget.weight_bytes=0.12", "measure.sample=0", "measure.plans=0"]
    call_here(*budget, "compare.methods=[plans/search,refit_loss/search]", "finetune.epochs=0", "quantize.epochs=0",
              "export.formats=[]", f"hydra.run.dir={tmp_path / 'run'}")  # fmt: skip
    units = UnitTable.load(tmp_path / "run" / "units.npz")
    plans = [CompressionPlan.load(path) for path in sorted(tmp_path.glob("run/comparison/*/*search_0.plan.json"))]
    assert [p.provenance["plan_labeler"] for p in plans] == ["blend", "formula:log_refit_and_format_nats"]
    bound = 0.12 * read(tmp_path / "run" / "costs.json")["dense_weight_bytes"]
    for plan in plans:
        assert plan.removed_mask(units).any()
        assert set(plan.layer_formats) == {str(i) for i in np.array(units.ids)[units.kind == "layer"]}
        assert 0.8 * bound < plan.predicted_cost["weight_bytes"] <= bound
    assert any(len({f.bits for f in plan.layer_formats.values()}) > 1 for plan in plans)
    assert "competence" in plans[0].provenance
    assert read(tmp_path / "run" / "result.json")["weight_bytes"] <= bound
    # A race trains in floats, and no measured plan corrects what is known of bits.
    for wrong in ("compare.methods=[plans/race]", "compare.search_plans=4", "quantize.densities=[1.0,0.5]"):
        methods = [] if "methods" in wrong else ["compare.methods=[plans/search]"]
        status, told = refuse(*budget[1:], *methods, wrong, "traceback=false", folder=tmp_path / "refused")
        assert status == 2
        assert "a search of plans needs constraints.round_to=1" in told[0]


def test_a_killed_race_of_plans_goes_on_and_its_winner_leaves(tmp_path, monkeypatch):
    run, tried, trained, state = tmp_path / "run", [], Experiment.finetune_steps, {"killed": False}

    def counted(self, small, steps, *args, **options):
        if len(tried) == 4 and not state["killed"]:
            state["killed"] = True
            raise KeyboardInterrupt
        tried.append(steps)
        if len(tried) == 2:
            raise DataError("The loss is not finite.")
        assert options == {"select": False}
        return trained(self, small, steps, *args, **options)

    monkeypatch.setattr(Experiment, "finetune_steps", counted)
    arguments = [*SHORT, "quantize.enabled=false", "budget.weight_bytes=null", "compare.methods=[plans/race,random]",
                 "compare.finetune_epochs=2", "measure.plans=0", "finetune.epochs=0", "export.formats=[]",
                 f"hydra.run.dir={run}"]  # fmt: skip
    with pytest.raises((KeyboardInterrupt, SystemExit)):
        call_here(*arguments)
    call_here(*arguments)
    (path,) = run.glob("comparison/*/plans-race_0.plan.json")
    plan, units = CompressionPlan.load(path), UnitTable.load(run / "units.npz")
    told = plan.provenance["race"]
    short, long = told["steps"]
    assert 3 * short == pytest.approx(long, abs=2)
    first, last = told["losses"]
    # The second broke in training.
    assert first[1] is None
    assert None not in [*first[:1], *first[2:]]
    stayed = [i for i, loss in enumerate(last) if loss is not None]
    assert stayed == sorted(sorted((loss, i) for i, loss in enumerate(first) if loss is not None)[j][1]
                            for j in range(len(stayed)))  # fmt: skip
    assert tried == [short] * len(first) + [long] * len(stayed)
    # Training did something: no plan has the loss again that it had after fewer steps.
    assert all(last[i] != first[i] for i in stayed)
    # The plan is the one of the least loss in the notes.
    (notes,) = run.glob("comparison/*/race_0.jsonl")
    losses = {line["note"]: line["values"][0] for line in map(json.loads, notes.read_text().splitlines()[1:])}
    best = min((name for name in losses if name.startswith(f"{long} steps")), key=losses.get)
    assert best.endswith(hashlib.sha256(plan.removed_mask(units).tobytes()).hexdigest())
    assert "plans/race,0,fine_tuned" in (run / "comparison.csv").read_text()


def foreign_labeler(folder):
    """The labeler that ships, as if it had learned from quite other networks."""
    path = folder / "foreign"
    shutil.copytree(PRETRAINED, path)
    told = read(path / "competence.json")
    told["vectors"] = [[value + 1e4 for value in row] for row in told["vectors"]]
    (path / "competence.json").write_text(json.dumps(told))
    return path


def test_what_races_is_what_is_left_after_formats_were_chosen(tmp_path, monkeypatch):
    run, raced, widened = tmp_path / "run", [], widened_solves(monkeypatch)
    monkeypatch.setattr(
        PlanFinder, "_tried", lambda self, mask, steps: (raced.append(mask), (float(mask.sum()), 1.0))[1]
    )
    call_here(*SHORT, "compare.methods=[plans/search,refit_loss/search,plans/race]", "budget.macs=0.15",
              "finetune.epochs=1", "quantize.epochs=0", "export.formats=[]", f"hydra.run.dir={run}",
              f"plan_labeler={foreign_labeler(tmp_path)}")  # fmt: skip
    (path,) = run.glob("comparison/*/plans-race_0.plan.json")
    plan, units = CompressionPlan.load(path), UnitTable.load(run / "units.npz")
    assert plan.layer_formats
    assert len({mask.tobytes() for mask in raced}) > 1
    assert plan.removed_mask(units).sum() == min(mask.sum() for mask in raced)
    assert any((plan.removed_mask(units) == mask).all() for mask in raced)
    # What was found has enough to go. What the labeler and the formula like best enters.
    assert not widened
    for name in ("refit_loss", "plans"):
        (searched,) = run.glob(f"comparison/*/{name}-search_0.plan.json")
        found = CompressionPlan.load(searched)
        assert any((found.removed_mask(units) == mask).all() for mask in raced)
    # The report says that the labeler knows no network like this one.
    assert not found.provenance["competence"]["inside"]
    page = (run / "report.html").read_text()
    assert "outside the labeler" in page
    assert page.count("Two favourites of it raced with one of a formula and with plans of criteria.") == 1
    assert plan.predicted_cost["weight_bytes"] <= 0.07 * read(run / "costs.json")["dense_weight_bytes"]
