"""The running account of a plan in the making: its exact cost, and what each next step would save."""

import numpy as np

from compress.menu import Menu

_ROUNDING = 1e-10  # of sums updated step by step; `exact_cost` has the last word

Savings = dict[str, np.ndarray]


class Ledger:
    """Levels chosen so far, with their cost.

    The cost of a layer is a product of what stays of its inputs and of its outputs, so what a step saves depends on all
    steps before it. Both are kept exact: each layer's kept shares are updated at every step, and savings are evaluated
    for all steps at once over the few layers each of them touches.

    Attributes:
        menu: what may be chosen.
        bounds: absolute upper bounds by name, at first those of the menu.
        group_level: `(n_groups,)` chosen level of each group; 0 keeps all.
        layer_level: `(n_formats,)` chosen level of each layer with a format; 0 is the widest offered.
    """

    def __init__(self, menu: Menu) -> None:
        self.menu = menu
        self.bounds = dict(menu.bounds)
        n_layers = len(menu.costs.layer_names)
        self.group_level = np.zeros(len(menu.groups), dtype=np.int64)
        self.layer_level = np.zeros(len(menu.layers), dtype=np.int64)
        self._kept_in, self._kept_out = np.ones(n_layers), np.ones(n_layers)
        self._column = np.zeros(n_layers, dtype=np.int64)
        for choices in menu.layers:
            self._column[choices.layers] = choices.columns[0]
        touched = [len(c.layers) for c in menu.groups]
        self._start = np.concatenate([[0], np.cumsum(touched)]).astype(np.int64)
        self._touch_group = np.repeat(np.arange(len(touched)), np.array(touched, dtype=np.int64))
        self._touch_layer = _joined([c.layers for c in menu.groups], np.int64)
        n_touched = len(self._touch_layer)
        self._step_damage = {d: np.full(len(touched), np.nan) for d in (1, -1)}
        self._step_gone = {d: (np.zeros(n_touched), np.zeros(n_touched)) for d in (1, -1)}
        for group in range(len(touched)):
            self._look_around(group)
        self._list_formats()

    def cost(self) -> dict[str, float]:
        """Name -> cost of the levels chosen so far."""
        every = np.arange(len(self._column))
        found = self._cost(every, self._kept_in, self._kept_out, self._column)
        return {name: float(values.sum()) for name, values in found.items()}

    def slack(self) -> dict[str, float]:
        """What may still be spent of each bound; negative where it is exceeded."""
        cost = self.cost()
        return {name: bound * (1 + _ROUNDING) - cost[name] for name, bound in self.bounds.items()}

    def damage(self) -> float:
        """Sum of the scores spent, negative ones counted as 0: what seems to help is free, never a credit."""
        return self._spent("damage")

    def raw_damage(self) -> float:
        """Sum of the scores spent, as they are."""
        return self._spent("raw_damage")

    def _spent(self, which: str) -> float:
        pairs = [*zip(self.menu.groups, self.group_level, strict=True),
                 *zip(self.menu.layers, self.layer_level, strict=True)]  # fmt: skip
        return float(sum(getattr(choices, which)[level] for choices, level in pairs))

    def set_group(self, group: int, level: int) -> None:
        """Let a group be at this level."""
        choices, old = self.menu.groups[group], self.group_level[group]
        self._kept_in[choices.layers] += choices.in_gone[old] - choices.in_gone[level]
        self._kept_out[choices.layers] += choices.out_gone[old] - choices.out_gone[level]
        self.group_level[group] = level
        self._look_around(group)

    def set_layer(self, layer: int, level: int) -> None:
        """Let a layer be stored at this level."""
        choices = self.menu.layers[layer]
        self._column[choices.layers] = choices.columns[level]
        self.layer_level[layer] = level
        self._format_now[layer] = choices.damage[level]

    def set_levels(self, group_level: np.ndarray, layer_level: np.ndarray) -> None:
        """Take all these levels."""
        for group in np.flatnonzero(group_level != self.group_level):
            self.set_group(int(group), int(group_level[group]))
        for layer in np.flatnonzero(layer_level != self.layer_level):
            self.set_layer(int(layer), int(layer_level[layer]))

    def levels(self) -> tuple[np.ndarray, np.ndarray]:
        """`(group_level, layer_level)`, copies."""
        return self.group_level.copy(), self.layer_level.copy()

    def group_steps(self, direction: int) -> tuple[np.ndarray, Savings]:
        """`(damage, saved)` of one more level (`direction` 1) or one less (-1) of each group, `(n_groups,)` each.

        Differences, positive for what is added and for what is saved; damage is NaN where there is no such level.
        """
        gone_in, gone_out = self._step_gone[direction]
        damage = self._step_damage[direction]
        return damage, self._saved(self._touch_group, self._touch_layer, gone_in, gone_out, len(damage))

    def group_levels(self, group: int) -> Savings:
        """What each level of one group would save against its present one, `(n_levels,)`, all else as it is."""
        choices, level = self.menu.groups[group], self.group_level[group]
        n_levels = len(choices.removed)
        moves = np.repeat(np.arange(n_levels), len(choices.layers))
        return self._saved(moves, np.tile(choices.layers, n_levels), (choices.in_gone - choices.in_gone[level]).ravel(),
                           (choices.out_gone - choices.out_gone[level]).ravel(), n_levels)  # fmt: skip

    def formats(self) -> tuple[np.ndarray, np.ndarray, np.ndarray, Savings]:
        """`(layer, level, damage, saved)`, one row for each format of each layer, against the format it has now."""
        layer = self._pair_layer
        kept_in, kept_out = self._kept_in[layer], self._kept_out[layer]
        before = self._cost(layer, kept_in, kept_out, self._column[layer])
        after = self._cost(layer, kept_in, kept_out, self._pair_column)
        n_moves = len(self._format_layer)
        saved = {name: np.bincount(self._pair_move, before[name] - after[name], n_moves) for name in before}
        damage = self._format_damage - self._format_now[self._format_layer]
        return self._format_layer, self._format_level, damage, saved

    def removed(self) -> np.ndarray:
        """`(n_units,)` bool over the unit table: what is removed so far."""
        mask = np.zeros(len(self.menu.units), dtype=bool)
        for choices, level in zip(self.menu.groups, self.group_level, strict=True):
            mask[choices.rows[: choices.removed[level]]] = True
        return mask

    def exact_cost(self) -> dict[str, float]:
        """The cost as the cost table itself gives it, free of rounding on the way."""
        mask = np.zeros(len(self.menu.units), dtype=bool)
        mask[self.menu.columns] = self.removed()
        prices, costs = self.menu.prices, self.menu.costs
        return {name: prices.total(name, costs, mask, self._column) for name in prices.product}

    def _saved(
        self, move: np.ndarray, layer: np.ndarray, gone_in: np.ndarray, gone_out: np.ndarray, n_moves: int
    ) -> Savings:
        kept_in, kept_out, column = self._kept_in[layer], self._kept_out[layer], self._column[layer]
        before = self._cost(layer, kept_in, kept_out, column)
        after = self._cost(layer, kept_in - gone_in, kept_out - gone_out, column)
        return {name: np.bincount(move, before[name] - after[name], n_moves) for name in before}

    def _cost(self, layer: np.ndarray, kept_in: np.ndarray, kept_out: np.ndarray, column: np.ndarray) -> Savings:
        """Every cost of a selection of layers in any order, with repeats."""
        prices = self.menu.prices
        return {name: prices.cost(name, layer, kept_in, kept_out, column) for name in prices.product}

    def _look_around(self, group: int) -> None:
        """Note what one level more and one less of this group mean."""
        choices, level = self.menu.groups[group], self.group_level[group]
        where = slice(self._start[group], self._start[group + 1])
        for direction in (1, -1):
            target = level + direction
            exists = 0 <= target < len(choices.removed)
            target = target if exists else level
            gone_in, gone_out = self._step_gone[direction]
            gone_in[where] = choices.in_gone[target] - choices.in_gone[level]
            gone_out[where] = choices.out_gone[target] - choices.out_gone[level]
            self._step_damage[direction][group] = choices.damage[target] - choices.damage[level] if exists else np.nan

    def _list_formats(self) -> None:
        layers = self.menu.layers
        self._format_layer = np.repeat(np.arange(len(layers)), np.array([len(c.bits) for c in layers], dtype=np.int64))
        self._format_level = _joined([np.arange(len(c.bits)) for c in layers], np.int64)
        self._format_damage = _joined([c.damage for c in layers], np.float64)
        self._format_now = np.array([c.damage[0] for c in layers])
        times = np.array([len(layers[i].layers) for i in self._format_layer], dtype=np.int64)
        self._pair_move = np.repeat(np.arange(len(times)), times)
        self._pair_layer = _joined([layers[i].layers for i in self._format_layer], np.int64)
        self._pair_column = _joined([c.columns for c in layers], np.int64)[self._pair_move]


def _joined(arrays: list[np.ndarray], dtype: type) -> np.ndarray:
    return np.concatenate(arrays) if arrays else np.empty(0, dtype=dtype)
