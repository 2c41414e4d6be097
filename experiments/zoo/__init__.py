"""A zoo of small trained networks: the population from which a labeler learns what networks survive."""

from experiments.zoo.architecture import FAMILIES, PAIRS, Family, build_network, network_size
from experiments.zoo.building import TABLE, build_zoo
from experiments.zoo.drawing import draw_recipes
from experiments.zoo.inputs import InputSpec
from experiments.zoo.recipe import Recipe
from experiments.zoo.store import load_network, read_row, read_rows
from experiments.zoo.tasks import TASKS, input_spec, load_task_data
from experiments.zoo.training import train_network

__all__ = [
    "FAMILIES",
    "PAIRS",
    "TABLE",
    "TASKS",
    "Family",
    "InputSpec",
    "Recipe",
    "build_network",
    "build_zoo",
    "draw_recipes",
    "input_spec",
    "load_network",
    "load_task_data",
    "network_size",
    "read_row",
    "read_rows",
    "train_network",
]
