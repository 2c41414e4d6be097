"""A whole zoo: many networks, trained side by side, each stored as soon as it is ready."""

import csv
import io
import logging
from collections.abc import Callable, Sequence
from dataclasses import fields
from pathlib import Path
from typing import Any

from compress.errors import CompressError
from compress.files import write_atomic
from experiments.progress import progress
from experiments.worker_pool import run_pieces
from experiments.zoo.recipe import Recipe
from experiments.zoo.store import holds, read_row, store_network
from experiments.zoo.tasks import load_task_data
from experiments.zoo.training import train_network

TABLE = "zoo.csv"

log = logging.getLogger(__name__)


def build_zoo(
    folder: str | Path,
    recipes: Sequence[Recipe],
    workers: int = 2,
    on_network: Callable[[dict[str, Any]], None] | None = None,
) -> list[dict[str, Any]]:
    """The rows of all recipes, in their order, after the networks that the folder lacked were trained.

    A build that was killed goes on where it was: it has lost at most the networks in hand. At the end `zoo.csv` holds
    one line per network. A network that cannot be trained does not stop the others.

    Args:
        folder: of the zoo; made if it does not exist.
        recipes: of all networks; their names must differ.
        workers: processes, each on one thread.
        on_network: called with the row of every network that was trained now.

    Raises:
        CompressError: naming the networks that failed, after all others are stored. DataError: if data are missing.
        ArtifactError: if the folder cannot be written.
    """
    names = [recipe.name for recipe in recipes]
    if not names or len(set(names)) < len(names):
        raise CompressError("The 'recipes' parameter of build_zoo must hold at least one recipe, each of another name.")
    missing = [recipe for recipe in recipes if not holds(folder, recipe)]
    log.info("%d of %d networks are there already.", len(recipes) - len(missing), len(recipes))
    # What is missing is said once and at once, not by every network.
    for task in dict.fromkeys(recipe.task for recipe in missing):
        load_task_data(task)
    _train(Path(folder), missing, workers, on_network)
    rows = [read_row(folder, name) for name in names]
    _write_table(Path(folder) / TABLE, rows)
    return rows


def _train(
    folder: Path, recipes: Sequence[Recipe], workers: int, on_network: Callable[[dict[str, Any]], None] | None
) -> None:
    failures: list[str] = []
    with progress("training networks") as on_done:
        pieces = [(folder, recipe) for recipe in recipes]
        for done, (number, result) in enumerate(run_pieces(_train_and_store, pieces, workers), start=1):
            on_done(done, len(recipes))
            if isinstance(result, str):
                failures.append(f"{recipes[number].name}: {result}")
                log.error("Network %s", failures[-1])
            elif on_network is not None:
                on_network(result)
    if failures:
        raise CompressError(
            f"{len(failures)} of {len(recipes)} networks could not be trained, the others are stored. "
            f"{' '.join(failures[:5])}"
        )


def _train_and_store(folder: Path, recipe: Recipe) -> dict[str, Any] | str:
    """The row of the network, stored; or what is wrong with it."""
    try:
        network, row = train_network(recipe)
    except (ValueError, RuntimeError, TypeError, ArithmeticError) as error:
        return f"{type(error).__name__}: {error}"
    store_network(folder, network, row)
    return row


def _write_table(path: Path, rows: Sequence[dict[str, Any]]) -> None:
    """One line per network: the recipe, then the results."""
    of_recipe = [field.name for field in fields(Recipe)]
    columns = of_recipe + [name for name in rows[0] if name not in of_recipe]
    text = io.StringIO()
    writer = csv.DictWriter(text, columns, lineterminator="\n")
    writer.writeheader()
    writer.writerows(rows)
    write_atomic(path, lambda file: file.write(text.getvalue().encode()))
