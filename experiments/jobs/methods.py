"""The job that tries every method once, each by its override, on one dense network and one plan of it."""

import logging
import shutil
from collections.abc import Sequence
from dataclasses import asdict, fields
from typing import TYPE_CHECKING, Any

from compress.files import read_json, write_json
from experiments.composition import compose_config
from experiments.config import ConfigError, folder_name
from experiments.method_catalogue import BASE, CataloguedMethod, catalogue
from experiments.progress import progress
from experiments.raw_table import write_raw
from experiments.run_dir import RunDir
from experiments.settings import Config
from experiments.tracker import Tracker

if TYPE_CHECKING:
    from experiments.method_trials import MethodRow, MethodTrials

log = logging.getLogger(__name__)


class MethodsJob:
    """Writes `methods.csv`, one row for each method of the catalogue; a killed run goes on with the next method.

    Args:
        base: overrides of the run that every method is tried on.
        only: names of methods (their overrides), or None for all.
    """

    name = "methods"

    def __init__(self, base: Sequence[str] = ("experiment=quickstart",), only: Sequence[str] | None = None) -> None:
        self.base, self.only = tuple(base), None if only is None else tuple(only)

    @property
    def methods(self) -> list[CataloguedMethod]:
        """What is tried."""
        return [method for method in catalogue() if self.only is None or method.name in self.only]

    def check(self, config: Config) -> None:
        """The base and every method must compose."""
        known = [method.name for method in catalogue()]
        unknown = [name for name in self.only or () if name not in known]
        if unknown:
            raise ConfigError(f"job.only: there is no method {unknown[0]!r}. Known are {known}.")
        for method in [BASE, *self.methods]:
            compose_config(self._overrides(config, method))

    def run(self, config: Config, run_dir: RunDir, tracker: Tracker) -> dict[str, Any]:
        """Try what is not tried yet."""
        # Here, so that a wrong configuration is refused before the libraries of all stages are loaded.
        from experiments.method_trials import MethodRow, MethodTrials

        with RunDir(run_dir.path / "base") as base_dir, progress("trying methods") as on_method:
            trials = MethodTrials(compose_config(self._overrides(config, BASE)), base_dir, tracker)
            rows = []
            for number, method in enumerate([BASE, *self.methods]):
                rows.append(self._row(trials, method, self._overrides(config, method), run_dir))
                log.info("%s: %.2f, %d bytes", method.name or "no override", rows[-1].metric, rows[-1].file_bytes)
                on_method(number + 1, len(self.methods) + 1)
        write_raw(run_dir, "methods.csv", [field.name for field in fields(MethodRow)], map(asdict, rows))
        return {"methods": {row.method or "base": row.metric for row in rows}}

    def _overrides(self, config: Config, method: CataloguedMethod) -> list[str]:
        run = [f"{name}={getattr(config, name)}" for name in ("seed", "threads", "device")]
        return [*self.base, *run, "export.formats=[]", *method.overrides]

    def _row(
        self, trials: "MethodTrials", method: CataloguedMethod, overrides: list[str], run_dir: RunDir
    ) -> "MethodRow":
        from experiments.method_trials import MethodRow

        name = folder_name(method.name)
        path = run_dir.file(f"rows/{name}.json")

        def work() -> None:
            folder = run_dir.path / "trial"
            row = trials.row(method, overrides, folder)
            shutil.rmtree(folder)
            write_json(path, asdict(row))

        base = [run_dir.path / "base" / file for file in ("dense/model.safetensors", "plan.json")]
        run_dir.run_stage(name, work, inputs=base, outputs=[path], settings={"overrides": overrides})
        return MethodRow(**read_json(path))
