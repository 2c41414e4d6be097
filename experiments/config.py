"""The configuration: a schema for the root, and a guarded way from a `_target_` node to the object it names."""

import difflib
import functools
import hashlib
import importlib
import inspect
import os
import re
from collections.abc import Callable, Iterable, Mapping
from importlib import resources
from pathlib import Path
from types import NoneType, UnionType
from typing import Any, Union, get_args, get_origin

from hydra.core.config_store import ConfigStore
from omegaconf import MISSING, DictConfig, OmegaConf
from omegaconf.errors import MissingMandatoryValue, OmegaConfBaseException
from yaml import YAMLError

from compress.errors import ArtifactError, CompressError
from experiments.settings import Config

PACKAGES = ("compress", "autolabel", "experiments")
# A model or data set may be made by a function; elsewhere a function may write files, and a configuration must not
# choose which.
FUNCTION_PACKAGES = ("experiments.models.", "experiments.data.")
# Packages of the user's own that a configuration may name too, separated by commas. Whoever starts the process says so
# in its environment, which is read here once: Hydra sets variables that a configuration asks for only later.
OWN_PACKAGES = "AUTOLABEL_PACKAGES"
OWN = tuple({*os.environ.get(OWN_PACKAGES, "").replace(" ", "").split(",")} - {"", *PACKAGES})
FOLDER_NAME_LIMIT = 120
# What every library takes as a seed.
SEEDS = 2**31

ConfigStore.instance().store(name="root_schema", node=Config)


class ConfigError(CompressError):
    """A configuration that cannot be run. The message names the key."""


def load_config(node: DictConfig) -> Config:
    """The checked, resolved configuration as plain dataclasses, lists and dicts.

    Works for a composed configuration and for the `config.yaml` of a run folder, which knows no schema.

    Raises:
        ConfigError: for an unknown key (also one added with `+`), a missing value, a value of the wrong type, a seed
            that is none, or no threads.
    """
    schema = _schema()
    _refuse_unknown_keys(node, schema, "")
    try:
        merged = OmegaConf.merge(schema, node)
        OmegaConf.resolve(merged)
        OmegaConf.to_container(merged, throw_on_missing=True)
        config = OmegaConf.to_object(merged)
    except MissingMandatoryValue as error:
        key = error.full_key or "?"
        raise ConfigError(f"'{key}' is not set. Set {key}=..., or choose an experiment=... that does.") from None
    except OmegaConfBaseException as error:
        key = f"'{error.full_key}': " if error.full_key else ""
        raise ConfigError(f"{key}{_first_line(error)}") from None
    for name, seed in [("seed", config.seed), *(("seeds", seed) for seed in config.seeds)]:
        if not 0 <= seed < SEEDS:
            raise ConfigError(f"{name} must be from 0 to {SEEDS - 1}. Got {seed}.")
    if config.threads < 1:
        raise ConfigError(f"threads must be at least 1. Got {config.threads}.")
    return config


@functools.cache
def _schema() -> DictConfig:
    """Never to be changed."""
    return OmegaConf.structured(Config)


def plain_config(node: DictConfig) -> dict[str, Any]:
    """The resolved configuration as nested plain containers, for records and trackers."""
    container = OmegaConf.to_container(node, resolve=True)
    assert isinstance(container, dict)
    return container


def build(node: Mapping[str, Any] | DictConfig, key: str, *, within: str | None = None, **extra: Any) -> Any:
    """The object that `node["_target_"]` names, called with the other entries of `node` and with `extra`.

    Nested nodes with a `_target_` are built first. Only classes, and functions that make models or data,
    are called, and only those defined in this project; nothing else can be reached, whatever the name of the target.

    Args:
        node: `_target_` and keyword arguments.
        key: where the node stands in the configuration, for messages.
        within: package in which the target must be defined (`"autolabel.labelers"`), or None.
        **extra: keyword arguments that a configuration cannot know (such as the run).

    Raises:
        ConfigError: for a target outside the project, an unknown or missing argument, or a value that it refuses.
    """
    if isinstance(node, DictConfig):
        node = OmegaConf.to_container(node, resolve=True)
    if not isinstance(node, Mapping) or not isinstance(node.get("_target_"), str):
        raise ConfigError(f"'{key}' must name an object by '_target_'. Got {node!r}.")
    target = locate_target(node["_target_"], key, within)
    arguments = {name: value for name, value in node.items() if name != "_target_"}
    _refuse_unknown_arguments(target, arguments, extra, key)
    arguments = {name: _build_nested(value, f"{key}.{name}") for name, value in arguments.items()}
    _refuse_plain_values(target, arguments, key)
    try:
        return target(**arguments, **extra)
    except ConfigError:
        raise
    except (CompressError, TypeError, ValueError) as error:
        raise ConfigError(f"'{key}' cannot be built from {node['_target_']}: {_first_line(error)}") from error


def locate_target(name: str, key: str, within: str | None = None) -> Callable[..., Any]:
    """The class or function that `name` (`package.module.Name`) stands for, checked to be defined in this project.

    One that is defined in a package which the environment variable `AUTOLABEL_PACKAGES` names is as good, wherever
    `within` would have it.

    Raises:
        ConfigError: if it does not exist, is defined elsewhere (an imported `json.loads`), or may not be called.
    """
    packages = (*PACKAGES, *OWN)
    module_name, _, attribute = name.rpartition(".")
    parts = name.split(".")
    if (
        len(parts) < 2
        or parts[0] not in packages
        or not all(part.isidentifier() and not part.startswith("_") for part in parts)
    ):
        raise ConfigError(
            f"'{key}._target_' must lie in {', '.join(packages)}. Got {name!r}. To let configurations name a package "
            f"of your own, set {OWN_PACKAGES}={parts[0] or 'PACKAGE'} in the environment."
        )
    try:
        module = importlib.import_module(module_name)
    except ModuleNotFoundError as error:
        # A module of ours that lacks its own dependency is another matter than a misspelt target.
        if error.name and error.name.split(".")[0] not in packages:
            raise ConfigError(f"'{key}' needs the package {error.name!r}, which is not installed.") from None
        raise ConfigError(
            f"'{key}._target_': there is no module {error.name or module_name!r}. Got {name!r}."
        ) from None
    target = getattr(module, attribute, None)
    if target is None:
        names = [n for n, value in vars(module).items() if getattr(value, "__module__", None) == module_name]
        raise ConfigError(f"'{key}._target_': {module_name} has no {attribute!r}.{_suggest(attribute, names)}")
    home = getattr(target, "__module__", None) or ""
    is_ours = home.split(".")[0] in packages and _is_defined_at(target, home)
    if is_ours and home.split(".")[0] in OWN and (inspect.isclass(target) or inspect.isfunction(target)):
        return target
    if not is_ours or not (
        inspect.isclass(target) or (inspect.isfunction(target) and home.startswith(FUNCTION_PACKAGES))
    ):
        raise ConfigError(f"'{key}._target_' must be a class or model defined in this project. Got {name!r}.")
    if within is not None and not (home + ".").startswith(within + "."):
        raise ConfigError(f"'{key}._target_' must be defined in {within}. Got {name!r}.")
    return target


def folder_name(text: str) -> str:
    """`text` as one name of a folder: other characters become `_`, a long one is cut and told apart by a hash."""
    name = re.sub(r"[^\w.=,+-]", "_", text) or "default"
    if len(name) <= FOLDER_NAME_LIMIT:
        return name
    return f"{name[: FOLDER_NAME_LIMIT - 9]}-{hashlib.sha256(text.encode()).hexdigest()[:8]}"


OmegaConf.register_new_resolver("folder_name", folder_name, replace=True)


def explain_composition(error: Exception, arguments: Iterable[str] = ()) -> str:
    """One line for an error of Hydra or OmegaConf while composing, with a suggestion where a key is misspelt.

    Args:
        error: that was raised.
        arguments: of the command line.
    """
    text = str(error)
    if "Config group override must be a string" in text:
        return _explain_null(arguments)
    found = re.search(r"Could not (?:override|append to config\. An item is already at) '([^']+)'", text)
    if found and "append" not in found.group(0):
        key = found.group(1)
        # The error carries the node that lacks the key; a component's keys stand in no schema.
        parent = getattr(error.__cause__, "parent_node", None)
        if parent is not None and parent._get_full_key(None) == key:
            # An override with a dict, one of whose keys is new.
            lacking, known = getattr(error.__cause__, "key", ""), [f"{key}.{name}" for name in parent]
            if known and _has_schema(parent):
                return f"Unknown configuration key '{key}.{lacking}'.{_suggest(f'{key}.{lacking}', known)}"
            return f"{key!r} has no {lacking!r} yet that could be overridden. Add it: '+{key}=...'"
        if OmegaConf.select(OmegaConf.structured(Config), key) is not None:
            return f"{key!r} has no value yet that could be overridden. Add it: '+{key}=...'"
        prefix = key.rpartition(".")[0]
        siblings = [f"{prefix}.{name}" if prefix else str(name) for name in parent or ()]
        return f"Unknown configuration key '{key}'.{_suggest(key, siblings)}"
    found = re.search(r"Could not find '([^']+)'\s+Available options in '([^']+)':\s+(.*?)(?:\n\S|\Z)", text, re.DOTALL)
    if found:
        path, group, options = found.group(1), found.group(2), found.group(3).split()
        return f"There is no {path!r}.{_suggest(path.rpartition('/')[2], options, f'Options of {group!r}')}"
    lines = [text] + ([str(error.__cause__)] if isinstance(error.__cause__, OmegaConfBaseException) else [])
    return " ".join(" ".join(line.split("\n    full_key", 1)[0] for line in lines).split())


def _explain_null(arguments: Iterable[str]) -> str:
    """What is wrong with `criterion=null`: Hydra tells neither the group nor its options."""
    for key in (word.removesuffix("=null") for word in arguments if word.endswith("=null")):
        group, _, place = key.partition("@")
        folder = resources.files("conf") / group
        if folder.is_dir():
            names = sorted(path.name.removesuffix(".yaml") for path in folder.iterdir() if path.name.endswith(".yaml"))
            optional = getattr(Config, place or group, MISSING) is None
            none = f", or ~{key} for none" if optional else ""
            return f"{key}=null is no option. Options of {group!r}: {', '.join(names)}{none}."
    return "A configuration group cannot be null. Name one of its options, or leave it out with ~GROUP."


def _refuse_unknown_keys(node: DictConfig, schema: DictConfig, prefix: str) -> None:
    # Not `in schema`: that is False for a key whose value is still missing.
    names = list(schema)
    for name in node:
        if name not in names:
            known = [f"{prefix}{other}" for other in names]
            raise ConfigError(f"Unknown configuration key '{prefix}{name}'.{_suggest(f'{prefix}{name}', known)}")
        if name == "hydra" or OmegaConf.is_missing(node, name) or OmegaConf.is_missing(schema, name):
            continue
        # Only nodes with a schema are checked here; a `_target_` node is checked against its signature by `build`.
        if isinstance(schema[name], DictConfig) and _has_schema(schema[name]):
            if not isinstance(node[name], DictConfig):
                raise ConfigError(f"'{prefix}{name}' must hold {', '.join(schema[name])}. Got {node[name]!r}.")
            _refuse_unknown_keys(node[name], schema[name], f"{prefix}{name}.")


def _has_schema(node: DictConfig) -> bool:
    return OmegaConf.get_type(node) not in (dict, None)


def _refuse_unknown_arguments(
    target: Callable[..., Any], arguments: Mapping[str, Any], extra: Mapping[str, Any], key: str
) -> None:
    parameters = inspect.signature(target).parameters
    kinds = (inspect.Parameter.POSITIONAL_OR_KEYWORD, inspect.Parameter.KEYWORD_ONLY)
    known = [name for name, parameter in parameters.items() if parameter.kind in kinds and name not in extra]
    for name in arguments:
        if name not in known:
            raise ConfigError(
                f"Unknown configuration key '{key}.{name}': {target.__name__} has no such parameter."
                f"{_suggest(name, known)}"
            )
    given = {*arguments, *extra}
    missing = [n for n in known if parameters[n].default is inspect.Parameter.empty and n not in given]
    if missing:
        raise ConfigError(f"'{key}.{missing[0]}' is not set: {target.__name__} needs it.")


def _refuse_plain_values(target: Callable[..., Any], arguments: Mapping[str, Any], key: str) -> None:
    """Refuse text, numbers and lists where only an object of this project, or none, will do."""
    for name, value in arguments.items():
        annotation = inspect.signature(target).parameters[name].annotation
        kinds = get_args(annotation) if get_origin(annotation) in (Union, UnionType) else (annotation,)
        ours = [k for k in kinds if inspect.isclass(k) and k.__module__.split(".")[0] in PACKAGES]
        if ours and {*kinds} <= {*ours, NoneType} and isinstance(value, (str, int, float, list, Mapping)):
            wanted = " or ".join([*(["null"] if NoneType in kinds else []), *(f"a {kind.__name__}" for kind in ours)])
            raise ConfigError(
                f"'{key}.{name}' must be {wanted}, which no plain value is: only code, or a node with a '_target_', "
                f"can give one. Got {value!r}."
            )


def _build_nested(value: Any, key: str) -> Any:
    if isinstance(value, Mapping):
        if "_target_" in value:
            return build(value, key)
        return {name: _build_nested(item, f"{key}.{name}") for name, item in value.items()}
    if isinstance(value, list):
        return [_build_nested(item, f"{key}[{i}]") for i, item in enumerate(value)]
    return value


def _is_defined_at(target: Any, home: str) -> bool:
    """Whether the module `home` really holds `target` under its own name, so that a forged `__module__` is no use."""
    module = importlib.import_module(home)
    return getattr(module, getattr(target, "__qualname__", ""), None) is target


def _suggest(name: str, known: Iterable[str], label: str = "Known") -> str:
    known = sorted(known)
    close = difflib.get_close_matches(name, known, n=1)
    if close:
        return f" Did you mean '{close[0]}'?"
    return f" {label}: {', '.join(known)}." if known and len(known) <= 40 else ""


def _first_line(error: Exception) -> str:
    return (str(error) or type(error).__name__).splitlines()[0]


def config_of(folder: Path) -> Config:
    """The resolved configuration of a run folder. Raises ArtifactError if it is missing or damaged."""
    path = folder / ".hydra" / "config.yaml"
    try:
        return load_config(OmegaConf.load(path))
    except OSError as error:
        raise ArtifactError(f"Cannot read {path}: {error.strerror or error}. It is no folder of a run.") from error
    except (YAMLError, OmegaConfBaseException, UnicodeDecodeError) as error:
        raise ArtifactError(f"{path} is damaged ({type(error).__name__}). Run the experiment again.") from error
