"""A student of another architecture: trained from its own weights, within the budget, told as what it is."""

import json

import pytest
import torch
from omegaconf import OmegaConf

from compress import finetuning
from compress.artifact import load_artifact
from compress.errors import BudgetError
from compress.plan import CompressionPlan
from compress.task import evaluate
from experiments import report as report_files
from experiments.components import build_components
from experiments.composition import compose_config
from experiments.config import ConfigError
from experiments.evaluate import evaluate_run
from experiments.models import DigitsMLP
from experiments.preflight import check_settings
from experiments.run_dir import RunDir
from experiments.run_files import DECISION_FILES
from experiments.seeding import seeded
from experiments.stages import Experiment, run_experiment
from experiments.tracker import RunInfo
from experiments.trackers.null import NullTracker

STUDENT = [
    "experiment=quickstart", "debug=fast", "model@student=digits_mlp", "finetune.epochs=6", "finetune.lr=5e-3",
    "export.coder=zstd", "export.formats=[]", "allocator.proof_rounds=0",
]  # fmt: skip


def begin(folder, *overrides, whole=True, figures=False):
    """A run of a student: its report, or without `whole` the run before anything is done."""
    config = compose_config([*STUDENT, *overrides])
    tracker = NullTracker(RunInfo("student", folder))
    with RunDir(folder) as run_dir, seeded("student", 0), pytest.MonkeyPatch.context() as patch:
        if not figures:
            # The fixture `folder` draws them; elsewhere they would take as long as all else.
            patch.setattr(report_files, "write_figures", lambda files: {})
        return run_experiment(config, run_dir, tracker) if whole else Experiment(config, run_dir, tracker)


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """Of one run that exported its files."""
    folder = tmp_path_factory.mktemp("student") / "run"
    begin(folder, "export.formats=[onnx]", "export.latency_batches=[1,256]", figures=True)
    return folder


def read(path):
    return json.loads(path.read_text())


def test_the_files_are_those_of_the_student(folder, tmp_path):
    result, plan = read(folder / "result.json"), CompressionPlan.load(folder / "artifact" / "plan.json")
    assert not plan.remove_channels
    assert {name: f.bits for name, f in plan.layer_formats.items()} == {"hidden": 8, "head": 8}
    assert result["macs"] == 64 * 64 + 64 * 10
    assert result["params"] == 4810
    trial = begin(tmp_path / "again", whole=False)
    found = load_artifact(folder / "artifact" / "weights.packed", DigitsMLP())
    metric, _ = evaluate(found, trial.task, trial.batches("test"))
    assert metric == result["stages"]["quantized"]["metric"] > 60  # of ten classes
    assert not {"pruned", "recovered"} & result["stages"].keys()
    export = read(folder / "export.json")
    files = {file["format"]: file for file in export["files"]}
    # More than are scored at once, and less than the test set holds.
    assert {row["batch"] for row in export["latency"]} == {1, 256}
    assert files["int8"]["ok"]
    assert files["int8"]["file_bytes"] < 10_000


def test_a_killed_training_ends_in_the_same_file(folder, tmp_path, monkeypatch):
    save = finetuning.save_state

    def dies_after(*arguments):
        save(*arguments)
        raise KeyboardInterrupt

    monkeypatch.setattr(finetuning, "save_state", dies_after)
    with pytest.raises(KeyboardInterrupt):
        begin(tmp_path / "run")
    monkeypatch.undo()
    begin(tmp_path / "run")
    name = "artifact/weights.packed"
    assert (tmp_path / "run" / name).read_bytes() == (folder / name).read_bytes()


def test_a_run_is_checked_again_from_its_folder(folder):
    # As the command line leaves it.
    (folder / ".hydra").mkdir()
    config = OmegaConf.structured(compose_config([*STUDENT, "export.formats=[onnx]"]))
    OmegaConf.save(config, folder / ".hydra" / "config.yaml")
    told = evaluate_run(folder, repeats=1)
    assert told["ok"]
    assert told["packed"]["metric"] == pytest.approx(read(folder / "result.json")["stages"]["quantized"]["metric"])


def test_the_report_says_that_it_is_a_student(folder):
    report, page = read(folder / "report.json"), (folder / "report.html").read_text()
    assert report["student"] == "experiments.models.digits_mlp.DigitsMLP"
    assert "student of another architecture, experiments.models.digits_mlp.DigitsMLP" in page
    assert "no units were removed" in page
    assert "0 of" not in page.partition("What was removed")[2].partition("</p>")[0]
    assert report["stages"]["pruned"] is None
    assert report["budget"]["met"]["macs"] == 4736
    assert report["warnings"] == []


def test_first_weights_are_seeded_and_do_not_hang_on_the_dense_model(tmp_path):
    same, other, wide = (
        begin(tmp_path / name, override, whole=False).parts.student.hidden.weight
        for name, override in (("same", "seed=0"), ("other", "seed=1"), ("wide", "model.hidden=16"))
    )
    assert torch.equal(same, wide)
    assert not torch.equal(same, other)


def test_without_quantising_it_stays_float(tmp_path):
    begin(tmp_path / "run", "quantize.enabled=false", "budget.weight_bytes=null", "finetune.epochs=1")
    plan = CompressionPlan.load(tmp_path / "run" / "artifact" / "plan.json")
    assert not plan.layer_formats
    assert plan.activation_bits is None


def test_a_folder_of_a_pruned_network_becomes_that_of_a_student(tmp_path):
    for name in DECISION_FILES:
        path = tmp_path / name
        path.parent.mkdir(exist_ok=True)
        path.write_text("{}")
    begin(tmp_path, "finetune.epochs=1")
    assert not [name for name in DECISION_FILES if (tmp_path / name).exists()]


def test_a_student_above_the_budget_is_refused_before_any_training(tmp_path):
    with pytest.raises(BudgetError, match=r"The student has 4736 macs, the budget allows 1822\."):
        begin(tmp_path / "macs", "budget.macs=0.001")
    with pytest.raises(BudgetError, match="weight_bytes, the budget allows"):
        begin(tmp_path / "bytes", "budget.weight_bytes=0.01")
    assert not (tmp_path / "macs" / "dense").exists()


def test_a_plan_says_what_activations_have(tmp_path, caplog):
    with caplog.at_level("INFO", "experiments.shrinking"):
        report = begin(tmp_path, "quantize.scheme=affine", "finetune.epochs=1")
    for name in ("plan.json", "artifact/plan.json"):
        assert read(tmp_path / name)["activation_bits"] is None
    assert "Activations stay float" in caplog.text
    assert report["warnings"] == []


def test_settings_without_effect_are_told(tmp_path):
    report = begin(tmp_path, "quantize.ranks=[0.5]", "front=[0.5]", "finetune.epochs=1")
    assert report["warnings"] == [
        "quantize.ranks and quantize.densities have no effect on a student.",
        "front has no effect on a student: nothing of it is measured.",
    ]


@pytest.mark.parametrize(
    ("override", "message"),
    [
        ("finetune.epochs=0", "finetune.epochs must be at least 1"),
        ("sparsify.by=labeler", "sparsify.by must be 'score'"),
        ("sparsify.update=sweep", "sparsify.update must be"),
        ("budget.latency_ms=0.5", "budget.latency_ms must be null"),
        ("+student.depth=2", r"'student\.depth'"),
        ("student._target_=compress.task.ClassificationTask", r"'student\._target_' must be defined in"),
    ],
)
def test_refuses_in_the_first_second(override, message):
    config = compose_config([*STUDENT, override])
    with pytest.raises(ConfigError, match=message):
        check_settings(config, build_components(config))


def test_inner_values_need_pairs_where_no_layer_is_common(folder, tmp_path):
    with pytest.raises(ConfigError, match="distillation: The student and the teacher have no layer in common"):
        begin(tmp_path / "run", "distillation=hints")
    with pytest.raises(ConfigError, match="distillation: The 'pairs' parameter names 'fc9'"):
        begin(tmp_path / "run", "distillation=hints", "distillation.pairs=[[hidden,fc9]]")
    assert not (tmp_path / "run" / "dense").exists()
    begin(tmp_path / "run", "distillation=hints", "distillation.pairs=[[hidden,fc1]]")
    plain, hinted = (read(run / "report.json") for run in (folder, tmp_path / "run"))
    assert hinted["compressed"]["loss"] != plain["compressed"]["loss"]


def test_attention_of_a_narrower_network(tmp_path):
    overrides = ["model@student=digits_cnn", "student.widths=[4,8,8]", "student.hidden=16", "finetune.epochs=1",
                 "distillation=attention", "distillation.pairs=[[conv2,conv2],[conv3,conv3]]"]  # fmt: skip
    report = begin(tmp_path / "run", *overrides)
    assert report["student"] == "experiments.models.digits_cnn.DigitsCNN"
    assert report["compressed"]["macs"] < 0.1 * report["dense"]["macs"]
