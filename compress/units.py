"""Units: what may be decided on, by stable readable names."""

from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np

from compress.errors import ArtifactError, CompressError
from compress.files import load_arrays, save_arrays

KINDS = ("channel", "head", "layer")


@dataclass(frozen=True, eq=False)
class UnitTable:
    """The units of one model, in graph order: all channels and heads, then the layers.

    Attributes:
        ids: readable names, e.g. `layer1.0.conv1:out[17]`, `encoder.0.attention:head[3]`, `layer1.0.conv1` (a layer).
        group: `(n_units,)` str, the coupled group of a channel or head (`layer1.0.conv1:out`); of a layer its own name.
        index: `(n_units,)` int64, position of the unit within its group's first producer; 0 for a layer.
        kind: `(n_units,)` str, one of `"channel"`, `"head"`, `"layer"`.
        blocked: `(qualified name, reason)` of everything that cannot be compressed.
        fingerprint: hash of the model's sorted (parameter name, shape) pairs.
    """

    ids: tuple[str, ...]
    group: np.ndarray
    index: np.ndarray
    kind: np.ndarray
    blocked: tuple[tuple[str, str], ...] = ()
    fingerprint: str = ""
    _position: dict[str, int] = field(init=False, repr=False)

    def __post_init__(self) -> None:
        n = len(self.ids)
        for name in ("group", "index", "kind"):
            if getattr(self, name).shape != (n,):
                raise CompressError(f"UnitTable.{name} must have shape ({n},). Got {getattr(self, name).shape}.")
        object.__setattr__(self, "_position", {unit: i for i, unit in enumerate(self.ids)})
        if len(self._position) != n:
            raise CompressError("UnitTable.ids must be unique.")

    def __len__(self) -> int:
        return len(self.ids)

    @property
    def removable(self) -> np.ndarray:
        """`(n_units,)` bool: channels and heads, the units that can be removed."""
        return self.kind != "layer"

    @property
    def groups(self) -> tuple[str, ...]:
        """Names of the coupled groups (channels and heads), in graph order."""
        return tuple(dict.fromkeys(self.group[self.removable].tolist()))

    def why_nothing_goes(self) -> str:
        """One sentence for a model without removable units, with the first reasons of `blocked`."""
        reasons = "; ".join(f"{name}: {reason}" for name, reason in self.blocked[:3])
        told = f" ({reasons})" if reasons else ""
        return f"Nothing of this model can be removed{told}; 'blocked' of find_units holds the reasons."

    def positions(self, unit_ids: Iterable[str]) -> np.ndarray:
        """Row of each id, int64. Raises CompressError naming the first unknown id."""
        if isinstance(unit_ids, str):
            raise CompressError(f"Unit ids must be a list of ids, such as [{unit_ids!r}]. Got one string.")
        try:
            return np.array([self._position[unit] for unit in unit_ids], dtype=np.int64)
        except KeyError as error:
            raise CompressError(f"Unknown unit {error.args[0]!r}. Known ids look like {self.ids[:2]}.") from None

    def select(self, rows: Sequence[int] | np.ndarray) -> "UnitTable":
        """The table of these rows (positions or a bool mask), with the same `blocked` and fingerprint."""
        rows = np.flatnonzero(rows) if np.asarray(rows).dtype == bool else np.asarray(rows, dtype=np.int64)
        ids = tuple(self.ids[i] for i in rows)
        return UnitTable(ids, self.group[rows], self.index[rows], self.kind[rows], self.blocked, self.fingerprint)

    def save(self, path: str | Path) -> None:
        """Write `units.npz` (no pickle), atomically."""
        blocked = np.array(self.blocked, dtype=str).reshape(-1, 2)
        save_arrays(path, ids=np.array(self.ids, dtype=str), group=self.group.astype(str), index=self.index,
                    kind=self.kind.astype(str), blocked=blocked, fingerprint=np.array(self.fingerprint))  # fmt: skip

    @classmethod
    def load(cls, path: str | Path) -> "UnitTable":
        """Read `units.npz`. Raises ArtifactError if it is missing, damaged or not a unit table."""
        arrays = load_arrays(path, ("ids", "group", "index", "kind", "blocked", "fingerprint"))
        try:
            blocked = tuple((str(name), str(reason)) for name, reason in arrays["blocked"])
            return cls(tuple(arrays["ids"].tolist()), arrays["group"], arrays["index"], arrays["kind"], blocked,
                       str(arrays["fingerprint"]))  # fmt: skip
        except CompressError as error:
            raise ArtifactError(f"{path} is not a valid unit table: {error}") from None
