"""Counts what every unit costs in a traced model: multiply-accumulates and parameter bytes."""

from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from typing import Any

import numpy as np
from torch import nn

from compress.costs import BIT_CHOICES, FLOAT_BYTES, CostTable, RankCosts
from compress.dimensions import Labels, Value
from compress.graph import Layer
from compress.product_counting import contractions, example_count, is_product, product_macs
from compress.splitting import SCHEMES, Split, find_splits
from compress.structure import Structure, analyze
from compress.units import UnitTable

_FREE = (
    "view",
    "reshape",
    "flatten",
    "unflatten",
    "permute",
    "transpose",
    "squeeze",
    "unsqueeze",
    "expand",
    "slice",
    "select",
    "split",
    "chunk",
    "cat",
    "stack",
    "getitem",
    "dropout",
    "contiguous",
    "clone",
    "to",
    "detach",
    "alias",
    "unbind",
    "t",
    "sym_size",
    "pad",
    "embedding",
)


@dataclass
class _Entry:
    """Costs of one layer, before they are put into the table."""

    n_units: int
    macs: float = 0.0
    weights: int = 0
    params: int = 0
    outputs: int = 0
    in_share: np.ndarray = field(init=False)
    out_share: np.ndarray = field(init=False)

    def __post_init__(self) -> None:
        self.in_share = np.zeros(self.n_units)
        self.out_share = np.zeros(self.n_units)

    def shrink_with(self, dimensions: Sequence[Labels]) -> None:
        """Its MACs are proportional to what stays of each of these dimensions.

        A table knows two factors: of more, those that can shrink most count, so that MACs are never told too low.
        """
        shares = [_share(labels, self.n_units) for labels in dimensions if labels is not None]
        shares = sorted((share for share in shares if share.any()), key=lambda share: -share.sum())
        for name, share in zip(("in_share", "out_share"), shares, strict=False):
            setattr(self, name, share)


def unit_costs(model: nn.Module | Structure, units: UnitTable | None = None, example_inputs: Any = None) -> CostTable:
    """MACs of one example and parameter bytes, per unit and choice.

    One MAC is one multiply and one add of a convolution, linear layer or matrix product (attention included); biases,
    activations, norms and pooling are not counted and are listed in `uncounted`. Bytes are those of all parameters:
    4 for a float32 value; weights of a quantised layer take `bits / 8` each and one float32 scale per output channel.

    Args:
        model: the dense model, or its structure.
        units: as `find_units` returned them; checked against the model.
        example_inputs: inputs of the forward; MACs are those of one example at their size.

    Raises:
        CompressError: if `units` belong to another model.
    """
    structure = analyze(model, example_inputs)
    if units is not None and units.ids != structure.units.ids:
        structure.units.positions(units.ids)
    entries: dict[str, _Entry] = {}
    counted: set[str] = set()
    uncounted: Counter[str] = Counter()
    n_units = len(structure.units)
    layers = structure.traced.layers()
    layer_nodes = {layer.node.name for layer in layers}
    for layer in layers:
        _count_layer(structure, layer, entries, counted)
    for node in structure.traced.graph.nodes:
        if node.op != "call_function":
            continue
        if is_product(node):
            for number, contraction in enumerate(contractions(structure, node)):
                entry = entries[f"{node.name}#{number}" if number else node.name] = _Entry(n_units, contraction.macs)
                entry.shrink_with(contraction.dimensions)
        elif node.name not in layer_nodes and isinstance(structure.traced.shapes.get(node.name), tuple):
            name = getattr(node.target, "__name__", str(node.target)).split(".")[0]
            if (name := name.rstrip("_")) not in _FREE:
                uncounted[name] += 1
    _count_rest(structure, entries, counted)
    low_rank = {scheme: _rank_costs(structure, scheme, entries) for scheme in SCHEMES}
    return replace(_table(structure, entries, uncounted), low_rank=low_rank)


def _share(rows: np.ndarray, n_units: int) -> np.ndarray:
    """Fraction of the indices that each unit is."""
    found = rows[rows >= 0]
    return np.bincount(found, minlength=n_units).astype(np.float64) / len(rows)


def _count_layer(structure: Structure, layer: Layer, entries: dict[str, _Entry], counted: set[str]) -> None:
    n_units = len(structure.units)
    rows = structure.parameters[layer.weight]
    shape = tuple(len(r) for r in rows)
    entry = entries.setdefault(layer.name, _Entry(n_units))
    out_dim, in_dim = {"conv": (0, 1), "linear": (0, 1), "conv_transpose": (1, 0), "embedding": (1, 0)}[layer.kind]
    value = structure.values.get(layer.node.name)
    positions = value.labels[:-1] if layer.kind == "linear" and isinstance(value, Value) else ()
    if any(labels is not None and (labels >= 0).any() for labels in positions):
        # Mixes tokens while its positions are units: work shrinks with them, the weight does not.
        mixing = entries[layer.node.name] = _Entry(n_units, layer_macs(structure, layer))
        mixing.shrink_with((rows[in_dim], rows[out_dim], *positions))
    else:
        entry.macs += layer_macs(structure, layer)
    if layer.weight not in counted:
        counted.add(layer.weight)
        entry.weights = int(np.prod(shape))
        entry.outputs = shape[out_dim]
        entry.in_share, entry.out_share = _share(rows[in_dim], n_units), _share(rows[out_dim], n_units)
    if layer.bias is not None and layer.bias not in counted:
        counted.add(layer.bias)
        entry.params += len(structure.parameters[layer.bias][0])


def layer_macs(structure: Structure, layer: Layer) -> float:
    """MACs of one example in one use of a layer; none for a look-up."""
    shape = tuple(len(rows) for rows in structure.parameters[layer.weight])
    if layer.kind == "embedding":
        return 0.0
    node = layer.node.args[0] if layer.kind == "conv_transpose" else layer.node
    positions = np.prod(structure.traced.shapes[node.name]) / example_count(structure, layer.node)
    return float(positions * np.prod(shape[1:]))


def _rank_costs(structure: Structure, scheme: str, entries: dict[str, _Entry]) -> RankCosts:
    """What each rank of two layers costs, for every entry that can be two."""
    splits, _ = find_splits(structure.traced.module, scheme)
    found = RankCosts(np.zeros(len(entries), dtype=np.int64), *np.zeros((2, len(entries), 2)))
    for row, (name, entry) in enumerate(entries.items()):
        if entry.weights and name in splits:
            found.useful_rank[row], found.weights[row] = splits[name].useful_rank, splits[name].per_rank
            # Where the layer mixes tokens, its MACs are another entry's, and are not priced by rank.
            if entry.macs:
                found.macs[row] = found.weights[row] * _positions(structure, splits[name])
    return found


def _positions(structure: Structure, split: Split) -> tuple[float, float]:
    """How often one example applies the weights of the first and of the second layer."""
    node = split.layer.node
    second = layer_macs(structure, split.layer) / split.n_weights
    # The first one strides along its own dimensions only. Counted from behind: there may be no dimension of examples.
    into, out = (structure.traced.shapes[n.name] for n in (node.args[0], node))
    rest = [d - split.map.dims for d in range(split.map.dims) if d not in split.first_dims]
    return second * float(np.prod([into[d] / out[d] for d in rest])), second


def node_macs(structure: Structure) -> dict[str, float]:
    """Node name -> MACs of one example, for every node that has any."""
    found = {layer.node.name: layer_macs(structure, layer) for layer in structure.traced.layers()}
    for node in structure.traced.graph.nodes:
        if is_product(node):
            found[node.name] = product_macs(structure, node)
    return found


def _count_rest(structure: Structure, entries: dict[str, _Entry], counted: set[str]) -> None:
    """Norms, positional embeddings and every other parameter, float32 always."""
    module, n_units = structure.traced.module, len(structure.units)
    seen = {id(p) for name, p in module.named_parameters(remove_duplicate=False) if name in counted}
    for name, parameter in module.named_parameters(remove_duplicate=False):
        if id(parameter) in seen:
            continue
        seen.add(id(parameter))
        rows = structure.parameters.get(name, ())
        shares = [_share(r, n_units) for r in rows if (r >= 0).any()]
        if len(shares) > 1:
            # The factor of a product written out as one, which is no layer: it shrinks on both sides.
            entry = entries[name] = _Entry(n_units, weights=parameter.numel())
            entry.out_share, entry.in_share = shares[:2]
            continue
        entry = entries[name] = _Entry(n_units, params=parameter.numel())
        if shares:
            entry.out_share = shares[0]


def _table(structure: Structure, entries: dict[str, _Entry], uncounted: Counter[str]) -> CostTable:
    units, names = structure.units, tuple(entries)
    rows = {unit: i for i, unit in enumerate(units.ids)}
    stack = [entries[name] for name in names]
    empty = np.zeros((0, len(units)))
    fields: dict[str, Any] = dict(
        layer_names=names,
        layer_macs=np.array([e.macs for e in stack]),
        layer_weights=np.array([e.weights for e in stack], dtype=np.float64),
        layer_params=np.array([e.params for e in stack], dtype=np.float64),
        layer_outputs=np.array([e.outputs for e in stack], dtype=np.float64),
        in_share=np.stack([e.in_share for e in stack]) if stack else empty,
        out_share=np.stack([e.out_share for e in stack]) if stack else empty,
        layer_unit=np.array([rows.get(name, -1) if e.weights else -1 for name, e in entries.items()], dtype=np.int64),
        uncounted=tuple(sorted(uncounted.items())),
    )
    choices = ("removed", *(f"{bits}bit" for bits in BIT_CHOICES))
    shape = (len(units), len(choices))
    nothing = CostTable(units.ids, choices, np.full(shape, np.nan), np.full(shape, np.nan), **fields)
    return CostTable(units.ids, choices, *_savings(nothing, units), **fields)


def _savings(costs: CostTable, units: UnitTable) -> tuple[np.ndarray, np.ndarray]:
    """What each choice saves when it is made alone, `(n_units, n_choices)` each."""
    macs = np.full((len(units), len(costs.choices)), np.nan)
    weight_bytes = macs.copy()
    removable = np.flatnonzero(units.removable)
    kept_in, kept_out = 1 - costs.in_share[:, removable], 1 - costs.out_share[:, removable]
    product = kept_in * kept_out
    macs[removable, 0] = costs.layer_macs @ (1 - product)
    weight_bytes[removable, 0] = FLOAT_BYTES * (
        costs.layer_weights @ (1 - product) + costs.layer_params @ (1 - kept_out)
    )
    for layer, row in enumerate(costs.layer_unit):
        if row < 0:
            continue
        dense = FLOAT_BYTES * costs.layer_weights[layer]
        for column, bits in enumerate(BIT_CHOICES, start=1):
            packed = np.ceil(costs.layer_weights[layer] * bits / 8) + FLOAT_BYTES * costs.layer_outputs[layer]
            macs[row, column] = 0.0
            weight_bytes[row, column] = dense - packed
    return macs, weight_bytes


def count_macs(model: nn.Module | Structure, example_inputs: Any = None) -> float:
    """MACs of one example of a model, as `unit_costs` counts them."""
    return unit_costs(model, None, example_inputs).dense_macs
