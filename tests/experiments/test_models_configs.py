"""Every yaml of `model`, `data` and `task` names an object of this project and only arguments that it has."""

import inspect
from pathlib import Path

import pytest
from omegaconf import OmegaConf
from torch import nn

import conf
from compress.errors import DataError
from compress.graph import check_finite
from experiments.components import build_components
from experiments.composition import compose_config
from experiments.config import ConfigError, build, locate_target

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


@pytest.mark.parametrize(
    ("overrides", "message"),
    [
        (["model.hidden=0"], r"'model': fc1\.weight has no values, its shape is \(0, 256\)"),
        (["model.hidden=-3"], r"'model' cannot be built from .*DigitsCNN: .*negative dimension"),
        (["model=digits_mlp", "model.width=0"], r"'model': hidden\.weight has no values"),
    ],
)
# torch's own, which says that it fills nothing.
@pytest.mark.filterwarnings("ignore:Initializing zero-element tensors:UserWarning")
def test_a_width_of_nothing_is_refused(overrides, message):
    with pytest.raises(ConfigError, match=message):
        build_components(compose_config(["experiment=quickstart", *overrides]))


def test_a_lazy_layer_is_left_to_what_names_it(monkeypatch):
    monkeypatch.setattr("experiments.models.digits_mlp.nn.Linear", lambda inputs, outputs: nn.LazyLinear(outputs))
    parts = build_components(compose_config(["experiment=quickstart", "model=digits_mlp"]))
    with pytest.raises(DataError, match="has no values yet"):
        check_finite(parts.model)
