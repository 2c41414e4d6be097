"""A run folder checked again: the numbers of its files, and what happens when they were touched."""

import json
import shutil

import pytest
import torch
from hydra import compose, initialize_config_module
from omegaconf import OmegaConf
from sklearn.datasets import load_digits as sklearn_digits
from torch import nn

from compress.artifact import save_artifact
from compress.artifact_files import register_file
from compress.errors import ArtifactError
from compress.exporters.onnx import export_onnx
from compress.files import write_json
from compress.graph import layers_of, trace
from compress.plan import CompressionPlan, LayerFormat
from compress.quantization import prepare_quantized
from compress.quantizers.minmax import MinMaxQuantizer
from experiments import evaluate
from experiments.evaluate import evaluate_run
from experiments.run_dir import RunDir


@pytest.fixture(scope="module")
def finished(tmp_path_factory):
    """A run folder with the files of a nearest-mean classifier of the digits, in float32 and at 4 bits."""
    folder = tmp_path_factory.mktemp("runs") / "run"
    images, labels = (torch.from_numpy(value) for value in sklearn_digits(return_X_y=True))
    means = torch.stack([images[labels == label].mean(0) for label in range(10)]).float() / 16
    model = nn.Sequential(nn.Flatten(), nn.Linear(64, 10))
    model[1].weight.data, model[1].bias.data = means, -means.square().sum(1) / 2
    x = (images[:50].float() / 16).reshape(-1, 1, 8, 8)
    module = trace(model.eval(), x).module
    plan = CompressionPlan(layer_formats={layer.name: LayerFormat(4) for layer in layers_of(module)}, activation_bits=8)
    low = prepare_quantized(module, plan, [(x,)], MinMaxQuantizer())
    with initialize_config_module("conf", version_base="1.3"):
        config = compose("config", ["experiment=quickstart", "export.latency_batches=[1, 16]"])
    (folder / ".hydra").mkdir(parents=True)
    OmegaConf.save(config, folder / ".hydra" / "config.yaml", resolve=True)
    with RunDir(folder) as run_dir:
        export_onnx(module, x[:1], run_dir.file("dense/model.onnx"))
        save_artifact(folder / "artifact", low, plan, x)
        export_onnx(low, x[:1], folder / "artifact" / "model.int8.onnx")
        register_file(folder / "artifact", "model.int8.onnx")
        write_json(folder / "plan.json", {})
        run_dir.add_output(folder / "dense" / "model.onnx")
        run_dir.add_output(folder / "plan.json")
    return folder


@pytest.fixture
def run(finished, tmp_path):
    return shutil.copytree(finished, tmp_path / "run")


def _report(folder, metric):
    write_json(folder / "export.json", {"files": [{"path": "artifact/model.int8.onnx", "metric": metric}]})


def test_every_file_is_scored_sized_and_timed(run):
    result = evaluate_run(run, repeats=5)
    dense, low = result["files"]
    assert (dense["path"], low["path"]) == ("dense/model.onnx", "artifact/model.int8.onnx")
    assert result["ok"]
    assert result["examples"] > 300
    assert 80 < low["metric"] <= 100
    assert low["file_bytes"] == (run / low["path"]).stat().st_size
    assert low["bytes_ratio"] == dense["file_bytes"] / low["file_bytes"]
    assert set(low["latency_ms"]) == {"batch 1", "batch 16"}
    assert dense["latency_ratio"]["batch 1"] == 1.0


def _set_batches(folder, batches):
    path = folder / ".hydra" / "config.yaml"
    config = OmegaConf.load(path)
    config.export.latency_batches = batches
    OmegaConf.save(config, path)


def test_as_many_examples_are_timed_as_the_largest_batch_holds(run):
    _set_batches(run, [256, 1000])
    result = evaluate_run(run, repeats=1)
    assert 256 < result["examples"] < 1000
    assert set(result["files"][1]["latency_ms"]) == {"batch 256"}


def test_a_run_without_latencies_is_scored_all_the_same(run, capsys, monkeypatch):
    _set_batches(run, [])
    monkeypatch.setattr("sys.argv", ["evaluate", str(run)])
    with pytest.raises(SystemExit) as exit_:
        evaluate.main()
    assert exit_.value.code == 0
    told = capsys.readouterr().out.splitlines()
    result = json.loads(told[-1])
    assert result["files"][1]["latency_ms"] == {}
    assert f"{result['examples']} test examples" in " ".join(told)


def test_what_was_touched_is_told(run, capsys, monkeypatch):
    metric = evaluate_run(run, repeats=1)["files"][1]["metric"]
    _report(run, metric)
    assert evaluate_run(run, repeats=1)["ok"]
    _report(run, metric - 5)
    (run / "plan.json").write_text("{ }")
    monkeypatch.setattr("sys.argv", ["evaluate", str(run), "--repeats", "1"])
    with pytest.raises(SystemExit) as exit_:
        evaluate.main()
    assert exit_.value.code == 1
    result = json.loads(capsys.readouterr().out.splitlines()[-1])
    assert result["altered"] == ["plan.json"]
    assert result["disagreeing"] == ["artifact/model.int8.onnx"]


def test_a_damaged_artifact_or_no_run_is_refused(run, tmp_path, capsys, monkeypatch):
    path = run / "artifact" / "model.int8.onnx"
    path.write_bytes(path.read_bytes()[:-1])
    with pytest.raises(ArtifactError, match=r"model\.int8\.onnx"):
        evaluate_run(run)
    (run / ".hydra" / "config.yaml").write_text("a: [")
    shutil.rmtree(run / "artifact")
    with pytest.raises(ArtifactError):
        evaluate_run(run)
    monkeypatch.setattr("sys.argv", ["evaluate", str(tmp_path / "nowhere")])
    with pytest.raises(SystemExit) as exit_:
        evaluate.main()
    assert exit_.value.code == 1
    assert "manifest.json" in capsys.readouterr().err
