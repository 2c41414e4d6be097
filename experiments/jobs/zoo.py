"""The job that builds a zoo: many small networks, trained and stored, from which a labeler learns."""

import logging
from statistics import median
from typing import Any

from compress.errors import CompressError
from experiments.config import ConfigError
from experiments.run_dir import RunDir
from experiments.settings import Config
from experiments.tracker import Tracker

log = logging.getLogger(__name__)


class ZooJob:
    """Draws recipes and trains a network of each; what is already in the run folder stays.

    Args:
        networks: how many; a larger zoo of the same seed begins with the smaller one.
        seed: of the recipes.
        workers: processes that train, each on one thread.

    Raises:
        CompressError: if a number is below 1.
    """

    name = "zoo"
    reports = ("zoo.*",)

    def __init__(self, networks: int = 252, seed: int = 0, workers: int = 2) -> None:
        for parameter, value in (("networks", networks), ("workers", workers)):
            if value < 1:
                raise CompressError(f"The '{parameter}' parameter of ZooJob must be at least 1. Got {value}.")
        self.networks, self.seed, self.workers = networks, seed, workers

    def check(self, config: Config) -> None:
        """Load the data of every task that the zoo will have. Raises ConfigError naming what is missing."""
        from experiments.zoo import draw_recipes, load_task_data

        try:
            for task in {recipe.task: None for recipe in draw_recipes(self.networks, self.seed)}:
                load_task_data(task)
        except CompressError as error:
            raise ConfigError(f"'job': the zoo cannot be built. {error}") from error

    def run(self, config: Config, run_dir: RunDir, tracker: Tracker) -> dict[str, Any]:
        """Build the zoo in the run folder: `networks/` and `zoo.csv`.

        Returns:
            Under `zoo`: numbers of `networks`, `families`, `tasks`, `parameters`; `seconds` of all trainings; and of
            the networks' test accuracies in percent `accuracy_min`, `accuracy_median`, `accuracy_max`.
        """
        # Here, so that a wrong configuration is refused before the data sets' packages are loaded.
        from experiments.zoo import TABLE, build_zoo, draw_recipes

        trained: list[str] = []

        def report(row: dict[str, Any]) -> None:
            trained.append(row["name"])
            accuracy, seconds = row["test_accuracy_percent"], row["seconds"]
            log.info("%s: test accuracy %.1f %%, %.1f s", row["name"], accuracy, seconds)
            tracker.log_metrics({"zoo/test_accuracy_percent": accuracy, "zoo/seconds": seconds}, len(trained))

        rows = build_zoo(run_dir.path, draw_recipes(self.networks, self.seed), self.workers, report)
        run_dir.add_output(run_dir.file(TABLE))
        tracker.log_table("zoo", list(rows[0]), [list(row.values()) for row in rows])
        return {"zoo": _summary(rows)}


def _summary(rows: list[dict[str, Any]]) -> dict[str, Any]:
    accuracies = [row["test_accuracy_percent"] for row in rows]
    return {
        "networks": len(rows),
        "families": len({row["family"] for row in rows}),
        "tasks": len({row["task"] for row in rows}),
        "parameters": sum(row["parameters"] for row in rows),
        "seconds": round(sum(row["seconds"] for row in rows), 1),
        "accuracy_min": min(accuracies),
        "accuracy_median": median(accuracies),
        "accuracy_max": max(accuracies),
    }
