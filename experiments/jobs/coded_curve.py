"""The job that spends the same bytes in several ways, from a few times smaller to many times."""

from collections.abc import Mapping, Sequence
from dataclasses import asdict, fields
from typing import Any

from compress.files import read_json
from experiments.coded_curve import CurveRow
from experiments.coded_table import LAYER_COLUMNS
from experiments.config import ConfigError
from experiments.method_catalogue import CataloguedMethod
from experiments.raw_table import write_raw
from experiments.run_dir import RunDir
from experiments.settings import Config
from experiments.tracker import Tracker
from experiments.trial_job import TrialJob

_PLACE = ("network", "arm", "point", "seed")


class CodedCurveJob(TrialJob):
    """Writes `coded_curve.csv`, one row for each arm and size that it can meet, and `coded_curve.layers.csv`, one for
    each layer of each file. Seeds are runs of the job.

    Args:
        base: overrides of the run whose dense network and labels all share.
        every: overrides of every point besides.
        arms: name -> overrides that say how bytes are spent; null leaves an arm of the default job out.
        points: overrides, each of which sets a size; every arm is tried at each.
        alone: name of an arm -> points of its own instead.
    """

    name = "coded_curve"
    reports = ("coded_curve.*",)
    may_refuse = True

    def __init__(
        self, base: Sequence[str], arms: Mapping[str, Sequence[str] | None], points: Sequence[str],
        every: Sequence[str] = (), alone: Mapping[str, Sequence[str]] | None = None,
    ) -> None:  # fmt: skip
        super().__init__(base)
        self.arms = {name: tuple(own) for name, own in arms.items() if own is not None}
        self.points, self.every = tuple(points), tuple(every)
        # Points of an arm that is left out go with it.
        self.alone = {name: tuple(own) for name, own in (alone or {}).items() if arms.get(name, ()) is not None}

    @property
    def places(self) -> list[tuple[str, str]]:
        """`(arm, point)` of every trial; points of all arms in turns, so that a killed run has something to compare."""
        shared = [(arm, point) for point in self.points for arm in self.arms if arm not in self.alone]
        return shared + [(arm, point) for arm, points in self.alone.items() for point in points]

    @property
    def trials(self) -> list[CataloguedMethod]:
        """Every point of every arm."""
        return [
            CataloguedMethod("", (*point.split(), *self.every, *self.arms[arm]), f"{arm}, {point}", None)
            for arm, point in self.places
        ]

    def check(self, config: Config) -> None:
        """Every point must compose, and belong to an arm."""
        strange = [name for name in self.alone if name not in self.arms]
        if strange:
            raise ConfigError(f"job.alone: there is no arm {strange[0]!r}. Known are {list(self.arms)}.")
        self._network()
        super().check(config)

    def run(self, config: Config, run_dir: RunDir, tracker: Tracker) -> dict[str, Any]:
        """Try what is not tried yet."""
        found = self.rows(config, run_dir, tracker)
        dense_bytes = int(read_json(run_dir.path / "base" / "dense.json")["weight_bytes"])
        rows, layers = [], []
        for (arm, point), trial in zip(self.places, self.trials, strict=True):
            if trial.name not in found:
                continue
            row = found[trial.name]
            rows.append(
                CurveRow(self._network(), arm, point, row.seed, row.metric_name, row.dense, row.metric, row.file_bytes,
                         dense_bytes, row.macs, row.command, row.commit, row.versions, row.chosen)
            )  # fmt: skip
            place = dict(zip(_PLACE, (self._network(), arm, point, row.seed), strict=True))
            layers += [place | layer for layer in read_json(self.layers_file(run_dir, trial))]
        write_raw(run_dir, "coded_curve.csv", [field.name for field in fields(CurveRow)], map(asdict, rows))
        write_raw(run_dir, "coded_curve.layers.csv", [*_PLACE, *LAYER_COLUMNS], layers)
        return {"coded_curve": {f"{row.arm}, {row.point}": row.metric for row in rows}}

    def _network(self) -> str:
        """The experiment of the base."""
        names = [word.partition("=")[2] for word in self.base if word.startswith("experiment=")]
        if not names:
            raise ConfigError(f"job.base must hold 'experiment=NAME'. Got {list(self.base)}.")
        return names[0]
