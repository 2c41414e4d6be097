"""What units cost: multiply-accumulates of one example, and bytes of the parameters."""

from collections.abc import Mapping
from dataclasses import dataclass, field

import numpy as np

from compress.errors import CompressError
from compress.number_format import SYMMETRIC, NumberFormat

FLOAT_BYTES = 4
BIT_CHOICES = (8, 6, 4, 3, 2)


@dataclass(frozen=True, eq=False)
class RankCosts:
    """What two layers in the place of one cost for each rank, at most: a rank above what is left of a layer is cut.

    Attributes:
        useful_rank: `(n_layers,)` the largest rank at which they have fewer weights; 0 where a layer stays one. Of a
            layer with a stride the two may have more MACs.
        weights: `(n_layers, 2)` of the first and of the second layer.
        macs: `(n_layers, 2)` the same in MACs of one example.
    """

    useful_rank: np.ndarray
    weights: np.ndarray
    macs: np.ndarray


@dataclass(frozen=True, eq=False)
class CostTable:
    """Exact costs of any plan, and what each choice saves when it is made alone.

    The MACs of a layer are proportional to (kept inputs) x (kept outputs), so costs of several removals do not simply
    add. The shares hold the exact product form; `total` evaluates it.

    Attributes:
        unit_ids: the units of the table, `n_units` (channels, heads and layers).
        choices: `("removed", "8bit", "6bit", ...)`.
        macs: `(n_units, n_choices)` float64, MACs saved when this choice alone is made; NaN where it does not apply.
        weight_bytes: the same for parameter bytes.
        layer_names: `n_layers` names of everything that costs (convs, linears, embeddings, norms, products; the second
            of one operation ends in `#1`).
        layer_macs: `(n_layers,)` dense MACs of one example.
        layer_weights: `(n_layers,)` number of weights that a format can coarsen (0 for norms and products).
        layer_params: `(n_layers,)` number of other parameters (biases, norm weights), always 4 bytes each, scaled by
            the kept outputs only.
        layer_outputs: `(n_layers,)` number of output channels (each has one float32 scale when quantised).
        in_share: `(n_layers, n_units)` fraction of the layer's inputs that the unit is; 0 where it is not consumed.
        out_share: `(n_layers, n_units)` fraction of the layer's outputs that the unit is. Of a product both are those
            of the two of its dimensions that can shrink most.
        layer_unit: `(n_layers,)` row of the layer's own unit (kind `"layer"`) or -1 if it has no format to choose.
        uncounted: `(operation, times)` of what costs nothing in these numbers.
        coded_bits: name of a `LayerChoice` -> `(n_layers,)` bits of each weight after entropy coding; see
            `compress.coded_bits`.
        latency_ms: name of a `LayerChoice` -> `(n_layers,)` milliseconds of the whole layer on some runtime, which are
            taken to shrink with its MACs; `"32bit"` is the layer as it is.
        number_format: of all layers in 8 bits or less, which says what they take beside their bits.
        low_rank: scheme of `compress.factorizers` -> what ranks cost in it.
        dense: name -> cost of the dense model, for every cost that may be bounded.
    """

    unit_ids: tuple[str, ...]
    choices: tuple[str, ...]
    macs: np.ndarray
    weight_bytes: np.ndarray
    layer_names: tuple[str, ...]
    layer_macs: np.ndarray
    layer_weights: np.ndarray
    layer_params: np.ndarray
    layer_outputs: np.ndarray
    in_share: np.ndarray
    out_share: np.ndarray
    layer_unit: np.ndarray
    uncounted: tuple[tuple[str, int], ...] = ()
    coded_bits: Mapping[str, np.ndarray] = field(default_factory=dict)
    latency_ms: Mapping[str, np.ndarray] = field(default_factory=dict)
    number_format: NumberFormat = SYMMETRIC
    low_rank: Mapping[str, RankCosts] = field(default_factory=dict)
    dense: Mapping[str, float] = field(init=False)
    dense_macs: float = field(init=False)
    dense_weight_bytes: float = field(init=False)

    def __post_init__(self) -> None:
        n_layers, n_units = len(self.layer_names), len(self.unit_ids)
        for name in ("in_share", "out_share"):
            if getattr(self, name).shape != (n_layers, n_units):
                raise CompressError(
                    f"CostTable.{name} must have shape {(n_layers, n_units)}. Got {getattr(self, name).shape}."
                )
        macs, weight_bytes = self.total(np.zeros(n_units, dtype=bool))
        object.__setattr__(self, "dense_macs", macs)
        object.__setattr__(self, "dense_weight_bytes", weight_bytes)
        dense = {
            "macs": macs,
            "weight_bytes": weight_bytes,
            "coded_bytes": weight_bytes,
            "bit_operations": macs * 32**2,
        }
        if "32bit" in self.latency_ms:
            dense["latency_ms"] = float(np.sum(self.latency_ms["32bit"]))
        object.__setattr__(self, "dense", dense)

    def kept_shares(self, removed: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """`(kept_in, kept_out)`, each `(n_layers,)`, the fraction of inputs and outputs that stay."""
        removed = removed.astype(np.float64)
        return 1.0 - self.in_share @ removed, 1.0 - self.out_share @ removed

    def total(self, removed: np.ndarray, bits: np.ndarray | None = None) -> tuple[float, float]:
        """Exact `(macs, weight_bytes)` when the units where `removed` is True are gone.

        Args:
            removed: `(n_units,)` bool.
            bits: `(n_layers,)` bits per weight, 0 or 32 for float32. None: all float32.
        """
        kept_in, kept_out = self.kept_shares(removed)
        macs = float((self.layer_macs * kept_in * kept_out).sum())
        return macs, float(self.layer_bytes(kept_in, kept_out, bits).sum())

    def layer_bytes(self, kept_in: np.ndarray, kept_out: np.ndarray, bits: np.ndarray | None = None) -> np.ndarray:
        """`(n_layers,)` bytes of each layer: packed weights, one float32 scale per output channel, float32 rest."""
        weights = self.layer_weights * kept_in * kept_out
        others = FLOAT_BYTES * self.layer_params * kept_out
        if bits is None:
            return FLOAT_BYTES * weights + others
        bits = np.where(bits == 0, 32, bits)
        scales = np.where(bits < 32, FLOAT_BYTES * self.layer_outputs * kept_out, 0.0)
        return np.ceil(weights * bits / 8 - 1e-6) + scales + others
