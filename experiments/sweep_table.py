"""What a multirun leaves: one table over its runs, and one Pareto figure."""

import argparse
import csv
import io
import logging
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from hydra.core.override_parser.overrides_parser import OverridesParser
from hydra.core.utils import JobReturn, JobStatus
from hydra.experimental.callback import Callback
from hydra.types import RunMode
from omegaconf import DictConfig, OmegaConf, read_write

from compress.errors import ArtifactError
from compress.files import write_atomic, write_json
from experiments.run_dir import MANIFEST, read_manifest
from experiments.tracker import flatten

TABLE_CSV, TABLE_JSON, FIGURE = "table.csv", "table.json", "pareto.png"
SCHEMA_VERSION = 1

log = logging.getLogger(__name__)


class SweepTable(Callback):
    """Writes `table.csv`, `table.json` and `pareto.png` into the folder of a multirun.

    The table is written anew after every run, so a sweep that is cut short has one of the runs that were done.

    Args:
        cost: dotted name of the final metric on the horizontal axis; less is better.
        metric: dotted name of the final metric on the vertical axis.
        higher_is_better: direction of `metric`.
    """

    def __init__(
        self, cost: str = "compressed.macs", metric: str = "compressed.metric.value", higher_is_better: bool = True
    ) -> None:
        self.cost = cost
        self.metric = metric
        self.higher_is_better = higher_is_better
        self._failed = False

    def on_multirun_start(self, config: DictConfig, **kwargs: Any) -> None:
        """Make the folder: a search keeps its storage there before the first run begins."""
        Path(config.hydra.sweep.dir).mkdir(parents=True, exist_ok=True)
        name_by_all_swept(config)

    def on_job_end(self, config: DictConfig, job_return: JobReturn, **kwargs: Any) -> None:
        """Write the table of the runs so far; of a single run there is none."""
        if config.hydra.mode != RunMode.MULTIRUN:
            return
        folder = Path(config.hydra.sweep.dir)
        rows = write_table(folder)
        # A multirun of which a run fails has no end that Hydra would tell of.
        self._failed |= job_return.status == JobStatus.FAILED
        if self._failed:
            self._draw(rows, folder)

    def on_multirun_end(self, config: DictConfig, **kwargs: Any) -> None:
        """Write table and figure of all runs (runs side by side may have overtaken each other's)."""
        folder = Path(config.hydra.sweep.dir)
        if self._draw(write_table(folder), folder):
            log.info("Table and figure over the runs: %s, %s", folder / TABLE_CSV, folder / FIGURE)
        else:
            log.warning("No figure: no finished run of %s reports %s and %s.", folder, self.cost, self.metric)

    def _draw(self, rows: Sequence["Row"], folder: Path) -> bool:
        return draw_pareto(rows, folder / FIGURE, self.cost, self.metric, self.higher_is_better)


def name_by_all_swept(config: DictConfig) -> None:
    """Have runs named by keys that names leave out, where those are swept: runs of one folder would overwrite it.

    Args:
        config: of the multirun; every run is composed anew, with the overrides of Hydra's own settings that it holds.
    """
    params = [f"{key}={value}" for key, value in (OmegaConf.select(config, "hydra.sweeper.params") or {}).items()]
    given = OverridesParser.create().parse_overrides([*params, *config.hydra.overrides.task])
    swept = {override.key_or_group for override in given if override.is_sweep_override()}
    left_out = config.hydra.job.config.override_dirname.exclude_keys
    if swept.isdisjoint(left_out):
        return
    kept = ",".join(key for key in left_out if key not in swept)
    overrides = config.hydra.overrides.hydra
    with read_write(overrides):
        overrides.append(f"hydra.job.config.override_dirname.exclude_keys=[{kept}]")


@dataclass(frozen=True)
class Row:
    """One run of a multirun.

    Attributes:
        run: its folder, relative to that of the multirun.
        status: `finished`, `failed`, `interrupted` or `running`.
        overrides: what the command line set, as text.
        metrics: final metrics that are single values, under dotted names.
        error: what ended a run that did not finish.
    """

    run: str
    status: str
    overrides: Mapping[str, str]
    metrics: Mapping[str, Any]
    error: str = ""

    def flat(self) -> dict[str, Any]:
        """The row as one mapping, for a table."""
        told = {"error": self.error} if self.error else {}
        return {"run": self.run, "status": self.status, **self.overrides, **self.metrics, **told}


def collect_rows(folder: str | Path) -> list[Row]:
    """One row for each run below `folder`, in the order of their folders' names."""
    folder = Path(folder)
    rows = []
    for path in sorted(folder.rglob(MANIFEST)):
        try:
            manifest = read_manifest(path.parent)
        except ArtifactError:
            continue
        if "status" not in manifest:
            # The manifest of an artifact within a run is of another kind.
            continue
        overrides = dict(_split_override(text) for text in manifest.get("overrides", []))
        # Lists (baselines, warnings) stay in the runs' own reports: a cell holds one value.
        metrics = {k: v for k, v in flatten(manifest.get("metrics", {})).items() if not isinstance(v, list)}
        name = path.parent.relative_to(folder).as_posix()
        rows.append(Row(name, manifest["status"], overrides, metrics, manifest.get("error", "")))
    return rows


def write_table(folder: str | Path) -> list[Row]:
    """Write `table.csv` and `table.json` over the runs below `folder` and return the rows."""
    folder = Path(folder)
    rows = collect_rows(folder)
    flat = [row.flat() for row in rows]
    columns = list(dict.fromkeys(name for row in flat for name in row))
    text = io.StringIO()
    writer = csv.DictWriter(text, columns, lineterminator="\n")
    writer.writeheader()
    writer.writerows(flat)
    write_atomic(folder / TABLE_CSV, lambda file: file.write(text.getvalue().encode()))
    write_json(folder / TABLE_JSON, {"schema_version": SCHEMA_VERSION, "columns": columns, "rows": flat})
    return rows


def pareto_front(cost: np.ndarray, value: np.ndarray) -> np.ndarray:
    """Positions of the points that no other point beats (less cost, higher value), by rising cost."""
    order = np.lexsort((-value, cost))
    best, front = -np.inf, []
    for i in order:
        if value[i] > best:
            best = value[i]
            front.append(i)
    return np.array(front, dtype=np.int64)


def draw_pareto(rows: Sequence[Row], path: str | Path, cost: str, metric: str, higher_is_better: bool = True) -> bool:
    """Draw `metric` against `cost` with the Pareto front; False, and no figure, if no finished run has both."""
    points = [r for r in rows if r.status == "finished" and all(_is_number(r.metrics.get(n)) for n in (cost, metric))]
    if not points:
        return False
    # Only here: every run loads this module, and few of them draw.
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    figure = Figure(figsize=(7.0, 4.5), layout="constrained")
    FigureCanvasAgg(figure)
    axes = figure.add_subplot()
    x = np.array([row.metrics[cost] for row in points], dtype=np.float64)
    y = np.array([row.metrics[metric] for row in points], dtype=np.float64)
    names = _series_names(points)
    for name in dict.fromkeys(names):
        chosen = np.array([other == name for other in names])
        axes.scatter(x[chosen], y[chosen], label=name, alpha=0.8)
    front = pareto_front(x, y if higher_is_better else -y)
    axes.plot(x[front], y[front], drawstyle="steps-post", color="0.3", linewidth=1.0, zorder=0, label="Pareto front")
    axes.set_xlabel(cost)
    axes.set_ylabel(metric)
    axes.grid(alpha=0.3)
    axes.legend(fontsize=8)
    write_atomic(path, lambda file: figure.savefig(file, format="png", dpi=150))
    return True


def _series_names(rows: Sequence[Row]) -> list[str]:
    """A name for each row from those overrides in which the rows differ; seeds and budgets make points, not series."""
    keys = [key for key in dict.fromkeys(k for row in rows for k in row.overrides) if not _is_repeat(key)]
    keys = [key for key in keys if len({row.overrides.get(key) for row in rows}) > 1]
    return [", ".join(f"{key}={row.overrides.get(key)}" for key in keys) or "runs" for row in rows]


def _is_repeat(key: str) -> bool:
    return key == "seed" or key.startswith("budget.")


def _split_override(text: str) -> tuple[str, str]:
    key, _, value = text.partition("=")
    return key.lstrip("+~"), value


def _is_number(value: Any) -> bool:
    return isinstance(value, (int, float)) and not isinstance(value, bool) and bool(np.isfinite(value))


def main() -> None:
    """Write the table and the figure of a multirun folder anew."""
    parser = argparse.ArgumentParser(description=main.__doc__)
    parser.add_argument("folder", type=Path, help="the folder of a multirun")
    parser.add_argument("--cost", default="compressed.macs", help="final metric on the horizontal axis")
    parser.add_argument("--metric", default="compressed.metric.value", help="final metric on the vertical axis")
    parser.add_argument("--lower-is-better", action="store_true", help="the metric is better when it is lower")
    given = parser.parse_args()
    rows = write_table(given.folder)
    draw_pareto(rows, given.folder / FIGURE, given.cost, given.metric, not given.lower_is_better)


if __name__ == "__main__":
    main()
