"""What is refused in the first second, and what a comparison compares."""

import contextlib
import dataclasses
import functools
import logging
import re
import warnings

import pytest
from hydra import compose, initialize_config_module
from omegaconf import OmegaConf

from autolabel.conformal import CalibrationWarning
from compress.latency_table import LatencyTable
from compress.layer_choice import LayerChoice
from experiments import latencies
from experiments.compared_methods import methods_of
from experiments.components import build_components
from experiments.config import ConfigError, load_config
from experiments.preflight import check_settings
from experiments.run_dir import RunDir
from experiments.run_files import read_run
from experiments.settings import CompareSettings, Config
from experiments.stage_settings import stage_settings
from experiments.stages import Experiment
from experiments.tracker import RunInfo
from experiments.trackers.jsonl import JSONLTracker
from experiments.trackers.null import NullTracker
from experiments.warning_log import collected_warnings


@functools.cache
def composed(*choices):
    """What these choices of files come to: composing takes longer than what is tested."""
    with initialize_config_module("conf", version_base="1.3"):
        return compose("config", overrides=["experiment=quickstart", "debug=fast", *choices])


def configured(*overrides):
    values = [override for override in overrides if re.match(r"[a-z_]+\.[a-z_.]+=", override)]
    choices = [override for override in overrides if override not in values]
    config = load_config(OmegaConf.merge(composed(*choices), OmegaConf.from_dotlist(values)))
    return config, build_components(config)


def names(*overrides):
    return [method.name for method in methods_of(*configured(*overrides))]


@pytest.mark.parametrize("earlier", [False, True])
@pytest.mark.parametrize(
    ("overrides", "searched", "labels"),
    [
        ((), True, True),
        (("budget.macs=null", "budget.weight_bytes=null", "budget.coded_bytes=0.1"), False, True),
        (("constraints.round_to=8",), False, True),
        (("measure.sample=0",), True, False),
    ],
)
def test_of_the_default_methods_those_take_part_that_suit_the_run(earlier, overrides, searched, labels):
    # Those of an earlier version too: its folders hold them by name.
    given = [name for name in CompareSettings().methods if not (earlier and name == "refit_loss/search")]
    found = names(f"compare.methods=[{','.join(given)}]", *overrides)
    assert ("plans/search" in found) == searched
    assert ("refit_loss/search" in found) == (searched and not earlier)
    assert ("labeler/mac" in found) == labels
    assert "taylor/mac" in found


@pytest.mark.parametrize(
    ("override", "message"),
    [
        ("compare.methods=[]", "compare.methods must name at least one"),
        ("compare.methods=[labeller]", "no scores are called 'labeller'"),
        ("compare.methods=[labeler/cost]", "must end in one of"),
        ("compare.methods=[plans/mac]", "plans are searched as"),
        ("compare.methods=[plans/race] finetune.epochs=0 compare.finetune_epochs=0", "'plans/race' needs compare.fine"),
        ("compare.methods=[fisher/search]", "plans are searched as"),
        (
            "compare.methods=[plans/search] budget.macs=null quantize.granularity=tensor",
            "and budget.macs; or budget.weight_bytes alone",
        ),
        ("compare.methods=[plans/search] quantize.enabled=false", "alone where it chooses no formats"),
        ("compare.methods=[plans/race@1]", "takes no @"),
        ("compare.methods=[refit_loss/race]", "'plans/search', 'refit_loss/search' or 'plans/race'. Got"),
        (
            "compare.methods=[plans/race,labeler/knapsack] compare.formats_for=[knapsack] budget.macs=null "
            "budget.weight_bytes=null budget.coded_bytes=0.1",
            "no other bound with either there",
        ),
        ("compare.methods=[plans/search] constraints.round_to=8", "a search of plans needs constraints.round_to=1"),
        ("compare.search_plans=1 compare.methods=[plans/search]", "compare.search_plans must be 0, or at least 2"),
        ("compare.search_plans=8", "at least 2 where 'plans/search', 'refit_loss/search' or"),
        ("compare.finetune_methods=[fisher]", "compare.finetune_methods: 'fisher' is not compared"),
        ("compare.choose_after=finetuned", "compare.choose_after must be one of"),
        ("compare.choose_after=fine_tuned", "needs every method fine-tuned"),
        (
            "compare.choose_after=tried compare.trial_steps=9 compare.finetune_epochs=1 "
            "compare.finetune_methods=[random]",
            "needs all methods fine-tuned before, or none",
        ),
        ("front=[0.5,0]", "front must be numbers above 0. Got [0.5, 0.0]"),
        ("front=[inf]", "front must be numbers above 0"),
        ("compare.trial_steps=-1", "compare.trial_steps must be at least 0"),
        ("compare.methods=[labeler/knapsack@none]", "must end in @ and a number above 0"),
        ("compare.methods=[second_order@0.1]", "needs damages of formats that add up"),
        ("compare.methods=[labeler/mac@0.1] quantize.joint_plans=10", "needs damages of formats that add up"),
        ("compare.methods=[fisher/bits] quantize.enabled=false", "has nothing to choose"),
        ("compare.methods=[fisher/uniform_bits] quantize.enabled=false", "has nothing to choose"),
        (
            "compare.methods=[fisher/bits] compare.formats_for=[knapsack]",
            "'fisher/bits' has nothing to choose",
        ),
        ("compare.methods=[fisher/masks]", "'fisher/masks' needs quantize.densities below 1"),
        ("compare.methods=[fisher/unmasked]", "'fisher/unmasked' needs quantize.densities below 1"),
        ("compare.methods=[fisher/masks] quantize.densities=[]", "'fisher/masks' needs quantize.densities below 1"),
        ("compare.methods=[fisher/widths] quantize.bits=[32]", "'fisher/widths' needs quantize.bits of 8 at most"),
        ("compare.formats_for=[taylor]", "compare.formats_for: 'taylor' is not one of"),
        ("compare.formats_for=[knapsack] quantize.enabled=false", "it needs quantize.enabled"),
        ("compare.methods=[labeler/mac@0.1] compare.formats_for=[bits]", "needs damages of formats that add up"),
        ("factorizer=spatial", "factorizer must be null without quantize.enabled and quantize.ranks. Got 'spatial'"),
        (
            "factorizer=spatial quantize.ranks=[0.5] oracles.layer_choice.factorizer=null",
            "oracles.layer_choice.factorizer must be the run's, 'spatial'. Got 'channel'",
        ),
        ("device=cuba", "device must be a torch device that is here"),
        ("measure.sampling=all", "measure.sampling must be out of"),
        ("measure.images=0", "measure.images must be at least 1"),
        ("measure.sample=-1", "measure.sample must be at least 0"),
        ("measure.sample=0", "learns from measured removals, of which measure.sample=0 has none. Leave it out"),
        ("measure.sample=0 measure.sampling=active compare.methods=[taylor]", "measure.sampling must be 'uniform' or"),
        ("measure.sample=0 compare.methods=[taylor] front=[2.0]", "front must be empty with measure.sample=0"),
        ("measure.sampling=greedy", "measure.sampling must be out of"),
        ("export.tolerance=-1", "export.tolerance must be at least 0"),
        ("export.coder=huffman", "export.coder must be out of"),
        ("measure.plans=-1", "measure.plans must be"),
        ("quantize.joint_plans=5", "quantize.joint_plans must be 0, or at least 10"),
        ("recovery.steps=[bn]", "recovery.steps must be out of"),
        ("recovery.layers=all", "recovery.layers must be out of"),
        ("quantize.bits=[9]", "quantize.bits must be out of"),
        ("quantize.bits=[8,1]", "quantize.scheme=binary stores all layers of few bits in it. Got [8, 1]"),
        ("quantize.bits=[8,1] quantize.granularity=tensor penalty=coded_bytes", "2 or more with penalty=coded_bytes"),
        (
            "quantize.bits=[1] quantize.scheme=affine rounding=gptq",
            "null with quantize.scheme and quantize.granularity",
        ),
        ("quantize.bits=[8,1] quantize.scheme=power_of_two", "quantize.scheme=affine, codebook, or symmetric per"),
        ("quantize.activation_bits=4", "quantize.activation_bits must be out of"),
        ("quantize.activation_ranges=running", "quantize.activation_ranges must be out of"),
        ("quantize.activation_ranges=dynamic quantize.activation_bits=null", "'static' where activations stay float"),
        ("quantize.activation_ranges=dynamic quantize.trained_ranges=true", "'static' where activations stay float"),
        ("quantize.activation_ranges=dynamic quantize.scheme=ternary", "'static' where activations stay float"),
        ("export.formats=[tflite]", "export.formats must be out of"),
        ("export.latency_batches=[0]", "export.latency_batches must be at least 1"),
        ("finetune.batch_size=-4", "finetune.batch_size must be at least 1"),
        ("finetune.views=0", "finetune.views must be at least 1"),
        ("train.batch_size=0", "train.batch_size must be at least 1"),
        ("measure.batch_size=0", "measure.batch_size must be at least 1"),
        ("recovery.ridge=-1", "recovery.ridge must be at least 0"),
        ("quantize.granularity=group quantize.group_size=0", "quantize.group_size must be at least 1. Got 0"),
        ("oracles.layer_choice.scheme=affine", "oracles.layer_choice must be in the run's NumberFormat(scheme='sym"),
        ("oracle@oracles.layer_choice=repaired_layer_choice quantize.joint_plans=20", "0 with labels after a repair"),
        ("oracle@oracles.removal=repaired measure.images=64 measure.batch_size=64", "measure.images must be above"),
        ("quantize.scheme=ternary quantize.joint_plans=20", "there are several widths"),
        ("quantize.schemes=[codebook] quantize.joint_plans=20", "0 where densities, ranks or schemes are offered"),
        ("quantize.bits=[]", "quantize.bits must be a list of one number at least. Got []."),
        ("quantize.densities=[]", "quantize.densities must be a list of one number at least. Got []."),
        ("model@student=digits_mlp quantize.bits=[]", "quantize.bits must be a list of one number at least"),
        ("model@student=digits_mlp quantize.densities=[]", "quantize.densities must be a list of one number at least"),
        ("constraints.floor=2", "The 'floor' parameter of Constraints must be a float in [0, 1]. Got 2"),
        ("constraints.round_to=0", "The 'round_to' parameter of Constraints must be an int of at least 1"),
        ("quantize.group_size=-1", "quantize.group_size must be null without quantize.granularity=group"),
        ("sparsify.density=2", "sparsify.density must be in (0, 1]"),
        ("sparsify.density=0", "sparsify.density must be in (0, 1]"),
        ("sparsify.density=0.4 pattern=n_of_m", "sparsify.density must be in [0.5, 1] for the pattern '2:4'"),
        ("sparsify.floor=2", "sparsify.floor must be in [0, 1]"),
        ("sparsify.normalize=max_abs", "sparsify.normalize must be out of"),
        ("sparsify.by=criterion weight_score=wanda", "weight_score must be null with sparsify.by=criterion"),
        ("sparsify.by=labeler weight_score=wanda", "weight_score must be null with sparsify.by=labeler"),
        ("sparsify.by=labeler sparsify.normalize=max", "sparsify.normalize must be null with sparsify.by=labeler"),
        ("penalty=coded_bytes", "quantize.trained_ranges must be true with penalty=coded_bytes, unless quantize.gran"),
        (
            "penalty=coded_bytes quantize.trained_ranges=true quantize.scheme=affine",
            "quantize.scheme must be 'symmetric' with penalty=coded_bytes",
        ),
        (
            "penalty=l1 penalized=[quantize]",
            "penalized must be a list with one of ['train', 'finetune'], where penalty 'l1' acts. Got ['quantize']",
        ),
        ("penalty=l1 penalized=[train] train.epochs=0", "penalized must be a list with one of ['finetune']"),
        ("penalty=bn_l1 penalized=[]", "penalized must be a list with one of ['train', 'finetune']"),
        ("penalty=l0 train.epochs=0 finetune.epochs=0", "penalty must be null where none of the trainings it acts in"),
        ("penalty=quantization penalized=[train,finetune]", "penalized must be a list with one of ['quantize']"),
        ("penalty=quantization quantize.epochs=0", "penalty must be null where none of the trainings it acts in, ['qu"),
        ("penalty=quantization quantize.enabled=false", "is done: give one epochs. Got 'quantization'"),
        ("front=[0.5] budget.macs=null budget.weight_bytes=null", "front must be empty without a bound in budget"),
        ("recovery.data_free=true recovery.augment=true", "recovery.augment must be false with recovery.data_free"),
        ("recovery.data_free=true measure.batch_size=1", "measure.batch_size must be at least 2 with recovery.data_f"),
        ("sparsify.rounds=0", "sparsify.rounds must be at least 1"),
        ("sparsify.threshold=inf", "sparsify.threshold must be a finite number"),
        (
            "sparsify.threshold=0.1 sparsify.density=0.5",
            "sparsify.density must be null where sparsify.threshold says what stays. Got 0.5",
        ),
        ("sparsify.threshold=0.1 sparsify.update=sweep", "sparsify.update must be null with sparsify.threshold"),
        ("sparsify.threshold=0.1 sparsify.rewind=weights", "sparsify.rewind must be null with sparsify.threshold"),
        (
            "sparsify.threshold=0.1 sparsity_schedule=agp",
            "sparsity_schedule must be null or one_shot with sparsify.threshold: others are told by a density",
        ),
        ("sparsify.early=0.5", "sparsify.early must be 0.02 where sparsify.rewind is not weights"),
        ("sparsify.early=1.5", "sparsify.early must be a part of the fine-tuning in [0, 1]. Got 1.5"),
        ("sparsify.early=-0.1", "sparsify.early must be a part of the fine-tuning in [0, 1]"),
        (
            "sparsify.rewind=weights sparsify.early=0.6 finetune.patience=1",
            "sparsify.early must be at most 0.5 with finetune.patience",
        ),
        (
            "rounding=gptq quantize.scheme=affine",
            "with quantize.scheme and quantize.granularity 'affine' per 'channel'",
        ),
        ("rounding=adaround quantize.granularity=tensor", "set rounding=null, or quantize.scheme=symmetric"),
        ("rounding=nearest quantize.granularity=group quantize.group_size=8", "'symmetric' per 'group': set rounding"),
        (
            "rounding=gptq quantize.scheme=ternary quantize.trained_ranges=true",
            "rounding must be null with quantize.sch",
        ),
        ("rounding=gptq quantize.enabled=false", "rounding must be null where quantize.enabled is false"),
        ("rounding=gptq quantize.bits=[32]", "or quantize.bits are all above 8. Got 'gptq'"),
        ("sparsify.update=sweep pattern=block", "pattern must be null, unstructured or n_of_m with sparsify.update"),
        ("sparsify.update=exact pattern=channel", "which removes single weights. Got 'channel'"),
        ("sparsify.update=sweep pattern=n_of_m quantize.densities=[1.0,0.5]", "where quantize.densities are below 1"),
        ("sparsify.update=sweep pattern=n_of_m sparsify.density=0.75", "sparsify.density must be null or 0.5 with"),
        ("sparsify.update=solve weight_score=wanda", "weight_score must be null with sparsify.update"),
        ("sparsify.update=sweep sparsify.by=labeler", "sparsify.by must be 'score' with sparsify.update"),
        ("sparsify.update=sweep sparsify.normalize=max", "sparsify.normalize must be null with sparsify.update"),
        ("sparsify.update=sweep sparsity_schedule=agp", "sparsity_schedule must be null with sparsify.update"),
        (
            "sparsify.update=sweep sparsity_schedule=one_shot sparsity_schedule.at=0.5",
            "before the training. Got 'one_s",
        ),
        ("sparsify.update=sweep sparsify.rewind=weights", "sparsify.rewind must be null with sparsify.update"),
        ("sparsify.update=sweep sparsify.floor=0.3", "sparsify.floor must be at most 0.25 with sparsify.update"),
        ("finetune.optimizer=lion", "finetune: The 'optimizer' parameter"),
        ("train.lr=0", "train: The 'lr' parameter"),
        ("~oracles.removal", "oracles must be a group that holds"),
        ("oracle@oracles.removal=layer_choice", "oracles.removal must be an oracle that measures units of kind"),
        ("oracle@oracles.layer_choice=removal", "oracles.layer_choice must be an oracle that measures units of kind"),
    ],
)
def test_a_setting_that_no_stage_could_use_is_refused(override, message):
    with pytest.raises(ConfigError) as caught:
        check_settings(*configured(*override.split()))
    assert message in str(caught.value)


@pytest.mark.parametrize(
    "override",
    [
        "sparsify.threshold=0.1 sparsity_schedule=one_shot pattern=block",
        "sparsify.rewind=weights sparsify.early=0.5 finetune.patience=1",
        "sparsify.density=0.5 pattern=n_of_m",
        "quantize.granularity=group",
        "quantize.granularity=group quantize.group_size=8",
        "sparsify.by=labeler sparsify.threshold=0.1",
        "sparsify.threshold=0.1 sparsify.scope=layer",
        "penalty=coded_bytes quantize.trained_ranges=true train.epochs=0",
        "penalty=coded_bytes quantize.granularity=tensor penalized=[quantize]",
        "penalty=l1 train.epochs=0",
        "penalty=l1 finetune.epochs=0 quantize.enabled=false",
        "penalty=quantization penalized=[quantize]",
        "front=[0.5] budget.weight_bytes=null",
        "rounding=gptq quantize.bits=[32,8]",
        "rounding=gptq quantize.trained_ranges=true",
        "sparsify.update=sweep",
        "sparsify.update=sweep pattern=n_of_m quantize.densities=[1.0]",
        "sparsify.update=exact pattern=unstructured sparsity_schedule=one_shot quantize.densities=[1.0,0.5]",
    ],
)
def test_a_setting_that_a_stage_can_use_passes(override):
    check_settings(*configured(*override.split()))


def test_the_configured_allocator_and_criterion_take_part():
    assert names() == ["labeler/mac", "random", "magnitude/mac", "labeler/knapsack", "criterion/mac"]
    assert names("allocator=greedy", "criterion=wanda")[3:] == ["criterion/mac"]
    assert names("compare.methods=[second_order]", "allocator=threshold") == ["second_order"]
    assert names("compare.methods=[criterion]", "criterion=taylor") == ["criterion"]
    healed = ["labeler/knapsack@0.1", "criterion/bits"]
    assert names(f"compare.methods=[{','.join(healed)}]", "allocator=knapsack") == healed
    assert names("compare.methods=[random,random]", "criterion=random") == ["random"]


@pytest.mark.parametrize("bounds", [[], ["budget.coded_bytes=0.5", "quantize.ranks=[0.5]"]])
def test_data_without_statistics_to_make_it_from_is_refused_before_any_training(bounds, tmp_path):
    overrides = ("model=digits_mlp", "recovery.data_free=true", *bounds)
    config, _ = configured(*overrides)
    with pytest.raises(ConfigError, match=r"recovery\.data_free: The model has no batch norm with stored statistics"):
        Experiment(config, RunDir(tmp_path), NullTracker(RunInfo("test", tmp_path))).run()
    assert not (tmp_path / "dense").exists()


def test_layers_are_timed_anew_for_another_network_format_or_runtime(tmp_path, monkeypatch):
    measured = []

    def clock(structure, choices, *, threads, **settings):
        measured.append(threads)
        times = {layer.name: float(len(measured)) for layer in structure.traced.layers()}
        every = {choice.name: times for choice in (LayerChoice(), *choices)}
        return LatencyTable(every, every, {"threads": threads})

    def own(*overrides):
        config, _ = configured("budget.latency_ms=0.9", "budget.weight_bytes=null", *overrides)
        experiment = Experiment(config, RunDir(tmp_path), NullTracker(RunInfo("test", tmp_path)))
        found = []
        monkeypatch.setattr(experiment, "_run_stage", lambda name, work, **files: found.extend(
            [name] * ("latencies.json" in files.get("inputs", []))))  # fmt: skip
        for work in ("load_dense", "renew_manifest"):
            monkeypatch.setattr(experiment, work, lambda: None)
        experiment.run()
        assert found == ["compare"]
        return float(experiment.costs.latency_ms["8bit"].max())

    monkeypatch.setattr(latencies, "measure_latencies", clock)
    assert [own(), own()] == [1, 1]
    assert own("model.widths=[8,16,16]") == own("model.widths=[8,16,16]") == 2
    assert own("runtime.threads=2") == 3
    assert measured == [1, 1, 2]
    assert own("quantize.bits=[8,5,3]", "runtime.threads=2") == 4
    assert own("quantize.scheme=affine", "quantize.bits=[8,5,3]", "runtime.threads=2") == 5
    for text in ("{", (tmp_path / "latencies.json").read_text().replace("measured_for", "told")):
        (tmp_path / "latencies.json").write_text(text)
        last = own()
    assert (last, own()) == (7, 7)


def test_every_part_of_the_configuration_belongs_to_a_stage(tmp_path, monkeypatch):
    config, _ = configured("compare.finetune_epochs=1", "front=[1.5]")
    info = RunInfo("test", tmp_path)
    experiment = Experiment(config, RunDir(tmp_path), NullTracker(info))
    seen = set()
    monkeypatch.setattr(experiment, "_run_stage", lambda name, work, **files: seen.update(files.get("settings", {})))
    for work in ("load_dense", "renew_manifest"):
        monkeypatch.setattr(experiment, work, lambda: None)
    experiment.run()
    # What says how a run is told, not what it does; and the job, whose stages these are.
    free = {"job", "name", "traceback", "objective", "tracker"}
    assert seen == {field.name for field in dataclasses.fields(Config)} - free


def test_the_curves_of_a_run_are_those_of_one_configuration(tmp_path):
    def curves(epochs, *losses, stop=False):
        config, _ = configured()

        def work():
            for name, step, loss in losses:
                experiment.log_as(name)({"loss": loss}, step)
            if stop:
                raise KeyboardInterrupt
            (tmp_path / "result.json").write_text("{}")

        with contextlib.suppress(KeyboardInterrupt), RunDir(tmp_path) as run_dir:
            experiment = Experiment(config, run_dir, JSONLTracker(RunInfo("test", tmp_path)))
            experiment._told = []
            experiment._run_stage("dense", lambda: experiment.log_as("train")({"loss": 9.0}, 0), outputs=[])
            experiment._run_stage("compress", work, outputs=["result.json"], settings={"epochs": epochs})
        experiment.tracker.finish()
        return dict(read_run(tmp_path).curves)

    dense = {"train/loss": [(0, 9.0)]}
    curves(2, ("finetune", 0, 3.0), ("finetune", 1, 2.0), stop=True)
    # It went on from the end of the first epoch.
    resumed = curves(2, ("finetune", 1, 2.0), ("quantize", 0, 1.0))
    assert resumed == dense | {"finetune/loss": [(0, 3.0), (1, 2.0)], "quantize/loss": [(0, 1.0)]}
    assert curves(2) == resumed
    assert curves(1, ("finetune", 0, 4.0)) == dense | {"finetune/loss": [(0, 4.0)]}


def test_settings_that_came_later_say_nothing_until_they_are_set(tmp_path):
    config, _ = configured()
    experiment = Experiment(config, RunDir(tmp_path), NullTracker(RunInfo("test", tmp_path)))
    before = {"density", "scope", "floor", "normalize", "skip", "by", "update", "rewind", "rounds"}
    assert set(experiment._settings("sparsify")["sparsify"]) == before
    assert "formats_for" not in experiment._settings("compare")["compare"]
    config.sparsify.threshold, config.sparsify.early = 0.0, 0.1
    assert set(experiment._settings("sparsify")["sparsify"]) == before | {"threshold", "early"}


def test_the_default_number_format_says_nothing_to_the_stages_that_measure_in_it(tmp_path):
    def oracle(*overrides):
        config, _ = configured(*overrides)
        return stage_settings(config, ["oracles"])["oracles"]["layer_choice"]

    before = {"_target_", "bits", "densities", "ranks", "quantizer", "activation_aware"}
    assert set(oracle()) == before
    assert set(oracle("quantize.ranks=[0.5]")) == before | {"factorizer"}
    assert set(oracle("quantize.schemes=[codebook]")) == before | {"schemes"}
    assert "schemes" not in stage_settings(configured()[0], ["quantize"])["quantize"]
    assert set(oracle("quantize.granularity=tensor")) == before | {"granularity"}
    grouped = oracle("quantize.scheme=codebook", "quantize.granularity=group", "quantize.group_size=8")
    assert {name: value for name, value in grouped.items() if name not in before} == {
        "scheme": "codebook", "granularity": "group", "group_size": 8,
    }  # fmt: skip


def test_warnings_of_the_packages_are_collected_once():
    told = []
    with collected_warnings(told):
        for _ in range(2):
            logging.getLogger("compress.recovery").warning("nothing is %s", "repaired")
            with pytest.warns(UserWarning, match="no use"):
                warnings.warn("of no use", UserWarning, stacklevel=1)
        logging.getLogger("compress.recovery").info("fine")
        logging.getLogger("torch").warning("another's")
    logging.getLogger("compress.recovery").warning("later")
    assert told == ["nothing is repaired"]


def test_warnings_are_collected_and_shown(monkeypatch):
    told, shown = [], []
    monkeypatch.setattr(warnings, "showwarning", lambda message, *rest: shown.append(str(message)))
    with warnings.catch_warnings():
        warnings.simplefilter("always")
        with collected_warnings(told):
            for category in (UserWarning, CalibrationWarning, DeprecationWarning, UserWarning):
                warnings.warn(category.__name__, category, stacklevel=1)
    assert told == ["UserWarning", "CalibrationWarning"]
    assert shown == ["UserWarning", "CalibrationWarning", "DeprecationWarning", "UserWarning"]


def test_one_width_has_nothing_to_learn_together():
    with pytest.raises(ConfigError, match="several widths"):
        check_settings(*configured("quantize.bits=[8]", "quantize.joint_plans=20"))
