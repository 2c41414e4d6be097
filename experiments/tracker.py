"""The seam of trackers: where the numbers, tables, figures and files of a run are told as they come."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Protocol, runtime_checkable


@dataclass(frozen=True)
class RunInfo:
    """What a tracker knows of its run.

    Attributes:
        name: of the run, readable.
        folder: of the run.
        config: the resolved configuration, plain containers.
        group: the experiment or sweep that the run belongs to.
        job_type: `"run"`, or `"sweep"` for one run of a multirun.
        tags: short words to filter by (labeler, allocator, ...).
    """

    name: str
    folder: Path
    config: Mapping[str, Any] = field(default_factory=dict)
    group: str = ""
    job_type: str = "run"
    tags: tuple[str, ...] = ()


@runtime_checkable
class Tracker(Protocol):
    """Takes what a run reports. Every file in `trackers/` holds one, named like its file, made from a RunInfo first."""

    def begin_stage(self, name: str, key: str) -> None:
        """What follows is of this stage. Another key than before: it is done anew, and what it told is out of date."""

    def log_metrics(self, metrics: Mapping[str, float], step: int) -> None:
        """Numbers at a step; `"finetune/loss"` counts its own steps, apart from those of `"train/..."`."""

    def log_table(self, name: str, columns: Sequence[str], rows: Sequence[Sequence[Any]]) -> None:
        """A table, such as labels measured and predicted."""

    def log_figure(self, name: str, path: str | Path) -> None:
        """A picture that lies at `path`."""

    def log_artifact(self, path: str | Path) -> None:
        """A file or folder that leaves."""

    def summary(self, metrics: Mapping[str, Any]) -> None:
        """Final values; nested mappings are allowed."""

    def finish(self) -> None:
        """Write what is pending and let go. Called once, also after a failure."""


class TrackerGroup:
    """Tells every one of `trackers` the same, in order."""

    def __init__(self, trackers: Sequence[Tracker]) -> None:
        self.trackers = tuple(trackers)

    def begin_stage(self, name: str, key: str) -> None:
        for tracker in self.trackers:
            tracker.begin_stage(name, key)

    def log_metrics(self, metrics: Mapping[str, float], step: int) -> None:
        for tracker in self.trackers:
            tracker.log_metrics(metrics, step)

    def log_table(self, name: str, columns: Sequence[str], rows: Sequence[Sequence[Any]]) -> None:
        for tracker in self.trackers:
            tracker.log_table(name, columns, rows)

    def log_figure(self, name: str, path: str | Path) -> None:
        for tracker in self.trackers:
            tracker.log_figure(name, path)

    def log_artifact(self, path: str | Path) -> None:
        for tracker in self.trackers:
            tracker.log_artifact(path)

    def summary(self, metrics: Mapping[str, Any]) -> None:
        for tracker in self.trackers:
            tracker.summary(metrics)

    def finish(self) -> None:
        for tracker in self.trackers:
            tracker.finish()


def flatten(metrics: Mapping[str, Any], prefix: str = "") -> dict[str, Any]:
    """Nested metrics under dotted names: `{"a": {"b": 1}}` gives `{"a.b": 1}`."""
    flat: dict[str, Any] = {}
    for name, value in metrics.items():
        if isinstance(value, Mapping):
            flat |= flatten(value, f"{prefix}{name}.")
        else:
            flat[f"{prefix}{name}"] = value
    return flat


def to_json(value: Any) -> Any:
    """`value` in plain JSON types: numpy scalars and arrays unpacked, paths as text, NaN and infinity as text."""
    if hasattr(value, "tolist"):
        value = value.tolist()
    if isinstance(value, Mapping):
        return {str(name): to_json(item) for name, item in value.items()}
    if isinstance(value, (list, tuple, set, frozenset)):
        return [to_json(item) for item in value]
    if isinstance(value, float) and (value != value or value in (float("inf"), float("-inf"))):
        return str(value)
    if isinstance(value, (str, int, float)) or value is None:
        return value
    return str(value)
