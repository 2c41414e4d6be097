"""Trackers: the run's own record, Weights & Biases offline, and nothing at all."""

import builtins
import importlib
import json
import logging
import shutil
import subprocess
import sysconfig
from pathlib import Path

import numpy as np
import pytest

from compress.errors import ArtifactError
from experiments.tracker import RunInfo, Tracker, TrackerGroup, flatten, to_json
from experiments.trackers.jsonl import JSONLTracker, read_records
from experiments.trackers.null import NullTracker
from experiments.trackers.wandb import WandbTracker


@pytest.fixture
def info(tmp_path):
    return RunInfo("digits/1", tmp_path, {"budget": {"macs": 0.5}}, "digits", "sweep", ("gbdt", "knapsack"))


@pytest.fixture
def offline(monkeypatch, tmp_path):
    """No login, no answer from a machine's own settings."""
    for name in ("WANDB_API_KEY", "WANDB_MODE", "WANDB_DIR", "WANDB_DATA_DIR", "WANDB_ERROR_REPORTING"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv("NETRC", str(tmp_path / "no-netrc"))


def _use(tracker, folder):
    picture = folder / "figure.png"
    _draw(picture)
    (folder / "artifact").mkdir(exist_ok=True)
    (folder / "artifact" / "plan.json").write_text("{}")
    tracker.begin_stage("dense", "key")
    for step in range(3):
        tracker.log_metrics({"train/loss": 1.0 / (step + 1), "train/lr": 0.1}, step)
    for step in range(2):
        tracker.log_metrics({"finetune/loss": np.float32(0.5) ** step}, step)
    tracker.log_table("labels", ["unit", "measured", "predicted"], [["a:out[0]", 0.5, 0.25], ["a:out[1]", None, 1.0]])
    tracker.log_figure("pareto", picture)
    tracker.log_artifact(folder / "artifact")
    tracker.summary({"compressed": {"metric": {"value": 97.5}, "macs": 100}})
    tracker.finish()


def _draw(path):
    from matplotlib.figure import Figure

    figure = Figure(figsize=(1, 1))
    figure.add_subplot().plot([0, 1])
    figure.savefig(path)


def test_every_tracker_is_a_tracker(info, offline):
    assert isinstance(NullTracker(info), Tracker)
    jsonl = JSONLTracker(info)
    assert isinstance(jsonl, Tracker)
    jsonl.finish()
    assert isinstance(TrackerGroup([]), Tracker)
    assert issubclass(WandbTracker, Tracker)


def test_null_writes_nothing(info, tmp_path):
    _use(NullTracker(info), tmp_path)
    assert {path.name for path in tmp_path.iterdir()} == {"figure.png", "artifact"}


def test_jsonl_records_everything(info, tmp_path):
    _use(TrackerGroup([JSONLTracker(info)]), tmp_path)
    records = read_records(tmp_path / "metrics.jsonl")
    assert [record["kind"] for record in records] == [
        "session", "stage", *["metrics"] * 5, "table", "figure", "artifact", "summary"
    ]  # fmt: skip
    assert records[4]["values"] == {"train/loss": 1 / 3, "train/lr": 0.1}
    assert records[7]["rows"][1] == ["a:out[1]", None, 1.0]
    assert records[8]["path"] == "figure.png"
    assert records[10]["values"]["compressed"]["metric"]["value"] == 97.5


def test_jsonl_is_on_disk_at_once(info, tmp_path):
    tracker = JSONLTracker(info)
    tracker.log_metrics({"loss": 1.0}, 0)
    assert len(read_records(tmp_path / "metrics.jsonl")) == 2
    tracker.finish()


@pytest.mark.parametrize("torn", [b'{"kind": "metr', b'{"kind": "metrics", "step": 9, "values": {}}', b"\xff\xfe{"])
def test_jsonl_repairs_a_torn_last_line(info, tmp_path, torn):
    tracker = JSONLTracker(info)
    tracker.log_metrics({"loss": 1.0}, 0)
    tracker.finish()
    path = tmp_path / "metrics.jsonl"
    with path.open("ab") as file:
        file.write(torn)
    whole = torn.endswith(b"}")
    assert len(read_records(path)) == 2 + whole  # the torn line is no reason not to read the others
    tracker = JSONLTracker(info)
    tracker.log_metrics({"loss": 0.5}, 1)
    tracker.finish()
    kinds = [record["kind"] for record in read_records(path)]
    assert kinds == ["session", "metrics", *(["metrics"] if whole else []), "session", "metrics"]


def test_jsonl_names_a_line_damaged_in_the_middle(tmp_path):
    (tmp_path / "metrics.jsonl").write_text('{"kind": "session"}\n{"kin\n{"kind": "summary"}\n')
    with pytest.raises(ArtifactError, match="Line 2"):
        read_records(tmp_path / "metrics.jsonl")


def test_jsonl_names_a_folder_it_cannot_write(tmp_path):
    (tmp_path / "file").write_text("")
    with pytest.raises(ArtifactError, match="Cannot write"):
        JSONLTracker(RunInfo("x", tmp_path / "file"))


def test_values_become_plain_json():
    value = {"a": np.float64(1.5), "b": np.arange(2), "c": float("nan"), "d": (1, Path("x")), 3: True, "e": -np.inf}
    assert to_json(value) == {"a": 1.5, "b": [0, 1], "c": "nan", "d": [1, "x"], "3": True, "e": "-inf"}
    json.dumps(to_json(value), allow_nan=False)
    assert flatten({"a": {"b": {"c": 1}}, "d": 2}) == {"a.b.c": 1, "d": 2}


def test_wandb_offline_run_reads_back(info, tmp_path, offline):
    pytest.importorskip("wandb")
    command = Path(sysconfig.get_path("scripts")) / "wandb"
    if not command.exists():
        pytest.skip("the wandb command is not installed")
    tracker = WandbTracker(info)
    _use(tracker, tmp_path)
    tracker.log_metrics({"after": 1.0}, 0)  # after the end: no harm
    (log_file,) = (tmp_path / "wandb").glob("offline-run-*/*.wandb")
    done = subprocess.run(
        [command, "leet", "inspect", "--json", log_file], capture_output=True, text=True, check=True, timeout=60
    )
    records = [json.loads(line) for line in done.stdout.splitlines()]
    by_type = {kind: [r[kind] for r in records if r["type"] == kind] for kind in ("run", "history", "metric")}
    (run,) = by_type["run"]
    assert run["run_group"] == "digits"
    assert run["job_type"] == "sweep"
    assert run["config"]["update"]["budget"] == {"macs": 0.5}
    rows = [record["item"] for record in by_type["history"]]
    assert [row["train/loss"] for row in rows if "train/loss" in row] == pytest.approx([1, 1 / 2, 1 / 3])
    # The steps of fine-tuning begin at 0 again and none is lost.
    assert [row["finetune/step"] for row in rows if "finetune/step" in row] == [0, 1]
    assert {record.get("glob_name") for record in by_type["metric"]} == {"train/*", "finetune/*"}
    assert [row["labels.nrows"] for row in rows if "labels.nrows" in row] == [2]
    assert any("pareto.path" in row for row in rows)
    assert any("plan.json" in str(record) for record in records if record["type"] == "artifact")
    summary = [record["summary"] for record in records if record["type"] == "summary"]
    assert any("97.5" in json.dumps(record) for record in summary)
    tables = list((tmp_path / "wandb").glob("offline-run-*/files/media/table/*.json"))
    assert json.loads(tables[0].read_text())["data"][0] == ["a:out[0]", 0.5, 0.25]


def test_wandb_resumes_under_the_same_id(info, tmp_path, offline):
    pytest.importorskip("wandb")
    for _ in range(2):
        tracker = WandbTracker(info)
        tracker.log_metrics({"loss": 1.0}, 0)
        tracker.finish()
    logs = list((tmp_path / "wandb").glob("offline-run-*/*.wandb"))
    assert len(logs) == 2
    assert len({path.name for path in logs}) == 1


def test_wandb_leaves_the_environment_as_it_was(info, offline, monkeypatch):
    pytest.importorskip("wandb")
    import os

    tracker = WandbTracker(info)
    assert os.environ["WANDB_ERROR_REPORTING"] == "false"
    tracker.finish()
    assert "WANDB_DATA_DIR" not in os.environ


def test_wandb_not_installed_is_a_warning(info, tmp_path, offline, monkeypatch, caplog):
    real = builtins.__import__

    def without(name, *args, **kwargs):
        if name == "wandb":
            raise ImportError("No module named 'wandb'")
        return real(name, *args, **kwargs)

    monkeypatch.setattr(builtins, "__import__", without)
    tracker = WandbTracker(info)
    monkeypatch.undo()
    with caplog.at_level(logging.WARNING):
        _use(tracker, tmp_path)
    assert "W&B is not installed" in caplog.text
    assert caplog.text.count("W&B") <= 2


def test_wandb_that_fails_is_one_warning(info, tmp_path, offline, monkeypatch, caplog):
    wandb = pytest.importorskip("wandb")

    def refuse(*_, **__):
        raise wandb.errors.CommError("unreachable")

    monkeypatch.setattr(wandb, "init", refuse)
    _use(WandbTracker(info), tmp_path)
    assert [record.levelname for record in caplog.records if "W&B" in record.message] == ["WARNING"]


def test_wandb_that_fails_midway_is_one_warning(info, tmp_path, offline, monkeypatch, caplog):
    wandb = pytest.importorskip("wandb")
    tracker = WandbTracker(info)
    monkeypatch.setattr(wandb, "Table", lambda *_, **__: 1 / 0)
    run = tracker._run
    _use(tracker, tmp_path)
    run.finish()
    warnings = [record.message for record in caplog.records if record.levelname == "WARNING"]
    assert len(warnings) == 1
    assert "log a table" in warnings[0]


def test_wandb_with_a_login_that_cannot_reach_its_server_goes_offline(info, tmp_path, offline, monkeypatch, caplog):
    pytest.importorskip("wandb")
    monkeypatch.setenv("WANDB_API_KEY", "0" * 40)
    monkeypatch.setenv("WANDB_BASE_URL", "http://127.0.0.1:9")  # the discard port: nobody answers
    tracker = WandbTracker(info, init_timeout_s=1.0)
    tracker.log_metrics({"loss": 1.0}, 0)
    tracker.finish()
    assert list((tmp_path / "wandb").glob("offline-run-*/*.wandb"))
    assert "send it later with wandb sync" in caplog.text


def test_wandb_never_asks_for_a_login(offline, monkeypatch, tmp_path):
    module = importlib.import_module("experiments.trackers.wandb")
    assert module._choose_mode() == "offline"
    monkeypatch.setenv("WANDB_MODE", "online")
    assert module._choose_mode() == "offline"
    monkeypatch.setenv("WANDB_MODE", "disabled")
    assert module._choose_mode() == "disabled"
    monkeypatch.setenv("WANDB_MODE", "")
    (tmp_path / "netrc").write_text("machine api.wandb.ai login user password " + "0" * 40)
    shutil.copymode(tmp_path, tmp_path / "netrc")
    (tmp_path / "netrc").chmod(0o600)
    monkeypatch.setenv("NETRC", str(tmp_path / "netrc"))
    assert module._choose_mode() == "online"
    monkeypatch.setenv("WANDB_BASE_URL", "https://wandb.example.org")
    assert module._choose_mode() == "offline"
