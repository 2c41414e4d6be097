"""The menu of an allocator: for each group how many units may go, for each layer which formats it may take.

Constraints are resolved here, once, for every allocator: pinned names, floors, alignment and widths become fewer
entries.
"""

import difflib
import math
from collections.abc import Collection, Iterable, Mapping
from dataclasses import dataclass, replace

import numpy as np

from compress.allocator import Constraints
from compress.budget import Budget
from compress.costs import CostTable
from compress.errors import CompressError
from compress.layer_choice import LayerChoice, choice_of
from compress.layer_prices import LayerPrices, price_layers, ranks_of
from compress.scores import Scores
from compress.units import UnitTable


@dataclass(frozen=True, eq=False)
class GroupChoices:
    """How many units of one coupled group may go, always the lowest scores first.

    Attributes:
        name: the group.
        size: units of the group, removable or not.
        rows: rows of the unit table in the order of removal.
        removed: `(n_levels,)` ascending numbers of removed units that are allowed; the first is 0.
        damage: `(n_levels,)` summed scores, negative ones counted as 0, so ascending.
        raw_damage: `(n_levels,)` summed scores as they are.
        layers: `(n_touched,)` rows of the cost table's layers that have units of this group.
        in_gone, out_gone: `(n_levels, n_touched)` fraction of the inputs and outputs of these layers that is gone.
    """

    name: str
    size: int
    rows: np.ndarray
    removed: np.ndarray
    damage: np.ndarray
    raw_damage: np.ndarray
    layers: np.ndarray
    in_gone: np.ndarray
    out_gone: np.ndarray


@dataclass(frozen=True, eq=False)
class LayerChoices:
    """The ways one layer may be stored.

    Attributes:
        name: the layer.
        layers: rows of the cost table's layers that take the format.
        choices: `n_levels` of them, by descending `bits_per_dense_weight`.
        columns: `(n_levels,)` their columns in the menu's prices.
        bits: `(n_levels,)` their `bits_per_dense_weight`; 32 is float32.
        damage, raw_damage: `(n_levels,)` as in `GroupChoices`; float32 does none.
    """

    name: str
    layers: np.ndarray
    choices: tuple[LayerChoice, ...]
    columns: np.ndarray
    bits: np.ndarray
    damage: np.ndarray
    raw_damage: np.ndarray


@dataclass(frozen=True, eq=False)
class Menu:
    """All that may be chosen, and the bounds.

    Attributes:
        units: the units of the model.
        costs: the cost table.
        prices: what every layer costs in every choice.
        columns: `(n_units,)` column of the cost table that each unit has.
        groups: the groups of which something may go.
        layers: the layers that have a format to choose.
        bounds: absolute upper bounds by name.
        scale: of the scores, `"nats"` or `"order"`.
        unscored: layers that `always_quantize` stores in 8 bits though no score says what that does.
    """

    units: UnitTable
    costs: CostTable
    prices: LayerPrices
    columns: np.ndarray
    groups: tuple[GroupChoices, ...]
    layers: tuple[LayerChoices, ...]
    bounds: dict[str, float]
    scale: str
    unscored: int


def open_menu(
    units: UnitTable,
    scores: Scores,
    costs: CostTable,
    budget: Budget,
    constraints: Constraints,
    *,
    always_quantize: bool = False,
) -> Menu:
    """What may be chosen under the constraints.

    Units without a score stay. Layers without a score stay in float32, unless `always_quantize`: then every layer that
    is not pinned is stored in at most 8 bits, and a width that has no score counts as harmless. Without it, widths are
    offered only if `weight_bytes` is bounded, for only then do they buy anything.

    Raises:
        CompressError: for units, scores and costs that do not belong together, a pinned name that does not exist, a
            setting out of range or a choice that allocators do not know.
    """
    check_constraints(constraints)
    columns = _columns(units, costs)
    table = _score_table(units, scores)
    pinned = pinned_units(units, costs, constraints.pinned)
    groups = _group_choices(units, costs, columns, table.get("removed"), pinned, constraints)
    prices = price_layers(costs, [*offered_choices(table).values(), LayerChoice(8)])
    bounds = budget.absolute(costs.dense)
    layers, unscored = _layer_choices(
        units, costs, prices, columns, table, pinned, constraints, always_quantize, bounds
    )
    buys = {"weight_bytes", "coded_bytes", "bit_operations", "latency_ms"}
    if any(choice.rank for choice in prices.choices):
        buys |= {"macs"}
    if not buys & bounds.keys():
        # Nothing is bought by fewer bits than there must be.
        layers = tuple(_widest(c) for c in layers) if always_quantize else ()
    return Menu(units, costs, prices, columns, groups, layers, bounds, scores.scale, unscored)


def offered_choices(names: Iterable[str]) -> dict[str, LayerChoice]:
    """The choices of layers among these names; `"removed"` is one of channels. Raises CompressError for another."""
    found = {}
    for name in names:
        if name != "removed":
            found[name] = choice_of(name)
    return found


def check_constraints(constraints: Constraints) -> None:
    """Raises CompressError for values that fit no model, whatever its names."""
    round_to = constraints.round_to
    if not isinstance(constraints.floors, Mapping):
        raise CompressError(
            f"The 'floors' parameter of Constraints must map names of groups to numbers. Got {constraints.floors!r}."
        )
    floors = {f"'floors' parameter of Constraints at {name!r}": floor for name, floor in constraints.floors.items()}
    for told, floor in {"'floor' parameter of Constraints": constraints.floor, **floors}.items():
        if isinstance(floor, bool) or not isinstance(floor, (int, float)) or not 0 <= floor <= 1:
            raise CompressError(f"The {told} must be a float in [0, 1]. Got {floor!r}.")
    if isinstance(round_to, bool) or not isinstance(round_to, int) or round_to < 1:
        raise CompressError(f"The 'round_to' parameter of Constraints must be an int of at least 1. Got {round_to!r}.")
    for name in ("pinned", "max_bits_only"):
        given = getattr(constraints, name)
        if isinstance(given, str):
            raise CompressError(
                f"The '{name}' parameter of Constraints must be a tuple of names. Got the single string "
                f"{given!r}; put it into a tuple."
            )
        if not isinstance(given, Collection) or not all(isinstance(x, str) for x in given):
            raise CompressError(f"The '{name}' parameter of Constraints must be a tuple of names. Got {given!r}.")


def _columns(units: UnitTable, costs: CostTable) -> np.ndarray:
    if units.ids == costs.unit_ids:
        return np.arange(len(units))
    missing = sorted(set(units.ids) ^ set(costs.unit_ids))
    if missing:
        raise CompressError(
            f"The cost table and the unit table do not hold the same units ({missing[0]!r} is in only one of them). "
            "Make both from the same model."
        )
    columns = np.empty(len(units), dtype=np.int64)
    columns[units.positions(costs.unit_ids)] = np.arange(len(units))
    return columns


def _score_table(units: UnitTable, scores: Scores) -> dict[str, np.ndarray]:
    """Choice -> `(n_units,)` scores, NaN where there is none."""
    offered_choices(scores.choices)
    rows = units.positions(scores.unit_ids)
    table = {}
    for column, choice in enumerate(scores.choices):
        table[choice] = np.full(len(units), np.nan)
        table[choice][rows] = scores.values[:, column]
    return table


def pinned_units(units: UnitTable, costs: CostTable, names: Iterable[str]) -> np.ndarray:
    """`(n_units,)` bool: units that stay as they are. A pinned layer pins its inputs, its outputs and its format.

    Args:
        names: see `Constraints.pinned`.

    Raises:
        CompressError: for a name that does not exist, or costs of other units.
    """
    pinned, columns = np.zeros(len(units), dtype=bool), _columns(units, costs)
    ids, layer_names = np.array(units.ids, dtype=str), np.array(costs.layer_names, dtype=str)
    row_of_column = np.argsort(columns)
    formatted = costs.layer_unit >= 0
    layer_row = row_of_column[costs.layer_unit]  # meaningless where not formatted
    for name in names:
        if name.endswith("."):
            rows, layers = np.char.startswith(ids, name), np.char.startswith(layer_names, name)
        else:
            rows = (ids == name) | (units.group == name)
            # An operation of several products has a row of each.
            layers = np.array([name in (own, own.partition("#")[0]) for own in costs.layer_names], dtype=bool)
        if not rows.any() and not layers.any():
            raise CompressError(_unknown_name("pinned", name, units, costs))
        layers = layers | (formatted & (rows & ~units.removable)[layer_row])
        touched = (costs.in_share[layers] != 0).any(axis=0) | (costs.out_share[layers] != 0).any(axis=0)
        pinned |= rows
        pinned[row_of_column[touched]] = True
        pinned[layer_row[layers & formatted]] = True
    return pinned


def _unknown_name(parameter: str, name: str, units: UnitTable, costs: CostTable) -> str:
    known = [*units.groups, *units.group[units.kind == "layer"].tolist(), *costs.layer_names]
    if "[" in name:
        known.extend(units.ids)
    close = difflib.get_close_matches(name.rstrip("."), dict.fromkeys(known), n=3, cutoff=0.5)
    hint = f"Did you mean {' or '.join(map(repr, close))}?" if close else f"Known names look like {known[:3]}."
    return f"The '{parameter}' parameter of Constraints names {name!r}, which this model does not have. {hint}"


def _group_choices(
    units: UnitTable,
    costs: CostTable,
    columns: np.ndarray,
    removal: np.ndarray | None,
    pinned: np.ndarray,
    constraints: Constraints,
) -> tuple[GroupChoices, ...]:
    if removal is None:
        return ()
    members: dict[str, list[int]] = {}
    for row in np.flatnonzero(units.removable):
        members.setdefault(str(units.group[row]), []).append(int(row))
    for name in constraints.floors:
        if name not in members:
            raise CompressError(_unknown_name("floors", name, units, costs))
    choices = []
    for name, rows in members.items():
        rows = np.array(rows)
        free = rows[~pinned[rows] & ~np.isnan(removal[rows])]
        free = free[np.argsort(removal[free], kind="stable")]
        removed = _removed_levels(len(rows), len(free), constraints.floor_of(name), constraints.round_to)
        if len(removed) == 1:
            continue
        share_in, share_out = costs.in_share[:, columns[free]], costs.out_share[:, columns[free]]
        layers = np.flatnonzero((share_in != 0).any(axis=1) | (share_out != 0).any(axis=1))
        choices.append(GroupChoices(
            name=name, size=len(rows), rows=free, removed=removed,
            damage=_summed(np.maximum(removal[free], 0.0))[removed], raw_damage=_summed(removal[free])[removed],
            layers=layers, in_gone=_summed(share_in[layers].T)[removed], out_gone=_summed(share_out[layers].T)[removed],
        ))  # fmt: skip
    return tuple(choices)


def _summed(values: np.ndarray) -> np.ndarray:
    """Cumulative sums along the first axis, beginning with 0."""
    return np.concatenate([np.zeros((1, *values.shape[1:])), np.cumsum(values, axis=0, dtype=np.float64)])


def _removed_levels(size: int, free: int, floor: float, round_to: int) -> np.ndarray:
    least = max(1, size - free, math.ceil(floor * size - 1e-9))
    kept = np.arange(size - 1, least - 1, -1)
    return np.concatenate([[0], size - kept[kept % round_to == 0]]).astype(np.int64)


def _layer_choices(
    units: UnitTable,
    costs: CostTable,
    prices: LayerPrices,
    columns: np.ndarray,
    table: dict[str, np.ndarray],
    pinned: np.ndarray,
    constraints: Constraints,
    always_quantize: bool,
    bounds: Iterable[str],
) -> tuple[tuple[LayerChoices, ...], int]:
    wide_only = _named_layers(units, costs, constraints.max_bits_only)
    # Of equals the one without a rank, and without a scheme of its own, comes last: who goes by bits alone takes that.
    named = sorted(
        offered_choices(table).items(),
        key=lambda pair: (-pair[1].bits_per_dense_weight, pair[1].rank is None, pair[1].scheme is None),
    )
    column_of = {choice: column for column, choice in enumerate(prices.choices)}
    plain, eight = LayerChoice(), LayerChoice(8)
    useful = {choice: _is_useful(prices, costs, choice, bounds) for choice in column_of}
    choices, unscored = [], 0
    for row in np.flatnonzero((units.kind == "layer") & ~pinned):
        layers = np.flatnonzero(costs.layer_unit == columns[row])
        if not len(layers):
            continue
        scored = ((choice, float(table[name][row])) for name, choice in named if useful[choice][layers].all())
        offered = {choice: score for choice, score in scored if not np.isnan(score)}
        if units.ids[row] in wide_only:
            whole = {c: score for c, score in offered.items() if c.density == 1 and c.rank is None}
            # Where the scheme has no 8 bits, the most that it has.
            least = min(8, max((c.bits for c in whole), default=8))
            offered = {c: score for c, score in whole.items() if c.bits >= least}
        if always_quantize:
            offered = {choice: score for choice, score in offered.items() if choice.bits <= 8}
            unscored += not offered
            offered = offered or {eight: 0.0}
        else:
            offered = {plain: 0.0, **{c: v for c, v in offered.items() if c != plain}}
        if list(offered) == [plain]:
            continue
        raw, own = np.array(list(offered.values())), tuple(offered)
        bits = np.array([choice.bits_per_dense_weight for choice in own])
        own_columns = np.array([column_of[choice] for choice in own])
        choices.append(LayerChoices(
            units.ids[row], layers, own, own_columns, bits, np.maximum(raw, 0.0), raw
        ))  # fmt: skip
    return tuple(choices), unscored


def _is_useful(prices: LayerPrices, costs: CostTable, choice: LayerChoice, bounds: Iterable[str]) -> np.ndarray:
    """`(n_layers,)` bool: whether a rank saves anything that is bounded, against the same without it."""
    rows = np.arange(len(costs.layer_names))
    if choice.rank is None:
        return np.ones(len(rows), dtype=bool)
    same = replace(choice, rank=None, rank_scheme="channel")
    whole = prices.choices.index(same if same in prices.choices else LayerChoice())
    column, one = np.full(len(rows), prices.choices.index(choice)), np.ones(len(rows))
    saves = [
        prices.cost(name, rows, one, one, column) < prices.cost(name, rows, one, one, np.full_like(column, whole))
        for name in bounds
    ]
    return (ranks_of(costs, choice) > 0) & (np.any(saves, axis=0) if saves else True)


def _widest(choices: LayerChoices) -> LayerChoices:
    """The choice of most bits that does least damage, the one without a rank or a scheme of its own among equals."""
    widest = np.flatnonzero(choices.bits == choices.bits[0])
    one = [int(widest[::-1][choices.damage[widest[::-1]].argmin()])]
    return replace(choices, choices=tuple(choices.choices[i] for i in one), columns=choices.columns[one],
                   bits=choices.bits[one], damage=choices.damage[one], raw_damage=choices.raw_damage[one])  # fmt: skip


def _named_layers(units: UnitTable, costs: CostTable, names: Iterable[str]) -> set[str]:
    layers = [unit for unit, kind in zip(units.ids, units.kind, strict=True) if kind == "layer"]
    found: set[str] = set()
    for name in names:
        hits = [layer for layer in layers if layer == name or (name.endswith(".") and layer.startswith(name))]
        if not hits:
            raise CompressError(_unknown_name("max_bits_only", name, units, costs))
        found.update(hits)
    return found
