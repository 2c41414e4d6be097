"""The progress bar of a training."""

from typing import Any

from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, TextColumn, TimeRemainingColumn
from rich.progress import Progress as ProgressBar


class TrainingBar:
    """A progress bar on a terminal, nothing elsewhere."""

    def __init__(self, wanted: bool, total: int) -> None:
        console = Console(stderr=True)
        columns = (TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn(), TimeRemainingColumn())
        self._bar = ProgressBar(*columns, console=console, transient=True, disable=not (wanted and console.is_terminal))
        self._line = self._bar.add_task("training", total=total)

    def __enter__(self) -> tuple[ProgressBar, Any]:
        self._bar.start()
        return self._bar, self._line

    def __exit__(self, *_: Any) -> None:
        self._bar.stop()
