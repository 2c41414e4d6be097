"""No tracker."""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from experiments.tracker import RunInfo


class NullTracker:
    """Forgets everything. The run's own `metrics.jsonl` is written all the same."""

    def __init__(self, run: RunInfo) -> None:
        self.run = run

    def begin_stage(self, name: str, key: str) -> None:
        """Nothing."""

    def log_metrics(self, metrics: Mapping[str, float], step: int) -> None:
        """Nothing."""

    def log_table(self, name: str, columns: Sequence[str], rows: Sequence[Sequence[Any]]) -> None:
        """Nothing."""

    def log_figure(self, name: str, path: str | Path) -> None:
        """Nothing."""

    def log_artifact(self, path: str | Path) -> None:
        """Nothing."""

    def summary(self, metrics: Mapping[str, Any]) -> None:
        """Nothing."""

    def finish(self) -> None:
        """Nothing."""
