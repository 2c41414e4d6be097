"""The job that tries methods, the words it finds for them, and its page."""

import csv
import json
from dataclasses import replace

import pytest

from experiments.composition import compose_config
from experiments.config import ConfigError
from experiments.jobs.methods import MethodsJob
from experiments.method_catalogue import catalogue, cited
from experiments.method_trials import MethodRow
from experiments.methods_page import write_page
from experiments.raw_table import read_raw
from experiments.run_dir import RunDir
from experiments.tracker import RunInfo
from experiments.trackers.null import NullTracker

BASE = [
    "experiment=quickstart", "debug=fast", "model.widths=[4,8,8]", "model.hidden=16", "train.epochs=1",
    "measure.sample=8", "measure.plans=0", "compare.methods=[labeler/mac]", "finetune.epochs=1", "quantize.epochs=1",
    "budget.weight_bytes=0.3", "export.coder=zstd",
]  # fmt: skip


@pytest.fixture(scope="module")
def config():
    return compose_config(["experiment=methods"])


@pytest.mark.parametrize(
    ("text", "papers"),
    [
        ('Soft. Hinton, Vinyals, Dean 2015, "Distilling" (arXiv:1503.02531).',
         ["Hinton et al. 2015, arXiv:1503.02531"]),
        ('As Hassibi and Stork 1992, "Optimal Brain Surgeon" (NIPS), and (Li et al. 2016,\n"TWN", arXiv:1605.04711).',
         ["Hassibi and Stork 1992, NIPS", "Li et al. 2016, arXiv:1605.04711"]),
        ("It is LSQ (Esser et al. 2020, arXiv:1902.08153), see Esser et al. 2020.",
         ["Esser et al. 2020, arXiv:1902.08153"]),
        ("No paper since 1992.", []),
    ],
)  # fmt: skip
def test_papers_are_read_from_docstrings(text, papers):
    assert cited(text) == tuple(papers)


def test_a_configuration_is_composed_within_another(config):
    assert config.name == "methods"
    assert compose_config(["experiment=quickstart", "seed=3"]).seed == 3
    with pytest.raises(ConfigError, match="no 'penalty/l7'"):
        compose_config(["experiment=quickstart", "penalty=l7"])


def test_unknown_methods_are_refused(config):
    with pytest.raises(ConfigError, match=r"job\.only.*penalty=l7"):
        MethodsJob(only=["penalty=l7"]).check(config)
    with pytest.raises(ConfigError, match=r"job\.without.*penalty=l7"):
        MethodsJob(without=["penalty=l7"]).check(config)
    with pytest.raises(ConfigError, match=r"job\.further.*penalty=l7"):
        MethodsJob(further={"penalty=l7": []}).check(config)
    MethodsJob(only=["penalty=l1 penalty.strength=1e-3"]).check(config)


def test_some_methods_are_left_out_and_others_asked_for_in_other_words(config):
    job = MethodsJob(BASE, without=["penalty=bn_l1"], further={"pattern=block": ["sparsify.density=0.1"]})
    everything = [method.name for method in catalogue()]
    assert [trial.name for trial in job.trials] == ["", *(name for name in everything if name != "penalty=bn_l1")]
    some = ("", "pattern=block", "pattern=n_of_m")
    told = {trial.name: compose_config(job._overrides(config, trial)) for trial in job.trials if trial.name in some}
    assert set(told) == set(some)
    assert [name for name, run in told.items() if run.sparsify.density == 0.1] == ["pattern=block"]


def test_a_killed_job_goes_on_with_the_next_method(config, tmp_path, caplog):
    tracker = NullTracker(RunInfo("methods", tmp_path))

    def run(*only):
        caplog.clear()
        with RunDir(tmp_path) as run_dir, caplog.at_level("INFO", "experiments.run_dir"):
            told = MethodsJob(BASE, only).run(config, run_dir, tracker)["methods"]
        done = [r.getMessage() for r in caplog.records if "already done" in r.getMessage()]
        return told, read_raw(tmp_path / "methods.csv", MethodRow), done

    _, first, done = run("pattern=n_of_m")
    assert not done
    told, rows, done = run("pattern=n_of_m", "quantize.scheme=binary")
    assert {"stage default: already done, skipped", "stage pattern=n_of_m: already done, skipped"} <= set(done)
    assert rows[:2] == first
    assert told == {row.method or "base": pytest.approx(row.metric, rel=1e-5) for row in rows}
    base, sparse, binary = rows
    with (tmp_path / "methods.layers.csv").open() as file:
        layers = list(csv.DictReader(file))
    stored = {row.method: {line["layer"]: int(line["bits"]) for line in layers if line["method"] == row.method}
              for row in rows}  # fmt: skip
    assert {len(own) for own in stored.values()} == {5}
    assert set(stored[binary.method].values()) == {1}
    assert sum(int(line["coded_bytes"]) for line in layers if line["method"] == sparse.method) < sparse.file_bytes
    assert sparse.density < 0.7 < base.density
    assert binary.file_bytes < base.file_bytes
    assert {row.dense for row in rows} == {base.dense}
    assert sparse.command.endswith("'export.formats=[]' pattern=n_of_m")
    assert json.loads(sparse.versions)["torch"]
    assert not (tmp_path / "trial").exists()


def test_the_page_tells_what_is_known():
    plain = write_page()
    assert all(f"| `{method.name}` |" in plain for method in catalogue())
    assert "| bytes |" not in plain
    row = MethodRow("", 0, "accuracy_percent", 99.0, 98.5, 98.25, 0.1, 1e6, 1.0, 2e4, 23464, 1.0, "", "", "{}")
    page = write_page(
        [row, replace(row, method="penalty=l1 penalty.strength=1e-3", metric=97.5, density=0.875)], "`the job`"
    )
    assert "comes to 98.25 % in 1,000,000 MACs and 23,464 bytes" in page
    (line,) = (line for line in page.splitlines() if line.startswith("| `penalty=l1 penalty.strength=1e-3` |"))
    assert line.endswith("| 98.50 | 97.50 | 1,000,000 | 0.88 | 23,464 |")
    (line,) = (line for line in page.splitlines() if line.startswith("| `penalty=bn_l1` |"))
    assert line.endswith("|  |  |  |  |  |")
    page = write_page(
        [row], "`the job`", [replace(row, density=0.1), replace(row, method="penalty=bn_l1")], "`its own`"
    )
    assert "(`its own`, Intel Xeon): one dense network of 99.00 %" in " ".join(page.split())
    (line,) = (line for line in page.splitlines() if line.startswith("| `penalty=bn_l1` |"))
    assert line.endswith("|  |  |  |  |  | 98.50 | 98.25 | 1.00 | 23,464 |")
