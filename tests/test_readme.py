"""What the README shows works as it stands there, and what it points to exists."""

import re
import runpy
import shlex
from pathlib import Path

import pytest
from hydra import compose, initialize_config_module

from compress import ClassificationTask, analyze, load_artifact
from compress.criterion import score_units
from compress.statistics import collect_statistics
from experiments import config
from experiments.components import build_components
from experiments.config import load_config
from experiments.data import make_batches

ROOT = Path(__file__).parents[1]
README = (ROOT / "README.md").read_text(encoding="utf-8")


def blocks(language):
    return re.findall(rf"^```{language}\n(.*?)^```$", README, re.MULTILINE | re.DOTALL)


def command_lines():
    return [
        line.removeprefix("$ ").partition("  #")[0].strip()
        for block in blocks("console")
        for line in block.splitlines()
    ]


RUNS = [line for line in command_lines() if "experiments.run" in line or "autolabel " in line]
OWN = [line for line in RUNS if "mine." in line]


def test_the_first_screen_is_whole():
    first = README.partition("## ")[0]
    assert "docs/overview.svg" in first
    assert "make demo" in first
    assert "make test" in first
    (python,) = re.findall(r"```python\n(.*?)```", first, re.DOTALL)
    assert len([line for line in python.splitlines() if line.strip()]) <= 10
    assert "autolabel experiment=" in first


@pytest.mark.parametrize("number", range(2))
def test_the_python_of_the_readme_runs(number, tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    code = re.sub(r"epochs=\d+", "epochs=1", blocks("python")[number])
    code = re.sub(r"budget=compress\.Budget\(", "sample=16, epochs=1, \\g<0>", code)
    (tmp_path / "example.py").write_text(code)
    found = runpy.run_path("example.py")
    small = load_artifact("out", found["model"])
    example = found["data"].example_inputs() if "data" in found else found["x"][:2]
    assert small(example).isfinite().all()
    assert found["result"].method in found["result"].validation


def test_its_own_package_gives_model_data_and_criterion(tmp_path, monkeypatch):
    (tmp_path / "mine.py").write_text(blocks("python")[2])
    monkeypatch.syspath_prepend(tmp_path)
    (line,) = OWN
    (export,) = [words for words in command_lines() if words.startswith("export ")]
    assert f"{config.OWN_PACKAGES}=mine" in shlex.split(export)
    monkeypatch.setattr(config, "OWN", ("mine",))
    with initialize_config_module("conf", version_base="1.3"):
        parts = build_components(load_config(compose("config", overrides=shlex.split(line)[1:])))
    data = parts.data
    structure = analyze(parts.model.eval(), data.example_inputs())
    statistics = collect_statistics(
        structure, ClassificationTask(), make_batches(data.calibration, 64), {"activations"}
    )
    assert parts.criterion.score(statistics).shape == (structure.n_removable,)
    assert score_units(structure, parts.criterion, statistics).scale == "order"


@pytest.mark.parametrize("line", [line for line in RUNS if line not in OWN])
def test_its_command_lines_compose(line):
    words = shlex.split(line)
    overrides = [word for word in words if "=" in word and not word.startswith("hydra")]
    # A sweep composes one of its runs.
    overrides = [word.partition("=")[0] + "=" + word.partition("=")[2].partition(",")[0] for word in overrides]
    with initialize_config_module("conf", version_base="1.3"):
        config = load_config(compose("config", overrides=[o for o in overrides if o != "sweep=optuna"]))
    assert config.name == "quickstart"


def test_its_make_targets_exist():
    targets = set(re.findall(r"^([a-z]+):", (ROOT / "Makefile").read_text(), re.MULTILINE))
    named = {line.split()[1] for line in command_lines() if line.startswith("make ")}
    assert named >= {"demo", "test"}
    assert named <= targets


def test_the_files_it_names_exist():
    named = set(re.findall(r"\]\(([\w/.]+)\)", README)) | set(re.findall(r"(?:scripts|docs|conf)/[\w/.]*\w", README))
    assert named
    for name in named:
        assert (ROOT / name).exists(), name
    for module in re.findall(r"python -m experiments\.(\w+)", README):
        assert (ROOT / "experiments" / f"{module}.py").exists(), module
    for experiment in re.findall(r"experiment=(\w+)", README):
        assert (ROOT / "conf" / "experiment" / f"{experiment}.yaml").exists(), experiment


def test_its_table_names_every_experiment():
    for path in (ROOT / "conf" / "experiment").glob("*.yaml"):
        assert f"`{path.stem}`" in README


def test_the_generated_pages_are_up_to_date():
    pages = runpy.run_path(str(ROOT / "scripts" / "write_docs.py"), run_name="write_docs")
    for name in ("features", "criteria", "methods"):
        told = (ROOT / "docs" / f"{name}.md").read_text(encoding="utf-8")
        assert told == pages[name](), f"docs/{name}.md is old. Run: python scripts/write_docs.py"


def test_pages_of_results_are_those_of_their_raw_tables():
    script = runpy.run_path(str(ROOT / "scripts" / "write_results.py"), run_name="write_results")
    pages = {name: page for name, page in script["pages"].items() if (ROOT / "results" / name / "raw.csv").exists()}
    assert pages
    for name, page in pages.items():
        told = (ROOT / "docs" / f"{name}.md").read_text(encoding="utf-8")
        assert told == page(), f"docs/{name}.md is old. Run: python scripts/write_results.py"
