"""The job that tries every method once, each by its override, on one dense network and one plan of it."""

from collections.abc import Mapping, Sequence
from dataclasses import asdict, fields
from typing import Any

from compress.files import read_json
from experiments.coded_table import LAYER_COLUMNS
from experiments.config import ConfigError
from experiments.method_catalogue import BASE, CataloguedMethod, catalogue
from experiments.raw_table import write_raw
from experiments.run_dir import RunDir
from experiments.settings import Config
from experiments.tracker import Tracker
from experiments.trial_job import TrialJob


class MethodsJob(TrialJob):
    """Writes `methods.csv`, one row for each method of the catalogue, and `methods.layers.csv`, one for each layer of
    each file.

    Args:
        base: overrides of the run that every method is tried on.
        only: names of methods (their overrides), or None for all.
        without: names of methods that the base has no place for.
        further: how names of methods begin -> further overrides for these.
    """

    name = "methods"
    reports = ("methods.*",)

    def __init__(
        self, base: Sequence[str] = ("experiment=quickstart",), only: Sequence[str] | None = None,
        without: Sequence[str] = (), further: Mapping[str, Sequence[str]] | None = None,
    ) -> None:  # fmt: skip
        super().__init__(base)
        self.only = None if only is None else tuple(only)
        self.without = tuple(without)
        self.further = {start: tuple(more) for start, more in (further or {}).items()}

    @property
    def trials(self) -> list[CataloguedMethod]:
        """The run without any override, and the methods."""
        wanted = [method for method in catalogue() if self.only is None or method.name in self.only]
        return [BASE, *(method for method in wanted if method.name not in self.without)]

    def check(self, config: Config) -> None:
        """The base and every method must compose."""
        known = [method.name for method in catalogue()]
        for setting in ("only", "without"):
            unknown = [name for name in getattr(self, setting) or () if name not in known]
            if unknown:
                raise ConfigError(f"job.{setting}: there is no method {unknown[0]!r}. Known are {known}.")
        for start in self.further:
            if not any(name.startswith(start) for name in known):
                raise ConfigError(f"job.further: no method begins with {start!r}. Known are {known}.")
        super().check(config)

    def run(self, config: Config, run_dir: RunDir, tracker: Tracker) -> dict[str, Any]:
        """Try what is not tried yet."""
        rows, layers = list(self.rows(config, run_dir, tracker).values()), []
        for trial, row in zip(self.trials, rows, strict=True):
            place = {"method": row.method, "seed": row.seed}
            layers += [place | layer for layer in read_json(self.layers_file(run_dir, trial))]
        write_raw(run_dir, "methods.csv", [field.name for field in fields(type(rows[0]))], map(asdict, rows))
        write_raw(run_dir, "methods.layers.csv", ["method", "seed", *LAYER_COLUMNS], layers)
        return {"methods": {row.method or "base": row.metric for row in rows}}

    def _overrides(self, config: Config, trial: CataloguedMethod) -> list[str]:
        more = [own for start, overrides in self.further.items() if trial.name.startswith(start) for own in overrides]
        return [*super()._overrides(config, trial), *more]
