"""One method after another on one dense network and one plan of it, and what each came to."""

import json
import shlex
import shutil
import time
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import torch

from compress.artifact import load_artifact
from compress.files import read_json, write_atomic
from compress.hashing import hash_values
from compress.masking import density_of
from experiments.coded_table import layers_of
from experiments.composition import compose_config
from experiments.labelling import LAYER_ROWS
from experiments.manifest import describe_code, hash_file, library_versions
from experiments.method_catalogue import CataloguedMethod
from experiments.run_dir import RunDir
from experiments.settings import Config
from experiments.shrinking import SAVED_MANIFEST
from experiments.stages import Experiment
from experiments.tracker import Tracker, to_json

# Folder of the run for rows of layers, one file for each set of choices: trials that offer the same share them.
_SHARED = "layer_rows"
# Of the run that is tried with another configuration: made after its plan, or with the plan of another method.
_AFTER_THE_PLAN = (
    "artifact", SAVED_MANIFEST, "unquantized", "checkpoint", "comparison", LAYER_ROWS, _SHARED, "wandb", "result.json",
    "packed.json", ".lock",
)  # fmt: skip


@dataclass(frozen=True)
class MethodRow:
    """What a method came to.

    Attributes:
        method: its overrides; empty for the run without any.
        seed: of the run.
        metric_name: of all metrics, which are of the test part.
        dense, fine_tuned, metric: of the dense network, before and after its weights took their format.
        loss: of the result.
        macs: of the result, for each example.
        density: part of its weights that is not zero.
        weight_bytes: of its weights, not coded.
        file_bytes: of the one file that holds all of it.
        seconds: from labels of layers, which trials share, to the file.
        command, commit, versions: what made it.
        chosen: the compared method whose plan validation took; empty where the run's plan was there before.
    """

    method: str
    seed: int
    metric_name: str
    dense: float
    fine_tuned: float
    metric: float
    loss: float
    macs: float
    density: float
    weight_bytes: float
    file_bytes: int
    seconds: float
    command: str
    commit: str
    versions: str
    chosen: str = ""


class MethodTrials:
    """A run up to its plan, and trials of methods from there on.

    Args:
        config, run_dir, tracker: of the run. What is there already stays.
    """

    def __init__(self, config: Config, run_dir: RunDir, tracker: Tracker) -> None:
        torch.use_deterministic_algorithms(True, warn_only=True)
        self.base = Experiment(config, run_dir, tracker)
        self.base.run()
        self._made = {
            "commit": str(describe_code().get("commit", "")), "versions": json.dumps(library_versions()),
        }  # fmt: skip

    def run(self, method: CataloguedMethod, config: Config, folder: Path) -> Experiment:
        """The run that the first would have been with `config`, from its plan to the packed file, in a new folder.

        The dense network and what was measured of it are the same; the plan too, unless the method has a part in it.
        """
        self._measuring_s = 0.0
        shutil.rmtree(folder, ignore_errors=True)
        shutil.copytree(self.base.run_dir.path, folder, ignore=shutil.ignore_patterns(*_AFTER_THE_PLAN))
        trial = Experiment(config, RunDir(folder), self.base.tracker)
        trial.model, trial.structure = self.base.model, self.base.structure
        if trial.parts.student is not None:
            trial.plan_student()
        elif method.decides:
            start = time.monotonic()
            trial.measure_layers(self._rows_of(trial))
            self._measuring_s = time.monotonic() - start
            trial.compare()
        trial.compress()
        trial.pack()
        return trial

    def _rows_of(self, trial: Experiment) -> Path:
        """The file of measured rows that a trial shares with all that offer the same choices of layers."""
        path, own = (self.base.run_dir.path / _SHARED / f"{_choices_hash(made.config, self.base)}.jsonl"
                     for made in (trial, self.base))  # fmt: skip
        measured = self.base.run_dir.path / LAYER_ROWS
        if path == own and not path.exists() and measured.exists():
            write_atomic(path, lambda file: file.write(measured.read_bytes()))
        return path

    def row(
        self, method: CataloguedMethod, overrides: Sequence[str], folder: Path
    ) -> tuple[MethodRow, list[dict[str, Any]]]:
        """What a method comes to, and what its packed file holds of every layer, see `layers_of`.

        Args:
            method: which.
            overrides: of the whole run.
            folder: that is worked in.
        """
        start = time.monotonic()
        trial = self.run(method, compose_config(overrides), folder)
        seconds = round(time.monotonic() - start - self._measuring_s, 1)
        dense, result = read_json(folder / "dense.json"), read_json(folder / "result.json")
        stages = result["stages"]
        last = stages.get("quantized", stages["fine_tuned"])
        chooses = method.decides and trial.parts.student is None
        row = MethodRow(
            method=method.name, seed=trial.config.seed, metric_name=dense["metric_name"],
            dense=dense["test"]["metric"], fine_tuned=stages["fine_tuned"]["metric"], metric=last["metric"],
            loss=last["loss"], macs=result["macs"],
            density=density_of(load_artifact(folder / "artifact", trial.planned)).total,
            weight_bytes=result["weight_bytes"], file_bytes=read_json(folder / "packed.json")["file_bytes"],
            seconds=seconds, command=shlex.join(["python", "-m", "experiments.run", *overrides]), **self._made,
            chosen=read_json(folder / "choice.json")["chosen"] if chooses else "",
        )  # fmt: skip
        return row, layers_of(folder, trial.planned)


def _choices_hash(config: Config, base: Experiment) -> str:
    """Of all that rows of layers are measured with: choices, examples, and the network of the base."""
    dense = hash_file(base.run_dir.path / "dense" / "model.safetensors")
    told = {
        "dense": dense,
        "data": config.data,
        "seed": config.seed,
        "task": config.task,
        "measure": asdict(config.measure),
        **{name: getattr(config, name) for name in ("oracles", "quantizer")},
    }
    return hash_values(json.dumps(to_json(told), sort_keys=True))[:16]
