"""Training repeats, stored networks come back as they were, and a build that is cut short goes on."""

import csv
import dataclasses
import os
import signal
import subprocess
import sys
import time
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch

from compress.errors import ArtifactError, CompressError
from compress.files import read_json, write_json
from compress.task import ClassificationTask, evaluate
from experiments.config import ConfigError
from experiments.data import make_batches
from experiments.jobs.zoo import ZooJob
from experiments.zoo import Recipe, build_zoo, building, load_network, load_task_data, read_rows, train_network

ROOT = Path(__file__).parents[2]


def recipe(index=0, **changes):
    name = f"mlp-digits-{index:03d}"
    return dataclasses.replace(
        Recipe(
            name=name, family="mlp", task="digits", seed=index, width=16, depth=2, activation="relu", norm="batch",
            optimizer="adamw", lr=0.01, weight_decay=0.0, epochs=2, batch_size=64, train_fraction=0.5,
        ),
        **changes,
    )  # fmt: skip


@pytest.fixture(scope="module")
def trained():
    return train_network(recipe())


@pytest.fixture(scope="module")
def zoo(tmp_path_factory):
    folder = tmp_path_factory.mktemp("zoo")
    build_zoo(folder, [recipe(0), recipe(1)], workers=1)
    return folder


@pytest.fixture
def zoo_copy(zoo, tmp_path):
    for path in (zoo / "networks").iterdir():
        (tmp_path / "networks").mkdir(exist_ok=True)
        (tmp_path / "networks" / path.name).write_bytes(path.read_bytes())
    return tmp_path


def test_the_same_recipe_gives_the_same_weights(trained):
    torch.manual_seed(1)
    network, row = trained
    again, other_row = train_network(recipe())
    assert all(
        torch.equal(a, b) for a, b in zip(network.state_dict().values(), again.state_dict().values(), strict=True)
    )
    assert {**row, "seconds": 0} == {**other_row, "seconds": 0}
    assert train_network(recipe(seed=5))[1]["weights_sha256"] != row["weights_sha256"]


def test_a_row_says_what_the_network_is_and_can(trained):
    network, row = trained
    assert not network.training
    assert Recipe.from_json(row) == recipe()
    assert row["parameters"] == 64 * 16 + 2 * 16 + 16 * 16 + 2 * 16 + 16 * 10 + 10
    assert row["macs"] == 64 * 16 + 16 * 16 + 16 * 10
    batches = make_batches(load_task_data("digits").test, 400)
    found = evaluate(network, ClassificationTask(), batches)
    assert found == pytest.approx((row["test_accuracy_percent"], row["test_loss"]))
    assert row["test_accuracy_percent"] > 20
    assert {"train_loss", "train_accuracy_percent", "validation_loss", "validation_accuracy_percent"} <= row.keys()
    assert row["seconds"] > 0


def test_training_leaves_the_number_of_threads_alone():
    threads = torch.get_num_threads()
    try:
        torch.set_num_threads(2)
        train_network(recipe(epochs=1))
        assert torch.get_num_threads() == 2
    finally:
        torch.set_num_threads(threads)


def test_a_loaded_network_is_the_trained_one(zoo, trained):
    network, splits, row = load_network(zoo, recipe().name)
    inputs, _ = splits.test.batch(torch.arange(50))
    assert not network.training
    assert torch.equal(network(inputs), trained[0](inputs))
    assert row["weights_sha256"] == trained[1]["weights_sha256"]
    assert splits is load_task_data("digits")


def test_rows_come_in_the_order_of_their_numbers_and_the_table_has_all_columns(zoo):
    assert [row["name"] for row in read_rows(zoo)] == [recipe(0).name, recipe(1).name]
    with open(zoo / "zoo.csv", newline="") as file:
        lines = list(csv.DictReader(file))
    assert [line["name"] for line in lines] == [recipe(0).name, recipe(1).name]
    assert set(lines[0]) == set(read_rows(zoo)[0])


@pytest.mark.parametrize("damage", [lambda path: path.write_bytes(path.read_bytes()[:-4]), Path.unlink])
def test_damaged_or_missing_weights_are_named_and_trained_again(zoo_copy, damage):
    path = zoo_copy / "networks" / f"{recipe(1).name}.safetensors"
    damage(path)
    with pytest.raises(ArtifactError, match=r"mlp-digits-001\.safetensors.*Build the network again"):
        load_network(zoo_copy, recipe(1).name)
    new = []
    build_zoo(zoo_copy, [recipe(0), recipe(1)], workers=1, on_network=new.append)
    assert [row["name"] for row in new] == [recipe(1).name]
    load_network(zoo_copy, recipe(1).name)


def test_damaged_rows_are_named(zoo_copy):
    path = zoo_copy / "networks" / f"{recipe(1).name}.json"
    row = read_json(path)
    for wrong in ({}, {**row, "name": "other"}, {**row, "weights_sha256": None}, []):
        write_json(path, wrong)
        with pytest.raises(ArtifactError, match=r"mlp-digits-001\.json"):
            read_rows(zoo_copy)
    path.write_text("{")
    with pytest.raises(ArtifactError, match=r"mlp-digits-001\.json is not valid JSON"):
        load_network(zoo_copy, recipe(1).name)


def test_weights_of_another_architecture_are_refused(zoo_copy):
    path = zoo_copy / "networks" / f"{recipe(1).name}.json"
    write_json(path, {**read_json(path), "width": 20})
    with pytest.raises(ArtifactError, match=r"mlp-digits-001\.safetensors does not fit"):
        load_network(zoo_copy, recipe(1).name)


def test_an_empty_folder_is_no_zoo(tmp_path):
    with pytest.raises(ArtifactError, match="holds no network"):
        read_rows(tmp_path)


def test_a_build_skips_what_is_there_and_trains_what_changed(zoo_copy):
    new = []
    build_zoo(zoo_copy, [recipe(0), recipe(1)], workers=1, on_network=new.append)
    assert not new
    rows = build_zoo(zoo_copy, [recipe(0), recipe(1, epochs=1), recipe(2)], workers=1, on_network=new.append)
    assert [row["name"] for row in new] == [recipe(1).name, recipe(2).name]
    assert [row["epochs"] for row in rows] == [2, 1, 2]


def test_a_network_that_fails_is_named_and_the_others_are_stored(tmp_path):
    with pytest.raises(CompressError, match=r"1 of 2 networks could not be trained.*mlp-digits-000: DataError.*loss"):
        build_zoo(tmp_path, [recipe(0, lr=1e30, norm="none", optimizer="sgd"), recipe(1, epochs=1)], workers=1)
    assert [row["name"] for row in read_rows(tmp_path)] == [recipe(1).name]


@pytest.mark.parametrize("recipes", [[], [recipe(0), recipe(0)]])
def test_recipes_without_names_of_their_own_are_refused(recipes, tmp_path):
    with pytest.raises(CompressError, match="each of another name"):
        build_zoo(tmp_path, recipes)


def test_a_killed_build_goes_on_with_the_same_weights(zoo, tmp_path):
    # What follows the first two networks would train for minutes. Workers that are killed: tests of the worker pool.
    script = (
        "from test_zoo_building import recipe, build_zoo\n"
        "if __name__ == '__main__':\n"
        f"    build_zoo({str(tmp_path)!r}, [recipe(0), recipe(1), recipe(2, epochs=100_000)], workers=1)\n"
    )
    program = tmp_path / "program.py"
    program.write_text(script)
    paths = os.pathsep.join([str(ROOT), str(Path(__file__).parent)])
    process = subprocess.Popen([sys.executable, str(program)], env={**os.environ, "PYTHONPATH": paths})
    rows = [tmp_path / "networks" / f"{recipe(i).name}.json" for i in (0, 1)]
    try:
        deadline = time.monotonic() + 120
        while not all(row.exists() for row in rows):
            assert process.poll() is None
            assert time.monotonic() < deadline
            time.sleep(0.1)
    finally:
        process.send_signal(signal.SIGKILL)
        process.wait()
    new = []
    build_zoo(tmp_path, [recipe(0), recipe(1), recipe(2)], workers=1, on_network=new.append)
    assert [row["name"] for row in new] == [recipe(2).name]
    assert [row["weights_sha256"] for row in read_rows(tmp_path)[:2]] == [
        row["weights_sha256"] for row in read_rows(zoo)
    ]


def test_the_job_builds_logs_and_sums_up(tmp_path, monkeypatch):
    recipes = [recipe(0, epochs=1), recipe(1, epochs=1)]
    monkeypatch.setattr("experiments.zoo.draw_recipes", lambda n, seed: recipes[:n])
    logged, outputs = [], []
    tracker = SimpleNamespace(
        log_metrics=lambda metrics, step: logged.append((step, metrics)),
        log_table=lambda name, columns, rows: logged.append((name, len(rows))),
    )
    run_dir = SimpleNamespace(path=tmp_path, file=lambda name: tmp_path / name, add_output=outputs.append)
    job = ZooJob(networks=2, workers=1)
    job.check(None)
    metrics = job.run(None, run_dir, tracker)["zoo"]
    assert (metrics["networks"], metrics["families"], metrics["tasks"]) == (2, 1, 1)
    assert metrics["accuracy_min"] <= metrics["accuracy_median"] <= metrics["accuracy_max"]
    assert [entry[0] for entry in logged] == [1, 2, "zoo"]
    assert outputs == [tmp_path / building.TABLE]


def test_the_job_refuses_wrong_numbers_and_missing_data(tmp_path, monkeypatch):
    with pytest.raises(CompressError, match="'networks' parameter of ZooJob"):
        ZooJob(networks=0)
    load_task_data.cache_clear()
    monkeypatch.setenv("AUTOLABEL_DATA", str(tmp_path))
    with pytest.raises(ConfigError, match="--only shakespeare"):
        ZooJob(networks=2).check(None)
    load_task_data.cache_clear()
