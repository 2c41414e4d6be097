"""What the networks of the zoo learn: data sets that fit in memory, loaded once per process."""

from collections.abc import Callable
from dataclasses import dataclass
from functools import cache

from compress.errors import CompressError, DataError
from experiments.data import DataSplits, load_digits, load_mnist1d, load_shakespeare, load_small_mnist
from experiments.zoo.inputs import InputSpec

# The parts are the same for all networks.
SPLIT_SEED = 0


@dataclass(frozen=True)
class ZooTask:
    """A data set, its loader and what a network for it takes and gives."""

    load: Callable[..., DataSplits]
    spec: InputSpec


TASKS = {
    "digits": ZooTask(load_digits, InputSpec("image", (1, 8, 8), 10)),
    "mnist1d": ZooTask(load_mnist1d, InputSpec("signal", (1, 40), 10)),
    "small_mnist": ZooTask(load_small_mnist, InputSpec("image", (1, 14, 14), 10)),
    "shakespeare": ZooTask(load_shakespeare, InputSpec("tokens", (24,), 65, tokens=65)),
}


def input_spec(task: str) -> InputSpec:
    """What a network for this task takes and gives. Raises CompressError for an unknown name."""
    if task not in TASKS:
        raise CompressError(f"The 'task' of a recipe must be one of {', '.join(TASKS)}. Got {task!r}.")
    return TASKS[task].spec


@cache
def load_task_data(task: str) -> DataSplits:
    """The data set of a task, kept for the life of the process.

    Raises:
        DataError: if a file or package is missing, or the data are not those that the networks are made for.
    """
    spec = input_spec(task)
    splits = TASKS[task].load(seed=SPLIT_SEED)
    if splits.input_shape != spec.shape or len(splits.class_names) != spec.classes:
        raise DataError(
            f"Data set '{splits.name}' has inputs {splits.input_shape} in {len(splits.class_names)} classes, the zoo "
            f"expects {spec.shape} in {spec.classes}. Fetch it again."
        )
    return splits
