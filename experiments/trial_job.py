"""What jobs have in common that try one configuration after another on one dense network."""

import logging
import shutil
from abc import ABC, abstractmethod
from collections.abc import Sequence
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING

from compress.errors import BudgetError
from compress.files import read_json, write_json
from experiments.composition import compose_config
from experiments.config import folder_name
from experiments.method_catalogue import BASE, CataloguedMethod
from experiments.progress import progress
from experiments.run_dir import RunDir
from experiments.settings import Config
from experiments.tracker import Tracker

if TYPE_CHECKING:
    from experiments.method_trials import MethodRow, MethodTrials

log = logging.getLogger(__name__)


class TrialJob(ABC):
    """Tries what `trials` names; a killed run goes on with the next of them.

    Attributes:
        may_refuse: whether a trial whose budget cannot be met is told and left out, instead of ending the job.

    Args:
        base: overrides of the run that all are tried on.
    """

    may_refuse = False

    def __init__(self, base: Sequence[str]) -> None:
        self.base = tuple(base)

    @property
    @abstractmethod
    def trials(self) -> list[CataloguedMethod]:
        """What is tried."""

    def check(self, config: Config) -> None:
        """The base and every trial must compose."""
        for trial in [BASE, *self.trials]:
            compose_config(self._overrides(config, trial))

    def rows(self, config: Config, run_dir: RunDir, tracker: Tracker) -> dict[str, "MethodRow"]:
        """Try what is not tried yet; name -> what it came to. The folder `base` holds the run they begin with."""
        # Here, so that a wrong configuration is refused before the libraries of all stages are loaded.
        from experiments.method_trials import MethodTrials

        with RunDir(run_dir.path / "base") as base_dir, progress("trying") as on_trial:
            made = MethodTrials(compose_config(self._overrides(config, BASE)), base_dir, tracker)
            rows: dict[str, MethodRow] = {}
            for number, trial in enumerate(self.trials):
                try:
                    row = self._row(made, trial, self._overrides(config, trial), run_dir)
                except BudgetError as error:
                    if not self.may_refuse:
                        raise
                    log.warning("%s: %s", trial.name, error)
                else:
                    rows[trial.name] = row
                    log.info("%s: %.2f, %d bytes", trial.name or "no override", row.metric, row.file_bytes)
                on_trial(number + 1, len(self.trials))
        return rows

    def _overrides(self, config: Config, trial: CataloguedMethod) -> list[str]:
        run = [f"{name}={getattr(config, name)}" for name in ("seed", "threads", "device")]
        return [*self.base, *run, "export.formats=[]", *trial.overrides]

    def _row(self, made: "MethodTrials", trial: CataloguedMethod, overrides: list[str], run_dir: RunDir) -> "MethodRow":
        from experiments.method_trials import MethodRow

        name = folder_name(trial.name)
        path = run_dir.file(f"rows/{name}.json")
        layers_path = self.layers_file(run_dir, trial)

        def work() -> None:
            folder = run_dir.path / "trial"
            row, layers = made.row(trial, overrides, folder)
            shutil.rmtree(folder)
            write_json(layers_path, layers)
            write_json(path, asdict(row))

        base = [f"base/{file}" for file in ("dense/model.safetensors", "plan.json")]
        run_dir.run_stage(name, work, inputs=base, outputs=[path, layers_path], settings={"overrides": overrides})
        return MethodRow(**read_json(path))

    @staticmethod
    def layers_file(run_dir: RunDir, trial: CataloguedMethod) -> Path:
        """Where it is told what a trial's file holds of every layer."""
        return run_dir.file(f"layers/{folder_name(trial.name)}.json")
