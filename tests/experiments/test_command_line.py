"""The command line with a stand-in for the work: what it refuses, in one line, and what runs and multiruns leave."""

import csv
import errno
import json
import logging
import os
import runpy
import subprocess
import sys
import types
from pathlib import Path

import pytest
from filelock import FileLock

from experiments import run as command
from experiments.manifest import typed_command
from experiments.reproduction import compare_runs
from experiments.run_dir import read_manifest

ROOT = Path(__file__).parents[2]

# Loaded by Python itself at the start of every process (worker processes too): components that cost nothing, and
# stages whose result is computed from the configuration.
STANDINS = '''
import sys, types

COMPONENT = """
class Standin:
    def __init__(self, width: int = 0) -> None:
        self.width = width

    def named_parameters(self):
        return iter(())
"""
STAGES = """
from compress.errors import BudgetError

def run_experiment(config, run_dir, tracker):
    macs = config.budget.macs
    if macs < 0.2:
        raise BudgetError("The 'macs' parameter of Budget cannot be met. The closest feasible budget is macs=0.2.")
    def work():
        run_dir.file("plan.json").write_text(str([macs, config.seed, config.labeler["_target_"]]))
        tracker.log_metrics({"finetune/loss": macs}, 0)
    run_dir.run_stage("plan", work, outputs=["plan.json"], settings={"macs": macs, "seed": config.seed})
    metric = {"name": "accuracy_percent", "value": 90 + macs + config.seed}
    timed = {"macs": macs, "metric": metric, "latency_ms": id(config)}
    return {"compressed": timed, "baselines": [{"value": macs, "seconds": id(config)}]}
"""

def put(name, text):
    module = types.ModuleType(name)
    exec(text, module.__dict__)
    sys.modules[name] = module

put("experiments.stages", STAGES)
for name in ("experiments.models.standin", "experiments.data.standin", "compress.criteria.standin"):
    put(name, COMPONENT)
'''
NAMES = ("experiments.stages", "experiments.models.standin", "experiments.data.standin", "compress.criteria.standin")


@pytest.fixture(scope="module")
def site(tmp_path_factory):
    """A folder with the stand-ins as `sitecustomize`, and with their configuration."""
    site = tmp_path_factory.mktemp("site")
    (site / "sitecustomize.py").write_text(STANDINS)
    targets = {"model": "experiments.models", "data": "experiments.data", "criterion": "compress.criteria"}
    for group, package in targets.items():
        (site / group).mkdir()
        (site / group / "standin.yaml").write_text(f"_target_: {package}.standin.Standin\nwidth: 1\n")
    (site / "experiment").mkdir()
    overrides = "".join(f"  - override /{group}: standin\n" for group in targets)
    (site / "experiment" / "tiny.yaml").write_text(
        f"# @package _global_\ndefaults:\n{overrides}  - override /baselines: none\nname: tiny\nthreads: 1\n"
        "compare:\n  methods: [labeler/mac]\n"
    )
    return site


@pytest.fixture
def call(site, tmp_path, monkeypatch, capsys):
    """Runs the command line in this process; gives exit status and stderr."""
    before = {name: sys.modules.get(name) for name in NAMES}
    exec(STANDINS, {"__name__": "standins"})
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(logging, "raiseExceptions", False)

    def run(*arguments, experiment=True):
        own = ["experiment=tiny", f"hydra.searchpath=[file://{site}]"] if experiment else []
        monkeypatch.setattr(sys, "argv", ["autolabel", *arguments, *own])
        status = 0
        try:
            command.main()
        except SystemExit as stop:
            status = stop.code
        return status, capsys.readouterr().err

    yield run
    for handler in list(logging.getLogger().handlers):
        if isinstance(handler, logging.FileHandler):
            logging.getLogger().removeHandler(handler)
            handler.close()
    for name, module in before.items():
        if module is None:
            del sys.modules[name]
        else:
            sys.modules[name] = module


def test_a_run_leaves_its_folder(call):
    status, err = call("hydra.run.dir=out", "seed=3", "tracker=null")
    assert (status, err) == (0, "")
    manifest = read_manifest("out")
    assert manifest["status"] == "finished"
    assert manifest["seeds"] == {"seed": 3, "seeds": []}
    assert manifest["threads"] == 1
    assert manifest["metrics"]["compressed"]["metric"]["value"] == 93.5
    assert manifest["command"].startswith("autolabel hydra.run.dir=out ")
    assert " tracker=null" in manifest["command"]
    assert manifest["config"]["tracker"]["_target_"].endswith("NullTracker")
    assert {"seed=3", "experiment=tiny"} <= set(manifest["overrides"])
    assert Path("out/.hydra/overrides.yaml").exists()
    assert "seed: 3" in Path("out/.hydra/config.yaml").read_text()
    assert "${" not in Path("out/.hydra/config.yaml").read_text()
    assert Path("out/metrics.jsonl").read_text().count("\n") == 3
    assert Path("out/run.log").exists()


def test_a_module_that_was_run_is_told_as_such(monkeypatch):
    for path, told in (("/x/experiments/run.py", "python -m experiments.run a=1"), ("/x/autolabel", "autolabel a=1")):
        monkeypatch.setattr(sys, "argv", [path, "a=1"])
        assert typed_command() == told


def test_the_default_folder_is_named_after_the_experiment(call):
    assert call()[0] == 0
    assert len(list(Path("outputs/tiny").iterdir())) == 1


def test_the_same_command_resumes(call):
    assert call("hydra.run.dir=out")[0] == 0
    before = Path("out/plan.json").stat().st_mtime_ns
    assert call("hydra.run.dir=out")[0] == 0
    assert Path("out/plan.json").stat().st_mtime_ns == before
    assert read_manifest("out")["sessions"] == 2


@pytest.mark.parametrize("refused", ["wrong", "in use"])
@pytest.mark.parametrize("own", [False, True])
def test_a_refused_command_leaves_a_finished_run_as_it_was(call, refused, own):
    def files():
        return {path: path.read_bytes() for path in Path("out").rglob("*") if path.is_file()}

    assert call("hydra.run.dir=out", "seed=3")[0] == 0
    before = files()
    assert {Path(f"out/.hydra/{name}.yaml") for name in ("config", "hydra", "overrides")} <= before.keys()
    # From the configuration in the folder itself too.
    arguments = ["-cp", "out/.hydra", "-cn", "config"] if own else []
    if refused == "wrong":
        status, err = call(*arguments, "hydra.run.dir=out", "budget.macs=0", "seed=7", experiment=not own)
        assert (status, "budget.macs must be" in err) == (2, True)
    else:
        with FileLock("out/.lock"):
            status, err = call(*arguments, "hydra.run.dir=out", "budget.macs=0.9", "seed=7", experiment=not own)
        assert (status, "is in use by another process" in err) == (1, True)
    assert files() == before


@pytest.mark.parametrize(
    ("argument", "message"),
    [
        ("labelr=ridge", "Unknown configuration key 'labelr'. Did you mean 'labeler'?"),
        ("constraints.floors={a: 0.5}", "Add it: '+constraints.floors=...'"),
        ("constraints={flor: 0.5}", "Unknown configuration key 'constraints.flor'. Did you mean 'constraints.floor'?"),
        ("budget.mcas=0.5", "Unknown configuration key 'budget.mcas'. Did you mean 'budget.macs'?"),
        ("+budget.mcas=0.5", "Unknown configuration key 'budget.mcas'. Did you mean 'budget.macs'?"),
        ("+sede=1", "Unknown configuration key 'sede'. Did you mean 'seed'?"),
        ("labeler.rondus=3", "Unknown configuration key 'labeler.rondus'. Did you mean 'labeler.rounds'?"),
        ("+labeler.rondus=3", "'labeler.rondus': GBDTLabeler has no such parameter. Did you mean 'rounds'?"),
        ("+labeler._partial_=true", "Unknown configuration key 'labeler._partial_'"),
        ("labeler=gbtd", "There is no 'labeler/gbtd'. Did you mean 'gbdt'?"),
        ("labeler.rounds=0", "The 'rounds' parameter of GBDTLabeler"),
        ("budget.macs=half", "budget.macs=half"),
        ("budget.macs=1.5", "budget.macs must be a float in (0, 1]"),
        ("criterion=null", "criterion=null is no option. Options of 'criterion': activation, apoz,"),
        ("penalty=null", "l0, l1, quantization, or ~penalty for none."),
        ("model@student=null", "resnet_cifar, or ~model@student for none."),
        ("threads=0", "threads must be at least 1. Got 0."),
        ("constraints.floor=2", "constraints.floor must be a float in [0, 1]. Got 2"),
        ("+constraints.floors={conv1: -1.0}", "constraints.floors at 'conv1' must be a float in [0, 1]"),
        ("labeler._target_=os.system", "'labeler._target_' must lie in compress, autolabel, experiments"),
        ("labeler._target_=compress.plan.json.loads", "'labeler._target_'"),
        ("labeler._target_=compress.criteria.standin.Standin", "must be defined in autolabel.labelers"),
        ("compare.methods=[taylor]", "no scores are called 'taylor'"),
        ("compare.choose_after=fine_tuned", "needs every method fine-tuned"),
        ("measure.sampling=random", "measure.sampling must be out of"),
        ("finetune.precision=int8", "finetune: The 'precision' parameter"),
        ("device=cuba", "device must be a torch device that is here"),
        ("budget.macs=0.1", "The closest feasible budget is macs=0.2."),
        ("objective=[nothing]", "a run of this job reports no number 'nothing'. Known names look like ['compressed.me"),
        (
            "objective=[dense.macs,compresed.macs]",
            "reports no number 'compresed.macs'. Did you mean 'compressed.macs'?",
        ),
        ("seed=-1", "seed must be from 0 to 2147483647. Got -1."),
        ("seeds=[0,-1]", "seeds must be from 0 to 2147483647. Got -1."),
        ("--experimental-rerun=x", "unpickles"),
        ("hydra.run.dir=file/out", "Cannot write into the run folder"),
    ],
)
def test_what_the_user_can_mend_is_one_line(call, argument, message):
    Path("file").write_text("")
    status, err = call("hydra.run.dir=out", argument) if "run.dir" not in argument else call(argument)
    # A wrong configuration, but for a folder that cannot be written.
    assert status == (1 if "run.dir" in argument else 2)
    assert message in err
    assert err.count("\n") == 1
    assert not Path("out/plan.json").exists()


def test_a_number_that_a_stage_left_out_is_no_objective(call):
    status, err = call("hydra.run.dir=out", "objective=[stages.tried]")
    assert status == 2
    assert "the run reported no number 'stages.tried'. Known names look like" in err


@pytest.mark.parametrize(
    ("place", "error", "message"),
    [
        # Python wraps what the log file's handler met; a full disk has no file name.
        ("logging.FileHandler._open", OSError(errno.EROFS, "Read-only file system", "out/run.log"),
         "Cannot write into the run folder out/run.log: Read-only file system."),
        ("hydra.core.utils.configure_log", OSError(errno.ENOSPC, "No space left on device"),
         "Cannot write into the run folder: No space left on device."),
    ],
)  # fmt: skip
def test_a_folder_that_cannot_be_written_is_one_line(call, monkeypatch, place, error, message):
    def refuse(*_, **__):
        raise error

    monkeypatch.setattr(place, refuse)
    status, err = call("hydra.run.dir=out")
    assert status == 1
    assert err == f"{message} Free space, or choose another folder with hydra.run.dir=PATH.\n"


@pytest.mark.parametrize("argument", ["hydra.run.dir=", "hydra.run.dir=''", "hydra.sweep.dir="])
def test_no_folder_is_not_the_current_one(call, argument):
    status, err = call(*["-m"] * ("sweep" in argument), argument, "seed=3")
    key = argument.split("=")[0]
    assert (status, err) == (2, f"{key} is empty. Give a folder, or leave {key}= out.\n")
    assert not list(Path().iterdir())


def test_a_wrong_component_is_refused_before_anything_is_written(call):
    assert call("hydra.run.dir=out", "labeler.rounds=0")[0] == 2
    assert not Path("out/manifest.json").exists()


def test_debug_shows_the_traceback(call):
    from compress.errors import BudgetError

    with pytest.raises(BudgetError):
        call("hydra.run.dir=out", "budget.macs=0.1", "debug=trace")
    assert read_manifest("out")["status"] == "failed"
    assert "closest feasible" in read_manifest("out")["error"]


def test_missing_model_names_the_key(call, site):
    searchpath = f"hydra.searchpath=[file://{site}]"
    status, err = call("baselines=none", "criterion=standin", "hydra.run.dir=out", searchpath, experiment=False)
    assert (status, err) == (2, "'model' is not set. Set model=..., or choose an experiment=... that does.\n")
    status, err = call("model=null", "hydra.run.dir=out")
    assert status == 2
    assert err.count("\n") == 1


def test_a_run_folder_holds_its_own_command(call):
    assert call("hydra.run.dir=out", "seed=2", "budget.macs=0.4")[0] == 0
    assert call("-cp", "out/.hydra", "-cn", "config", "hydra.run.dir=again", experiment=False)[0] == 0
    assert call("-cp", "out/.hydra", "-cn", "config", "hydra.run.dir=other", "seed=5", experiment=False)[0] == 0
    assert Path("again/plan.json").read_text() == Path("out/plan.json").read_text()
    same, other = compare_runs("out", "again"), compare_runs("out", "other")
    assert same.differences == ()
    assert same.compared == {"plans": 1, "metrics": 4}
    assert [line.split(":")[0] for line in other.differences] == ["plan.json", "compressed.metric.value"]
    status, err = call("-cp", "out/.hydra", "-cn", "config", "+zzz=1", "hydra.run.dir=x", experiment=False)
    assert status == 2
    assert "'zzz'" in err


def test_a_multirun_leaves_a_table_and_a_figure(call):
    status, _ = call("-m", "hydra.sweep.dir=sweep", "seed=0,1", "labeler=gbdt,ridge", "budget.macs=0.5,0.7")
    assert status == 0
    with open("sweep/table.csv", newline="") as file:
        rows = list(csv.DictReader(file))
    assert len(rows) == 8
    assert {row["labeler"] for row in rows} == {"gbdt", "ridge"}
    assert {float(row["compressed.metric.value"]) for row in rows} == {90.5, 90.7, 91.5, 91.7}
    assert Path("sweep/pareto.png").exists()
    assert Path("sweep/budget.macs=0.5,labeler=gbdt,seed=0/manifest.json").exists()


def test_runs_that_differ_in_what_names_leave_out_have_folders_of_their_own(call):
    status, _ = call("-m", "hydra.sweep.dir=sweep", "tracker=null,jsonl", "seed=1")
    assert status == 0
    assert {path.parent.name for path in Path("sweep").glob("*/manifest.json")} == {
        "seed=1,tracker=_null_", "seed=1,tracker=jsonl",
    }  # fmt: skip


def test_a_multirun_keeps_the_good_runs_when_one_fails(call):
    status, err = call("-m", "hydra.sweep.dir=sweep", "budget.macs=0.1,0.5")
    assert status == 2
    assert err.splitlines()[-1] == "budget.macs cannot be met. The closest feasible budget is macs=0.2."
    rows = json.loads(Path("sweep/table.json").read_text())["rows"]
    assert [row["status"] for row in rows] == ["failed", "finished"]
    assert Path("sweep/pareto.png").exists()


def test_runs_side_by_side_in_worker_processes(site, tmp_path):
    pytest.importorskip("hydra_plugins.hydra_joblib_launcher")
    command_line = [
        sys.executable, "-m", "experiments.run", "-m", "experiment=tiny", f"hydra.searchpath=[file://{site}]",
        "seed=0,1", "hydra/launcher=joblib", "hydra.launcher.n_jobs=2", "hydra.sweep.dir=sweep",
    ]  # fmt: skip
    environment = {**os.environ, "PYTHONPATH": f"{site}{os.pathsep}{ROOT}", "OMP_NUM_THREADS": "1"}
    done = subprocess.run(command_line, cwd=tmp_path, env=environment, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    rows = json.loads((tmp_path / "sweep" / "table.json").read_text())["rows"]
    assert [row["compressed.metric.value"] for row in rows] == [90.5, 91.5]
    assert (tmp_path / "sweep" / "pareto.png").exists()


@pytest.mark.filterwarnings("default")  # optuna 2 warns of its own old companions
def test_a_search_with_optuna_goes_on_where_it_stopped(call):
    pytest.importorskip("hydra_plugins.hydra_optuna_sweeper")
    for trials in (2, 4):
        status, err = call("-m", "sweep=optuna", "hydra.sweep.dir=search", "hydra.sweeper.n_trials=2")
        assert status == 0, err
        rows = json.loads(Path("search/table.json").read_text())["rows"]
        assert len(rows) == trials
    assert Path("search/study.db").exists()
    assert Path("search/pareto.png").exists()


def test_reproduction_script(call, site, tmp_path, monkeypatch, capsys):
    assert call("hydra.run.dir=out", "seed=1")[0] == 0
    monkeypatch.setenv("PYTHONPATH", str(site))
    monkeypatch.setattr(sys, "argv", ["reproduce.py", "out", "--into", "repeated"])
    with pytest.raises(SystemExit) as stop:
        runpy.run_path(str(ROOT / "scripts" / "reproduce.py"), run_name="__main__")
    told = capsys.readouterr().out
    assert stop.value.code == 0, told
    assert "1 plan files and 4 metrics: 0 differences" in told
    (tmp_path / "repeated" / "plan.json").write_text("other")
    assert compare_runs("out", "repeated").differences == ("plan.json: other content",)


def test_reproduction_refuses_what_is_no_finished_run(call, tmp_path):
    from compress.errors import ArtifactError
    from experiments.reproduction import repeat_run

    with pytest.raises(ArtifactError, match=r"manifest\.json"):
        repeat_run(tmp_path / "nothing", tmp_path / "new")
    call("hydra.run.dir=failed", "budget.macs=0.1")
    with pytest.raises(ArtifactError, match="is failed, not finished"):
        repeat_run(tmp_path / "failed", tmp_path / "new")
    call("hydra.run.dir=good")
    (tmp_path / "full").mkdir()
    (tmp_path / "full" / "file").write_text("")
    with pytest.raises(ArtifactError, match="is not empty"):
        repeat_run(tmp_path / "good", tmp_path / "full")


def test_standins_are_not_left_behind():
    assert not isinstance(sys.modules.get("experiments.models.standin"), types.ModuleType)
