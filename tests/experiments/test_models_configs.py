"""Every yaml of `model`, `data` and `task` names an object of this project and only arguments that it has."""

import inspect
from pathlib import Path

import pytest
from omegaconf import OmegaConf

import conf
from experiments.config import build, locate_target

ROOT = Path(conf.__file__).parent
FILES = sorted(path for group in ("model", "data", "task") for path in (ROOT / group).glob("*.yaml"))


def read(path: Path) -> dict:
    root = OmegaConf.create({"seed": 0, "node": OmegaConf.load(path)})
    return OmegaConf.to_container(root, resolve=True)["node"]


@pytest.mark.parametrize("path", FILES, ids=lambda path: f"{path.parent.name}/{path.stem}")
def test_arguments_are_those_of_the_target(path):
    node = read(path)
    target = locate_target(node["_target_"], path.parent.name)
    given = set(node) - {"_target_"}
    assert given <= set(inspect.signature(target).parameters)
    if path.parent.name != "task":
        assert node["_target_"].split(".")[2] == path.stem


@pytest.mark.parametrize(
    "name", ["model/digits_cnn", "model/digits_mlp", "model/lenet300", "model/lenet5", "task/embedding"]
)
def test_objects_without_files_are_built(name):
    node = read(ROOT / f"{name}.yaml")
    assert build(node, name).__class__.__name__ == node["_target_"].split(".")[-1]


def test_digits_are_built_with_the_seed_of_the_run():
    assert len(build(read(ROOT / "data/digits.yaml"), "data").test) == 400
