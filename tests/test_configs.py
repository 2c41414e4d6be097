"""Every yaml of `conf/` composes and builds, and every implementation has the yaml of its name."""

from importlib import metadata
from pathlib import Path

import pytest
import yaml
from hydra import compose, initialize_config_module
from omegaconf import OmegaConf

import conf
from experiments.config import build, load_config, locate_target
from experiments.settings import Config
from experiments.tracker import RunInfo

CONF = Path(conf.__file__).parent
ROOT = CONF.parent
# Group -> folder of the implementations; the names are the same in both.
SEAMS = {
    "job": "experiments/jobs",
    "criterion": "compress/criteria",
    "allocator": "compress/allocators",
    "quantizer": "compress/quantizers",
    "factorizer": "compress/factorizers",
    "distillation": "compress/distillations",
    "rounding": "compress/roundings",
    "exporter": "compress/exporters",
    "penalty": "compress/penalties",
    "runtime": "compress/runtimes",
    "pattern": "compress/patterns",
    "weight_score": "compress/weight_scores",
    "sparsity_schedule": "compress/sparsity_schedules",
    "oracle": "autolabel/oracles",
    "labeler": "autolabel/labelers",
    "tracker": "experiments/trackers",
    "model": "experiments/models",
}
# What these make needs files of the data root, or an optional package: only the target and the arguments are checked.
NEEDS_FILES = {"data", "model"}
COMPONENTS = sorted(path for group in (*SEAMS, "task", "data") for path in (CONF / group).glob("*.yaml"))
GLOBALS = sorted(
    path for group in ("experiment", "debug", "sweep", "baselines") for path in (CONF / group).glob("*.yaml")
)
# A run needs a model and data; these cost nothing to compose.
ANY_RUN = ["model=lenet5", "data=digits"]


def _name(path):
    return f"{path.parent.name}/{path.stem}"


def _compose(*overrides):
    with initialize_config_module("conf", version_base="1.3"):
        return compose("config", overrides=list(overrides))


@pytest.fixture(scope="module")
def composed():
    return _compose(*ANY_RUN)


def test_the_root_composes_and_fits_its_schema(composed):
    config = load_config(composed)
    assert isinstance(config, Config)
    assert config.baselines


@pytest.mark.parametrize("path", COMPONENTS, ids=_name)
def test_a_component_is_a_target_with_its_arguments(path, composed, tmp_path):
    group = path.parent.name
    root = OmegaConf.to_container(composed, resolve=False)
    root["node"] = yaml.safe_load(path.read_text(encoding="utf-8"))
    node = OmegaConf.to_container(OmegaConf.create(root), resolve=True)["node"]
    target = locate_target(node["_target_"], group)
    if group not in ("task", "data"):
        assert target.__module__.split(".")[-1] == path.stem, "file, module and tag have one name"
    if group in NEEDS_FILES:
        return
    extra = {"run": RunInfo("test", tmp_path)} if group == "tracker" else {}
    built = build(node, group, **extra)
    if group not in ("task", "tracker"):
        assert built.name == path.stem
    if group == "tracker":
        built.finish()


@pytest.mark.parametrize("path", GLOBALS, ids=_name)
def test_a_selection_composes(path):
    if path.parent.name == "sweep" and not _is_installed("hydra-optuna-sweeper"):
        pytest.skip("the extra 'sweep' is not installed")
    selected = f"{path.parent.name}={path.stem}"
    chosen = [selected] if path.parent.name == "experiment" else [*ANY_RUN, selected]
    load_config(_compose(*chosen))


@pytest.mark.parametrize("path", sorted((CONF / "experiment").glob("*.yaml")), ids=_name)
def test_an_experiment_carries_its_command(path):
    assert f"experiment={path.stem}" in path.read_text(encoding="utf-8")


@pytest.mark.parametrize("group", SEAMS)
def test_every_implementation_has_the_yaml_of_its_name(group):
    modules = {path.stem for path in (ROOT / SEAMS[group]).glob("*.py") if not path.stem.startswith("_")}
    assert {path.stem for path in (CONF / group).glob("*.yaml")} == modules


def test_every_yaml_belongs_to_a_known_group():
    known = {*SEAMS, "task", "data", "experiment", "debug", "sweep", "baselines", "hydra"}
    groups = {path.relative_to(CONF).parts[0] for path in CONF.rglob("*.yaml")} - {"config.yaml"}
    assert groups <= known


def _is_installed(distribution):
    try:
        metadata.version(distribution)
    except metadata.PackageNotFoundError:
        return False
    return True
