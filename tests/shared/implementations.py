"""The implementations of a seam, found by walking its package."""

import importlib
import inspect
import pkgutil


def implementations(package, method):
    """Classes that are defined in the modules of `package` and have `method`, by name."""
    found = []
    for module in pkgutil.walk_packages(package.__path__, f"{package.__name__}."):
        members = vars(importlib.import_module(module.name)).values()
        found += [m for m in members if inspect.isclass(m) and m.__module__ == module.name and hasattr(m, method)]
    return sorted(found, key=lambda kind: kind.__name__)
