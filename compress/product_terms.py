"""Costs of a menu as linear terms and products of two groups, told apart by the choice of each layer.

Where a choice is not made, all that belongs to it is nothing (the disjunctive formulation of Balas 1979): so however
much prices differ between choices, mixtures of choices cost what they should.
"""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from scipy.sparse import csr_array

from compress.menu import LayerChoices, Menu

# Of the whole: what costs nothing has no logarithm.
_NOTHING = 1e-12

Row = dict[int, float]  # column -> coefficient


@dataclass(frozen=True)
class Product:
    """What stays of inputs times what stays of outputs under one choice: `value >= made * exp(log / made)`.

    Attributes:
        value: column of the product.
        made: 1 where the choice is made, 0 elsewhere.
        log: its logarithm where the choice is made, 0 elsewhere.
        low, high: range of the logarithm.
    """

    value: int
    made: Row
    log: Row
    low: float
    high: float


class ProductTerms:
    """Columns, their rows and the costs; the first columns are the levels of all groups, then of all layers.

    Attributes:
        n_levels: columns that stand for a level each, 1 if it is taken and 0 if not.
        one: the column that is always 1.
        lower, upper: of each column.
        equal: rows whose sum is 0.
        below: rows whose sum is at most 0.
        costs: name -> the cost as a fraction of its bound.
        products: what the costs need of products.
    """

    def __init__(self, menu: Menu, allowed: np.ndarray) -> None:
        """Args: menu: what may be chosen. allowed: `(n_levels,)` bool, levels that may be taken."""
        self._menu, self._allowed = menu, allowed
        sizes = [len(item.damage) for item in (*menu.groups, *menu.layers)]
        self.start = np.concatenate([[0], np.cumsum(sizes)]).astype(np.int64)
        self.n_levels = self.one = int(self.start[-1])
        self.lower, self.upper = [0.0] * self.n_levels + [1.0], [*allowed.astype(float).tolist(), 1.0]
        self.equal: list[Row] = []
        self.below: list[Row] = []
        self.costs: dict[str, Row] = {name: {} for name in menu.bounds}
        self.products: list[Product] = []
        for item in range(len(sizes)):
            _add(one := {self.one: -1.0}, dict.fromkeys(self._columns(item), 1.0))
            self.equal.append(one)
        self._option = {int(row): i for i, choices in enumerate(menu.layers) for row in choices.layers}
        for layer in range(len(menu.costs.layer_names)):
            self._write(layer)

    def matrix(self, rows: Sequence[Row]) -> csr_array:
        """The rows as a matrix."""
        where = [(r, column, value) for r, row in enumerate(rows) for column, value in row.items()]
        r, column, value = (np.array(part) for part in zip(*where, strict=True)) if where else (np.empty(0, int),) * 3
        return csr_array((value, (r, column)), shape=(len(rows), len(self.lower)))

    def _columns(self, item: int) -> list[int]:
        """Allowed levels of an item."""
        return [c for c in range(int(self.start[item]), int(self.start[item + 1])) if self._allowed[c]]

    def _write(self, layer: int) -> None:
        """Add what one layer costs, in all its choices. Bytes are not rounded up: less, so that a bound holds."""
        prices = self._menu.prices
        made, columns = self._choices(layer)
        product, inward, outward, fixed = (
            {name: table[name][layer, columns] / bound for name, bound in self._menu.bounds.items()}
            for table in (prices.product, prices.inward, prices.outward, prices.fixed)
        )
        self._charge(fixed, made)
        inputs, outputs = (self._parts(layer, side, made) for side in ("in", "out"))
        for priced, parts in ((inward, inputs), (outward, outputs)):
            for _, _, shares in parts:
                self._charge(priced, shares)
        if any(values.any() for values in product.values()):
            for a in inputs:
                for b in outputs:
                    self._charge(product, self._multiply(a, b, made, product))

    def _charge(self, price: dict[str, np.ndarray], shares: Sequence[Row]) -> None:
        for name, values in price.items():
            for value, share in zip(values, shares, strict=True):
                if value:
                    _add(self.costs[name], share, float(value))

    def _choices(self, layer: int) -> tuple[list[Row], np.ndarray]:
        """`(made, columns)`: for each allowed choice of a layer, its 0/1 row and its column in the prices."""
        if layer not in self._option:
            return [{self.one: 1.0}], np.array([0])
        option = self._option[layer]
        item = len(self._menu.groups) + option
        columns = self._columns(item)
        return [{c: 1.0} for c in columns], self._menu.layers[option].columns[np.array(columns) - self.start[item]]

    def _parts(self, layer: int, side: str, made: list[Row]) -> list[tuple[int, np.ndarray, list[Row]]]:
        """What stays of a side, as a sum of parts `(group or -1, share by allowed level, share under each choice)`."""
        menu = self._menu
        share = (menu.costs.in_share if side == "in" else menu.costs.out_share)[layer][menu.columns]
        parts, rest = [], 1.0
        for index, choices in enumerate(menu.groups):
            gone = (choices.in_gone if side == "in" else choices.out_gone)[:, choices.layers == layer]
            if not gone.any():
                continue
            whole = float(share[menu.units.group == choices.name].sum())
            rest -= whole
            levels = np.array(self._columns(index))
            values = whole - gone[levels - self.start[index], 0]
            parts.append((index, values, self._split(dict(zip(levels.tolist(), values.tolist(), strict=True)), made,
                                                     float(values.min()), float(values.max()))))  # fmt: skip
        if rest > 1e-9:
            parts.append((-1, np.array([rest]), [_scaled(row, rest) for row in made]))
        return parts

    def _split(self, total: Row, made: list[Row], low: float, high: float) -> list[Row]:
        """A quantity in `[low, high]`, told apart by the choice that is made: rows that sum up to it."""
        if len(made) == 1:
            return [total]
        rows = []
        _add(rest := {}, total, -1.0)
        for own in made:
            column = self._column(min(low, 0.0), max(high, 0.0))
            rows.append({column: 1.0})
            rest[column] = 1.0
            self.below += [{column: 1.0, **_scaled(own, -high)}, {column: -1.0, **_scaled(own, low)}]
        self.equal.append(rest)
        return rows

    def _multiply(
        self, a: tuple[int, np.ndarray, list[Row]], b: tuple[int, np.ndarray, list[Row]], made: list[Row],
        price: dict[str, np.ndarray],
    ) -> list[Row]:  # fmt: skip
        """What stays of both parts under each choice."""
        if a[0] == -1 or b[0] == -1:
            constant, other = (a, b) if a[0] == -1 else (b, a)
            return [_scaled(row, float(constant[1][0])) for row in other[2]]
        if a[0] == b[0]:
            both = a[1] * b[1]
            total = dict(zip(self._columns(a[0]), both.tolist(), strict=True))
            return self._split(total, made, float(both.min()), float(both.max()))
        ranges, total = [], {}
        for group, values, _ in (a, b):
            logs = np.log(np.maximum(values, _NOTHING))
            ranges.append((float(logs.min()), float(logs.max())))
            total |= dict(zip(self._columns(group), logs.tolist(), strict=True))
        low, high = (x + y for x, y in zip(*ranges, strict=True))
        needed = np.any([values > 0 for values in price.values()], axis=0)
        found = []
        for i, log in enumerate(self._split(total, made, low, high)):
            if not needed[i]:
                found.append({})
                continue
            column = self._column(0.0, float(a[1].max() * b[1].max()))
            found.append({column: 1.0})
            self.products.append(Product(column, made[i], log, low, high))
            for x, y in ((a[1].min(), b[1].min()), (a[1].max(), b[1].max())):  # McCormick 1976
                row = {column: -1.0}
                _add(row, b[2][i], float(x))
                _add(row, a[2][i], float(y))
                _add(row, made[i], -float(x * y))
                self.below.append(row)
        return found

    def _column(self, low: float, high: float) -> int:
        self.lower.append(low)
        self.upper.append(high)
        return len(self.lower) - 1


def undominated(menu: Menu) -> np.ndarray:
    """`(n_levels,)` bool: False for a layer's choice if another does no more damage and costs no more in anything."""
    parts = [np.ones(len(choices.damage), dtype=bool) for choices in menu.groups]
    return np.concatenate([*parts, *(_undominated(menu, choices) for choices in menu.layers), np.empty(0, bool)])


def _undominated(menu: Menu, choices: LayerChoices) -> np.ndarray:
    prices = menu.prices
    own = np.ix_(choices.layers, choices.columns)
    terms = prices.product, prices.inward, prices.outward, prices.fixed
    tables = [table[name][own] for name in menu.bounds for table in terms]
    values = np.concatenate([choices.damage[None], *tables])
    keep = np.ones(len(choices.damage), dtype=bool)
    for level in range(len(keep)):
        better = (values <= values[:, level : level + 1]).all(axis=0) & keep
        better[level] = False
        keep[level] = not better.any()
    return keep


def _add(row: Row, other: Row, factor: float = 1.0) -> None:
    """Add a multiple of another row in place."""
    for column, value in other.items():
        row[column] = row.get(column, 0.0) + factor * value


def _scaled(row: Row, factor: float) -> Row:
    return {column: factor * value for column, value in row.items()}
