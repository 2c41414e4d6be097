"""The compression plan: plain versioned JSON keyed by names. Later stages do not know who wrote it."""

from collections.abc import Iterable, Mapping
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

import numpy as np

from compress.errors import ArtifactError, PlanError
from compress.files import read_json, write_json
from compress.units import UnitTable

SCHEMA_VERSION = 1


@dataclass(frozen=True)
class LayerFormat:
    """How the weight of one layer is stored.

    Attributes:
        bits: bits per weight, 2 to 8.
        scheme: `"symmetric"`: integers in [-(2^(bits-1)-1), 2^(bits-1)-1] times a scale.
        granularity: `"channel"`, one scale for each output channel.
    """

    bits: int
    scheme: str = "symmetric"
    granularity: str = "channel"

    def __post_init__(self) -> None:
        if isinstance(self.bits, bool) or not isinstance(self.bits, int) or not 2 <= self.bits <= 8:
            raise PlanError(f"The 'bits' parameter of LayerFormat must be an int in [2, 8]. Got {self.bits!r}.")
        if self.scheme != "symmetric" or self.granularity != "channel":
            raise PlanError(
                f"LayerFormat knows scheme 'symmetric' per 'channel'. Got {self.scheme!r} per {self.granularity!r}."
            )


@dataclass(frozen=True)
class CompressionPlan:
    """What is done to a model.

    Attributes:
        remove_channels: group name -> sorted indices of the removed units (`UnitTable.index`).
        layer_formats: layer name -> its weight format; a layer that is absent stays in float32.
        activation_bits: bits of the activations between quantised layers, or None for float.
        fingerprint: the architecture this plan is for; a model with another one is refused.
        predicted_damage: sum of the scores spent, in the task's loss unit, or None when they are only an order.
        predicted_cost: `{"macs": ..., "weight_bytes": ...}` of the planned model.
        provenance: who wrote it: free JSON (allocator, labeler, seed, budget).
    """

    remove_channels: Mapping[str, tuple[int, ...]] = field(default_factory=dict)
    layer_formats: Mapping[str, LayerFormat] = field(default_factory=dict)
    activation_bits: int | None = None
    fingerprint: str = ""
    predicted_damage: float | None = None
    predicted_cost: Mapping[str, float] = field(default_factory=dict)
    provenance: Mapping[str, Any] = field(default_factory=dict)

    @classmethod
    def removing(cls, units: UnitTable, unit_ids: Iterable[str], **fields: Any) -> "CompressionPlan":
        """A plan that removes these channel or head units of `units`.

        Raises:
            CompressError: for an unknown id. PlanError: for a layer, or if a whole group would go.
        """
        rows = units.positions(unit_ids)
        layers = [units.ids[row] for row in rows if units.kind[row] == "layer"]
        if layers:
            raise PlanError(f"A layer cannot be removed, only its channels or heads. Got {layers[0]!r}.")
        removed: dict[str, list[int]] = {}
        for row in sorted(set(rows.tolist())):
            removed.setdefault(str(units.group[row]), []).append(int(units.index[row]))
        plan = cls(remove_channels={group: tuple(sorted(index)) for group, index in removed.items()},
                   fingerprint=units.fingerprint, **fields)  # fmt: skip
        plan.removed_mask(units)
        return plan

    def removed_mask(self, units: UnitTable) -> np.ndarray:
        """`(n_units,)` bool, True where this plan removes the unit.

        Raises:
            PlanError: if the plan is for another architecture, names an unknown unit or empties a group.
        """
        if self.fingerprint and units.fingerprint and self.fingerprint != units.fingerprint:
            raise PlanError(
                f"The plan was made for another architecture (fingerprint {self.fingerprint[:12]}, this model has "
                f"{units.fingerprint[:12]}). Make a plan from this model's own units."
            )
        ids = [f"{group}[{index}]" for group, indices in self.remove_channels.items() for index in indices]
        known = set(units.ids)
        unknown = [unit for unit in ids if unit not in known]
        if unknown:
            raise PlanError(
                f"The plan removes {unknown[0]!r}, which is no unit of this model ({len(unknown)} unknown in all)."
            )
        mask = np.zeros(len(units), dtype=bool)
        mask[units.positions(ids)] = True
        for group in self.remove_channels:
            if mask[units.group == group].all():
                raise PlanError(f"The plan removes all of group {group!r}. Keep at least one of its units.")
        return mask

    def save(self, path: str | Path) -> None:
        """Write `plan.json`, atomically."""
        write_json(path, self.to_json())

    def to_json(self) -> dict[str, Any]:
        """Plain JSON of this plan."""
        return {"schema_version": SCHEMA_VERSION, **asdict(self)}

    @classmethod
    def load(cls, path: str | Path) -> "CompressionPlan":
        """Read `plan.json`. Raises ArtifactError if it is missing, damaged, or of another schema version."""
        return cls.from_json(read_json(path), path)

    @classmethod
    def from_json(cls, data: Any, path: str | Path) -> "CompressionPlan":
        """The plan that `to_json` wrote. Raises ArtifactError naming the file that it comes from, as `load` does."""
        data = dict(data) if isinstance(data, dict) else {}
        if data.pop("schema_version", None) != SCHEMA_VERSION:
            raise ArtifactError(f"{path} is not a plan of schema version {SCHEMA_VERSION}.")
        try:
            data["remove_channels"] = {k: tuple(int(i) for i in v) for k, v in data["remove_channels"].items()}
            data["layer_formats"] = {k: LayerFormat(**v) for k, v in data["layer_formats"].items()}
            return cls(**data)
        except (TypeError, KeyError, AttributeError, ValueError) as error:
            raise ArtifactError(f"{path} is not a valid plan: {error}") from error
