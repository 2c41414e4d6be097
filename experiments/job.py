"""The seam of jobs: what a run does. Compressing one network is one job; building a zoo of networks is another."""

from typing import Any, Protocol, runtime_checkable

from experiments.run_dir import RunDir
from experiments.settings import Config
from experiments.tracker import Tracker


@runtime_checkable
class Job(Protocol):
    """Does one run in a run folder.

    Attributes:
        name: file name, config name and tag.
        reports: dotted names, with wildcards, of the numbers that its final metrics may hold.
    """

    name: str
    reports: tuple[str, ...]

    def check(self, config: Config) -> None:
        """Refuse, before anything is written, what could not be done. Raises ConfigError naming the key."""

    def run(self, config: Config, run_dir: RunDir, tracker: Tracker) -> dict[str, Any]:
        """Do what is not done yet in the folder and return the final metrics, nested.

        Raises:
            CompressError: for whatever the user can mend.
        """
