"""A configuration from overrides, also within a run that was itself configured so."""

from collections.abc import Iterable

from hydra import compose, initialize_config_module
from hydra.core.global_hydra import GlobalHydra
from hydra.errors import HydraException

from experiments.config import ConfigError, explain_composition, load_config
from experiments.settings import Config


def compose_config(overrides: Iterable[str]) -> Config:
    """What `python -m experiments.run` with these overrides would run.

    Raises:
        ConfigError: for an override that fits nothing.
    """
    running = GlobalHydra.instance().hydra
    GlobalHydra.instance().clear()
    try:
        with initialize_config_module("conf", version_base="1.3"):
            return load_config(compose("config", overrides=list(overrides)))
    except HydraException as error:
        raise ConfigError(explain_composition(error)) from error
    finally:
        GlobalHydra.instance().hydra = running
