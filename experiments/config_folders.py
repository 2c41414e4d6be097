"""Refuses configurations in folders of the command line that would have Hydra run code: they may be anybody's."""

import re
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import yaml

from experiments.config import ConfigError

_SHORT, _LONG = ("-cp", "-cd"), ("--config-path", "--config-dir")
# What such a file may say to Hydra itself. Callbacks, launchers, loggers and search paths name code or where it lies,
# and variables of the environment say which packages are trusted.
_HARMLESS = {"run", "sweep", "output_subdir", "verbose", "mode"}
_HARMLESS_OF_JOB = {"name", "chdir", "config"}
# What a run folder keeps for people; nothing reads it unless a list of defaults names it.
_SAVED = "hydra.yaml"


def check_config_folders(arguments: Sequence[str]) -> None:
    """Look through the folders that `--config-path` and `--config-dir` name, before Hydra reads them.

    Raises:
        ConfigError: naming the file that sets more of `hydra` than where runs lie and what they are called, or that
            cannot be read.
    """
    for folder in map(Path, _folders(arguments)):
        files = {path: _read(path) for path in sorted(folder.rglob("*.yaml")) if path.name != _SAVED}
        if any(isinstance(node, dict) and node.get("defaults") for node in files.values()):
            files |= {path: _read(path) for path in sorted(folder.rglob(_SAVED))}
        for path, node in files.items():
            found = _says_to_hydra(path, folder, node)
            if found:
                raise ConfigError(
                    f"{path} sets {found}, which can run code. Set that on the command line, if you trust it, and "
                    "leave it out of the file."
                )


def _folders(arguments: Sequence[str]) -> Iterator[str]:
    for argument, following in zip(arguments, [*arguments[1:], ""], strict=True):
        name, equals, value = argument.partition("=")
        # The beginning of an option is enough for argparse.
        if name in _SHORT or (len(name) > len("--config-") and any(option.startswith(name) for option in _LONG)):
            yield value if equals else following


def _read(path: Path) -> Any:
    try:
        return yaml.safe_load(path.read_text(encoding="utf-8"))
    except (OSError, UnicodeDecodeError, yaml.YAMLError) as error:
        raise ConfigError(f"{path} cannot be read ({type(error).__name__}). Mend it, or leave it out.") from error


def _says_to_hydra(path: Path, folder: Path, node: Any) -> str:
    """The first key that is more than harmless, empty if there is none."""
    if "hydra" in path.relative_to(folder).parts[:-1]:
        return "a group of 'hydra'"
    if re.search(r"^\s*#\s*@package\s+(?:_global_\.)?hydra\b", path.read_text(encoding="utf-8"), re.MULTILINE):
        return "the package 'hydra'"
    if not isinstance(node, dict):
        return ""
    if re.search(r"@(?:_global_\.)?hydra\b", str(node.get("defaults"))):
        return "a default in the package 'hydra'"
    own = node.get("hydra") or {}
    if not isinstance(own, dict):
        return "'hydra'"
    job = own.get("job") or {}
    jobs = {f"job.{name}": name in _HARMLESS_OF_JOB for name in job} if isinstance(job, dict) else {"job": False}
    told = {name: name in _HARMLESS for name in own if name != "job"} | jobs
    return next((f"'hydra.{name}'" for name, harmless in told.items() if not harmless), "")
