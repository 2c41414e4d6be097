"""The guarded configuration: what is refused, and that the message names the key."""

import sys
import types
from dataclasses import fields, is_dataclass

import pytest
from omegaconf import DictConfig, ListConfig, OmegaConf

from compress.budget import Budget
from compress.task import ClassificationTask
from experiments import config
from experiments.config import ConfigError, build, folder_name, load_config, locate_target
from experiments.settings import Config

NODE = {"_target_": "compress.task.ClassificationTask"}
COMPLETE = {
    name: NODE for name in OmegaConf.structured(Config) if OmegaConf.is_missing(OmegaConf.structured(Config), name)
}


@pytest.mark.parametrize(
    "target",
    [
        "compress.plan.json.loads",  # passes a test of the prefix alone
        "compress.plan.Path",
        "compress.files.write_json",  # ours, but a function that writes where it is told
        "compress.files.os.system",
        "compress.plan.CompressionPlan.load",
        "os.system",
        "builtins.eval",
        "torch.load",
        "compress.__class__",
        "compress.files.__builtins__",
        "compress",
        "compress..Budget",
        "",
    ],
)
def test_targets_outside_the_project_are_refused(target):
    with pytest.raises(ConfigError, match=r"^'labeler\._target_'"):
        locate_target(target, "labeler")


def test_a_forged_module_name_is_refused(monkeypatch):
    module = types.ModuleType("compress.forged")
    forged = type("Budget", (), {"__module__": "compress.budget"})
    module.Budget = forged
    monkeypatch.setitem(sys.modules, "compress.forged", module)
    with pytest.raises(ConfigError, match="defined in this project"):
        locate_target("compress.forged.Budget", "budget")


def test_a_class_reached_through_a_re_export_is_found(monkeypatch):
    module = types.ModuleType("compress.public")
    module.Budget = Budget
    monkeypatch.setitem(sys.modules, "compress.public", module)
    assert locate_target("compress.public.Budget", "budget") is Budget


def test_within_confines_a_target_to_its_folder():
    with pytest.raises(ConfigError, match=r"defined in autolabel\.labelers"):
        build(NODE, "labeler", within="autolabel.labelers")
    # A folder whose name only begins alike is another folder.
    with pytest.raises(ConfigError, match=r"defined in compress\.tas\."):
        build(NODE, "task", within="compress.tas")
    assert isinstance(build(NODE, "task", within="compress.task"), ClassificationTask)


def test_a_package_of_the_users_own_is_reached_only_if_the_environment_names_it(tmp_path, monkeypatch):
    (tmp_path / "my_nets.py").write_text("from json import loads\ndef make(width=2):\n    return [0.0] * width\n")
    monkeypatch.syspath_prepend(tmp_path)
    node = {"_target_": "my_nets.make", "width": 3}
    with pytest.raises(ConfigError, match=r"set AUTOLABEL_PACKAGES=my_nets in the environment"):
        build(node, "model", within="experiments.models")
    # Later the environment may be what a configuration made of it.
    monkeypatch.setenv("AUTOLABEL_PACKAGES", "my_nets")
    with pytest.raises(ConfigError, match="must lie in"):
        build(node, "model", within="experiments.models")
    monkeypatch.setattr(config, "OWN", ("another", "my_nets"))
    assert build(node, "model", within="experiments.models") == [0.0] * 3
    with pytest.raises(ConfigError, match="has no such parameter"):
        build(node | {"depth": 1}, "model")
    # What such a module only imports is still somebody else's, and all others stay out of reach.
    with pytest.raises(ConfigError, match="defined in this project"):
        locate_target("my_nets.loads", "model")
    with pytest.raises(ConfigError, match="must lie in"):
        locate_target("json.loads", "model")


def test_misspelt_target_gets_a_suggestion():
    with pytest.raises(ConfigError, match=r"has no 'Budgit'\. Did you mean 'Budget'"):
        locate_target("compress.budget.Budgit", "budget")


@pytest.mark.parametrize(
    ("extra", "message"),
    [
        ({"mac": 1}, r"'budget\.mac': Budget has no such parameter\. Did you mean 'macs'"),
        ({"_partial_": True}, r"'budget\._partial_'"),
        ({"_args_": [1]}, r"'budget\._args_'"),
        ({"_recursive_": False}, r"'budget\._recursive_'"),
        ({"_convert_": "all"}, r"'budget\._convert_'"),
        ({"macs": 1.5}, r"'budget' cannot be built from compress\.budget\.Budget: The 'macs' parameter"),
        ({"macs": {"_target_": "os.system"}}, r"'budget\.macs\._target_'"),
        ({"macs": [{"_target_": "os.system"}]}, r"'budget\.macs\[0\]\._target_'"),
        ({"macs": {"a": {"_target_": "os.system"}}}, r"'budget\.macs\.a\._target_'"),
    ],
)
def test_build_names_the_key_it_refuses(extra, message):
    with pytest.raises(ConfigError, match=message):
        build({"_target_": "compress.budget.Budget", **extra}, "budget")


@pytest.mark.parametrize("node", [None, 3, {}, {"_target_": None}, {"_target_": 3}, []])
def test_build_refuses_what_names_no_object(node):
    with pytest.raises(ConfigError, match="'labeler' must name an object"):
        build(node, "labeler")


@pytest.mark.parametrize("value", ["x", 1, ["x"], {"name": "x"}])
def test_build_refuses_plain_values_for_what_is_an_object(value):
    node = {"_target_": "compress.penalties.group_lasso.GroupLassoPenalty", "structure": value}
    with pytest.raises(ConfigError, match=r"'penalty\.structure' must be null or a Structure, which no plain value is"):
        build(node, "penalty")
    assert build({**node, "structure": None}, "penalty").structure is None
    oracle = {"_target_": "autolabel.oracles.layer_choice.LayerChoiceOracle"}
    with pytest.raises(ConfigError, match=r"'oracle\.quantizer' must be null or a Quantizer"):
        build({**oracle, "quantizer": value}, "oracle")
    quantizer = {"_target_": "compress.quantizers.mse.MseQuantizer"}
    assert build({**oracle, "quantizer": quantizer}, "oracle").quantizer.name == "mse"


def test_build_gives_objects_plain_values_and_extras(monkeypatch):
    module = types.ModuleType("compress.standin")
    exec(
        "class Standin:\n    def __init__(self, run, values, inner=None):\n"
        "        self.run, self.values, self.inner = run, values, inner\n",
        module.__dict__,
    )
    monkeypatch.setitem(sys.modules, "compress.standin", module)
    node = OmegaConf.create(
        {"_target_": "compress.standin.Standin", "values": [1, {"a": 2}], "inner": {"_target_": NODE["_target_"]}}
    )
    built = build(node, "x", run="the run")
    assert built.run == "the run"
    assert type(built.values) is list
    assert type(built.values[1]) is dict
    assert isinstance(built.inner, ClassificationTask)
    with pytest.raises(ConfigError, match=r"'x\.values' is not set: Standin needs it"):
        build({"_target_": "compress.standin.Standin"}, "x", run=0)
    with pytest.raises(ConfigError, match=r"'x\.run'"):
        build({"_target_": "compress.standin.Standin", "run": 1, "values": []}, "x", run=0)


def test_load_config_gives_plain_dataclasses():
    node = OmegaConf.merge(OmegaConf.structured(Config), COMPLETE, {"budget": {"macs": 20_000_000}, "name": "a${seed}"})
    config = load_config(node)
    assert isinstance(config, Config)
    assert config.name == "a0"
    assert config.budget.macs == 20_000_000
    assert type(config.budget.macs) is int
    _assert_plain(config)


def test_load_config_works_without_a_schema():
    saved = OmegaConf.create({**COMPLETE, "seed": 3, "finetune": {"epochs": 2}})
    config = load_config(saved)
    assert (config.seed, config.finetune.epochs, config.finetune.alpha) == (3, 2, Config().finetune.alpha)


@pytest.mark.parametrize(
    ("extra", "message"),
    [
        ({"zzz": 1}, "Unknown configuration key 'zzz'"),
        ({"alocator": 1}, "'alocator'. Did you mean 'allocator'"),
        ({"budget": {"mcas": 1}}, "'budget.mcas'. Did you mean 'budget.macs'"),
        ({"seed": "many"}, "'seed'"),
        ({"budget": {"macs": "half"}}, "'budget.macs'"),
        ({"budget": 3}, "'budget'"),
        ({"name": "${nothing}"}, "'nothing'"),
        ({"budget": None}, "'budget'"),
    ],
)
def test_load_config_refuses_unknown_keys_and_wrong_types(extra, message):
    with pytest.raises(ConfigError, match=message) as caught:
        load_config(OmegaConf.create({**COMPLETE, **extra}))
    assert "\n" not in str(caught.value)


def test_load_config_names_a_missing_value():
    with pytest.raises(ConfigError, match="'model' is not set"):
        load_config(OmegaConf.create({**COMPLETE, "model": "???"}))
    with pytest.raises(ConfigError, match=r"'labeler\.seed' is not set"):
        load_config(OmegaConf.create({**COMPLETE, "labeler": {**NODE, "seed": "???"}}))


def test_folder_names_are_short_safe_and_distinct():
    assert folder_name("seed=0,labeler=gbdt") == "seed=0,labeler=gbdt"
    assert folder_name("data.path=/a b/../c") == "data.path=_a_b_.._c"
    assert folder_name("") == "default"
    long = folder_name("a" * 500), folder_name("a" * 501)
    assert max(map(len, long)) <= 120
    assert long[0] != long[1]


def _assert_plain(value):
    assert not isinstance(value, (DictConfig, ListConfig))
    if is_dataclass(value):
        for field in fields(value):
            _assert_plain(getattr(value, field.name))
    elif isinstance(value, dict):
        for item in value.values():
            _assert_plain(item)
    elif isinstance(value, list):
        for item in value:
            _assert_plain(item)
