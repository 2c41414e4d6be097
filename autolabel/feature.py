"""The seam of features: numbers known of each unit or layer without measuring damage."""

import importlib
import inspect
import pkgutil
from collections.abc import Mapping
from functools import cache
from typing import Any, ClassVar, Protocol, runtime_checkable

import numpy as np

from compress.errors import CompressError

CHOICES = ("removed", "bits")


@runtime_checkable
class FeatureGroup(Protocol):
    """Some columns of a feature table. Every file in `features/` holds one.

    Attributes:
        name: of the group, like its file.
        choice: `"removed"` if its rows are channels and heads, `"bits"` if they are layers.
        columns: column name -> what it says, in one line.
    """

    name: ClassVar[str]
    choice: ClassVar[str]
    columns: ClassVar[Mapping[str, str]]

    def compute(self, statistics: Any) -> np.ndarray:
        """`(n_units, n_columns)` float64, finite, in the order of `columns`.

        Args:
            statistics: `compress.statistics.Statistics` of the removable units, or
                `compress.layer_statistics.LayerStatistics` for the choice `"bits"`.
        """


@cache
def feature_groups(choice: str = "removed") -> tuple[FeatureGroup, ...]:
    """One of each group for this choice, found by walking `autolabel.features`, in the order of their names."""
    if choice not in CHOICES:
        raise CompressError(f"The 'choice' parameter of feature_groups must be one of {CHOICES}. Got {choice!r}.")
    package = importlib.import_module("autolabel.features")
    found = []
    for module in pkgutil.iter_modules(package.__path__, "autolabel.features."):
        for member in vars(importlib.import_module(module.name)).values():
            if inspect.isclass(member) and member.__module__ == module.name and isinstance(member(), FeatureGroup):
                found.append(member())
    return tuple(sorted((group for group in found if group.choice == choice), key=lambda group: group.name))


def describe_features() -> dict[str, str]:
    """Name -> one-line description of every feature of units and layers."""
    return {
        name: text for choice in CHOICES for group in feature_groups(choice) for name, text in group.columns.items()
    }


def log_size(x: np.ndarray, floor: float = 1e-12) -> np.ndarray:
    """log10 of magnitudes, those below `floor` as if they were `floor`."""
    return np.log10(np.maximum(np.abs(np.asarray(x, dtype=np.float64)), floor))


def signed_log(x: np.ndarray, bend: float = 1e-6) -> np.ndarray:
    """sign(x) log10(1 + |x| / bend): linear below `bend`, logarithmic above."""
    x = np.asarray(x, dtype=np.float64)
    return np.sign(x) * np.log10(1 + np.abs(x) / bend)


def unsigned_log(y: np.ndarray, bend: float = 1e-6) -> np.ndarray:
    """What `signed_log` was given."""
    y = np.asarray(y, dtype=np.float64)
    return np.sign(y) * bend * (10 ** np.abs(y) - 1)


def ratio(numerator: np.ndarray, denominator: np.ndarray) -> np.ndarray:
    """The quotient, 0 where the denominator is (nearly) zero."""
    numerator, denominator = np.broadcast_arrays(np.asarray(numerator, np.float64), np.asarray(denominator, np.float64))
    safe = np.abs(denominator) > 1e-30
    return np.where(safe, numerator / np.where(safe, denominator, 1.0), 0.0)
