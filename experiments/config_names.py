"""By which names a packed file says what it is: those of files in `conf/`."""

from collections.abc import Mapping
from importlib import resources
from typing import Any

from omegaconf import DictConfig, OmegaConf

from experiments.settings import Config

# Where weights and data come from, how training images are divided and how they vary, says nothing about the file.
_ELSEWHERE = {"weights", "root", "seed", "padding", "affine", "flip", "calibration", "label", "validation"}


def names_of(config: Config) -> dict[str, str]:
    """`model` (the one that leaves), `data` and `task` of a run by the names of their yaml files.

    Empty where one of them is not as a yaml file of its group has it: no reader could build it from a name.
    """
    nodes = {"model": config.final_model, "data": config.data, "task": config.task}
    found = {group: _name_of(group, node) for group, node in nodes.items()}
    if not all(found.values()):
        return {}
    return {group: name for group, name in found.items() if name and (group, name) != ("task", "classification")}


def _name_of(group: str, node: Any) -> str | None:
    own = _plain(node)
    for path in sorted((resources.files("conf") / group).iterdir(), key=lambda path: path.name):
        if path.name.endswith(".yaml"):
            settings = OmegaConf.to_container(OmegaConf.create(path.read_text()), resolve=False)
            if isinstance(settings, dict) and _plain(settings) == own:
                return path.name.removesuffix(".yaml")
    return None


def _plain(node: Any) -> Mapping[str, Any]:
    settings = OmegaConf.to_container(node, resolve=True) if isinstance(node, DictConfig) else node
    return {name: value for name, value in settings.items() if name not in _ELSEWHERE}
