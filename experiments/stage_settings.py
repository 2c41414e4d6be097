"""What a stage depends on: parts of the configuration as plain values, by which a folder is known to be done."""

from collections.abc import Iterable, Mapping
from dataclasses import asdict
from typing import Any

from compress.number_format import SYMMETRIC
from experiments.settings import Config
from experiments.tracker import to_json

# Settings that came later: where they are left at their default, folders from before go on.
_LATER = {
    "compare": ["formats_for", "search_plans"], "constraints": ["floors"], "sparsify": ["threshold", "early"],
    "quantize": ["schemes"],
}  # fmt: skip
_LATER_OF_ORACLES = {**asdict(SYMMETRIC), "schemes": [], "training_steps": 0, "lr": 2e-3}


def stage_settings(config: Config, names: Iterable[str]) -> dict[str, Any]:
    """Name -> settings, of these parts of the configuration and of those that all stages depend on."""
    chosen = {name: getattr(config, name) for name in ("seed", "threads", "device", "task", *names)}
    if "oracles" in chosen:
        chosen["oracles"] = {
            name: {key: value for key, value in node.items() if _says(key, value, bool(config.quantize.ranks))}
            for name, node in chosen["oracles"].items()
        }
    penalty = chosen.get("penalty")
    if isinstance(penalty, Mapping) and penalty["_target_"].endswith("GroupLassoPenalty"):
        chosen["penalty"] = {key: value for key, value in penalty.items() if (key, value) != ("per", "channel")}
    plain = {name: to_json(asdict(v) if hasattr(v, "__dataclass_fields__") else v) for name, v in chosen.items()}
    for section, name in ((section, name) for section, names in _LATER.items() for name in names):
        if section in plain and plain[section].get(name) == getattr(type(chosen[section])(), name):
            plain[section].pop(name, None)
    return plain


def _says(key: str, value: Any, ranks: bool) -> bool:
    """Whether a setting of an oracle says anything: folders from before it could be set go on without it."""
    if key in _LATER_OF_ORACLES and value == _LATER_OF_ORACLES[key]:
        return False
    return value is not None or ranks
