"""The table and the figure over the runs of a multirun."""

import csv
import json

import numpy as np
import pytest
from omegaconf import OmegaConf

from compress.errors import ArtifactError
from experiments.run_dir import RunDir
from experiments.sweep_table import SweepTable, collect_rows, draw_pareto, pareto_front, write_table


def _run(folder, name, overrides, metrics=None):
    try:
        with RunDir(folder / name, {"overrides": overrides}) as run:
            if metrics is None:
                raise ArtifactError("broken")
            run.set_metrics(metrics)
    except ArtifactError:
        pass


@pytest.fixture
def sweep(tmp_path):
    for i, (labeler, macs, value) in enumerate([("gbdt", 50, 91.0), ("ridge", 50, 90.0), ("gbdt", 70, 92.5)]):
        overrides = [f"labeler={labeler}", f"budget.macs=0.{macs // 10}", "+finetune.lr=0.1"]
        _run(tmp_path, str(i), overrides, {"compressed": {"macs": macs, "metric": {"value": value}}, "warnings": ["w"]})
    _run(tmp_path, "3", ["labeler=mean", "budget.macs=0.1"])
    (tmp_path / "0" / "artifact").mkdir()
    (tmp_path / "0" / "artifact" / "manifest.json").write_text('{"schema_version": 1, "files": {}}')
    (tmp_path / "1" / "artifact").mkdir()
    (tmp_path / "1" / "artifact" / "manifest.json").write_text("{")
    return tmp_path


def test_rows_hold_overrides_and_metrics_of_every_run(sweep):
    rows = collect_rows(sweep)
    assert [row.status for row in rows] == ["finished", "finished", "finished", "failed"]
    assert rows[0].overrides == {"labeler": "gbdt", "budget.macs": "0.5", "finetune.lr": "0.1"}
    assert rows[0].metrics == {"compressed.macs": 50, "compressed.metric.value": 91.0}
    assert rows[3].error == "ArtifactError: broken"


def test_the_table_is_written_as_csv_and_json(sweep):
    write_table(sweep)
    with (sweep / "table.csv").open(newline="") as file:
        rows = list(csv.DictReader(file))
    assert [row["compressed.metric.value"] for row in rows] == ["91.0", "90.0", "92.5", ""]
    table = json.loads((sweep / "table.json").read_text())
    assert table["schema_version"] == 1
    assert table["rows"][2]["labeler"] == "gbdt"
    assert table["columns"][:2] == ["run", "status"]


def test_the_callback_writes_table_and_figure(sweep):
    config = OmegaConf.create({"hydra": {"sweep": {"dir": str(sweep)}}})
    SweepTable().on_multirun_end(config)
    assert (sweep / "pareto.png").read_bytes().startswith(b"\x89PNG")
    assert (sweep / "table.csv").exists()


@pytest.mark.parametrize(
    ("task", "params", "left_out"),
    [
        (["debug=fast", "seed=0,1"], None, None),
        (["debug=fast,trace", "tracker=null"], None, "[experiment,tracker]"),
        (["seed=1"], {"experiment": "choice(a, b)"}, "[debug,tracker]"),
    ],
)
def test_the_callback_makes_the_folder_and_names_runs_by_what_is_swept(tmp_path, task, params, left_out):
    key = "hydra.job.config.override_dirname.exclude_keys"
    config = OmegaConf.create({"hydra": {
        "sweep": {"dir": str(tmp_path / "a" / "b")}, "sweeper": {"params": params},
        "overrides": {"task": task, "hydra": ["hydra.mode=MULTIRUN"]},
    }})  # fmt: skip
    OmegaConf.update(config, key, ["experiment", "debug", "tracker"])
    OmegaConf.set_readonly(config, True)
    SweepTable().on_multirun_start(config)
    assert (tmp_path / "a" / "b").is_dir()
    assert config.hydra.overrides.hydra[1:] == ([f"{key}={left_out}"] if left_out else [])


def test_no_figure_without_numbers(sweep):
    assert not draw_pareto(collect_rows(sweep), sweep / "none.png", "compressed.latency_ms", "compressed.metric.value")
    assert not (sweep / "none.png").exists()


@pytest.mark.parametrize(
    ("cost", "value", "front"),
    [
        ([1, 2, 3], [1, 2, 3], [0, 1, 2]),
        ([1, 2, 3], [3, 2, 1], [0]),
        ([3, 1, 2, 2], [5, 1, 4, 2], [1, 2, 0]),
        ([1, 1], [2, 2], [0]),  # equal points: one of them
        ([2], [7], [0]),
    ],
)
def test_pareto_front(cost, value, front):
    assert pareto_front(np.array(cost, dtype=float), np.array(value, dtype=float)).tolist() == front
