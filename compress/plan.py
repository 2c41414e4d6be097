"""The compression plan: plain versioned JSON keyed by names. Later stages do not know who wrote it."""

import re
from collections.abc import Collection, Iterable, Mapping
from dataclasses import asdict, dataclass, field, fields
from pathlib import Path
from typing import Any

import numpy as np

from compress.errors import ArtifactError, PlanError
from compress.files import read_json, write_json
from compress.quantizer import INTEGER_BITS
from compress.units import UnitTable

SCHEMA_VERSION = 1


# Scheme -> the bits that it can have.
SCHEME_BITS = {
    "symmetric": range(1, 9), "affine": range(1, 9), "power_of_two": range(2, 9), "codebook": range(1, 9),
    "ternary": (2,), "binary": (1,), "float16": (16,), "bfloat16": (16,), "float32": (32,),
}  # fmt: skip
RANK_SCHEMES = ("channel", "spatial")
ACTIVATION_RANGES = ("static", "dynamic")
GRANULARITIES = ("tensor", "channel", "group")
_PATTERN = re.compile(r"unstructured|channel|[1-9]\d*:[1-9]\d*|block[1-9]\d*x[1-9]\d*")


@dataclass(frozen=True)
class LayerFormat:
    """How the weight of one layer is stored.

    (Of granularities: Krishnamoorthi 2018, "Quantizing deep convolutional networks", arXiv:1806.08342.)

    Attributes:
        bits: bits per weight: 1 to 8; of `"power_of_two"` 2 to 8, of `"ternary"` 2, of `"binary"` 1, of the halves 16,
            of `"float32"` (for a density or a rank alone) 32.
        scheme: name of a number format, see `compress.weight_formats`. `"symmetric"`: integers in
            [-(2^(bits-1)-1), 2^(bits-1)-1] times a scale.
        granularity: what has one scale (or offset, or codebook): the `"tensor"`, each output `"channel"`, or each
            `"group"` of `group_size` weights of an output channel.
        group_size: of granularity `"group"`, 1 or more; else None.
        density: fraction of the weights that is kept, in (0, 1]; the others are exactly zero.
        pattern: where zeros may lie: `"unstructured"`, `"channel"`, N of M such as `"2:4"`, or such as `"block4x4"`.
        rank: of the two factors that the weight is replaced by, 1 or more; None for none.
        rank_scheme: where the kernel of a convolution goes: to the first of the two (`"channel"`), or one dimension of
            it to each (`"spatial"`), see `compress.factorizers`.

    Raises:
        PlanError: for a value out of range.
    """

    bits: int
    scheme: str = "symmetric"
    granularity: str = "channel"
    group_size: int | None = None
    density: float = 1.0
    pattern: str = "unstructured"
    rank: int | None = None
    rank_scheme: str = "channel"

    def __post_init__(self) -> None:
        schemes = tuple(SCHEME_BITS)
        _check("scheme", self.scheme, self.scheme in schemes, f"one of {schemes}")
        allowed = SCHEME_BITS[self.scheme]
        span = f"an int in [{allowed[0]}, {allowed[-1]}]" if len(allowed) > 1 else f"{allowed[0]}"
        _check("bits", self.bits, _is_int(self.bits) and self.bits in allowed, f"{span} for scheme {self.scheme!r}")
        _check("granularity", self.granularity, self.granularity in GRANULARITIES, f"one of {GRANULARITIES}")
        if self.granularity == "group":
            _check("group_size", self.group_size, _is_count(self.group_size), "an int of at least 1 per 'group'")
        else:
            _check("group_size", self.group_size, self.group_size is None, f"None per {self.granularity!r}")
        is_number = isinstance(self.density, (int, float)) and not isinstance(self.density, bool)
        _check("density", self.density, is_number and 0 < self.density <= 1, "a float in (0, 1]")
        _check(
            "pattern", self.pattern, _is_pattern(self.pattern), "such as 'unstructured', 'channel', '2:4', 'block4x4'"
        )
        _check("rank_scheme", self.rank_scheme, self.rank_scheme in RANK_SCHEMES, f"one of {RANK_SCHEMES}")
        _check("rank", self.rank, self.rank is None or _is_count(self.rank), "None or an int of at least 1")

    @property
    def on_integers(self) -> bool:
        """Whether the weight is symmetric per channel with 2 to 8 bits: engines compute on that."""
        return self.scheme == "symmetric" and self.granularity == "channel" and self.bits in INTEGER_BITS

    def to_json(self) -> dict[str, Any]:
        """Plain JSON: `bits`, `scheme`, `granularity`, and of the other fields those that are not the default."""
        always = ("bits", "scheme", "granularity")
        return {f.name: getattr(self, f.name) for f in fields(self)
                if f.name in always or getattr(self, f.name) != f.default}  # fmt: skip


@dataclass(frozen=True)
class CompressionPlan:
    """What is done to a model.

    Attributes:
        remove_channels: group name -> sorted indices of the removed units (`UnitTable.index`).
        layer_formats: layer name -> its weight format; a layer that is absent stays in float32.
        activation_bits: bits of the activations between quantised layers, or None for float.
        activation_ranges: `"static"`, found on calibration data, or `"dynamic"`, taken from each input of a quantised
            conv or linear at run time, see `compress.dynamic_ranges`; of activations in float it says nothing.
        fingerprint: the architecture this plan is for; a model with another one is refused.
        predicted_damage: sum of the scores spent, in the task's loss unit, or None when they are only an order.
        predicted_cost: `{"macs": ..., "weight_bytes": ...}` of the planned model.
        provenance: who wrote it: free JSON (allocator, labeler, seed, budget).

    Raises:
        PlanError: for ranges of another name, or where a group has no indices or a layer no `LayerFormat`.
    """

    remove_channels: Mapping[str, tuple[int, ...]] = field(default_factory=dict)
    layer_formats: Mapping[str, LayerFormat] = field(default_factory=dict)
    activation_bits: int | None = None
    activation_ranges: str = "static"
    fingerprint: str = ""
    predicted_damage: float | None = None
    predicted_cost: Mapping[str, float] = field(default_factory=dict)
    provenance: Mapping[str, Any] = field(default_factory=dict)

    def __post_init__(self) -> None:
        if self.activation_ranges not in ACTIVATION_RANGES:
            raise PlanError(
                f"The 'activation_ranges' parameter of CompressionPlan must be one of {ACTIVATION_RANGES}. Got "
                f"{self.activation_ranges!r}."
            )
        for name, kind, told in (("remove_channels", Collection, "names of groups to indices of units"),
                                 ("layer_formats", LayerFormat, "names of layers to LayerFormats")):  # fmt: skip
            given = getattr(self, name)
            mapped = isinstance(given, Mapping)
            wrong = {key: value for key, value in given.items()
                     if not isinstance(value, kind) or isinstance(value, str)} if mapped else {}  # fmt: skip
            if not mapped or wrong:
                found = next(f"{value!r} for {key!r}" for key, value in wrong.items()) if wrong else repr(given)
                raise PlanError(f"The '{name}' parameter of CompressionPlan must map {told}. Got {found}.")

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
        formats = {name: layer_format.to_json() for name, layer_format in self.layer_formats.items()}
        return {"schema_version": SCHEMA_VERSION, **asdict(self), "layer_formats": formats}

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


def _check(name: str, value: Any, holds: bool, wanted: str) -> None:
    if not holds:
        raise PlanError(f"The {name!r} parameter of LayerFormat must be {wanted}. Got {value!r}.")


def _is_int(value: Any) -> bool:
    return isinstance(value, int) and not isinstance(value, bool)


def _is_count(value: Any) -> bool:
    return _is_int(value) and value >= 1


def _is_pattern(text: Any) -> bool:
    if not isinstance(text, str) or not _PATTERN.fullmatch(text):
        return False
    kept, _, of = text.partition(":")
    return not of or int(kept) <= int(of)
