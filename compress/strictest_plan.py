"""The plan that comes closest to all bounds at once: whether a budget can be met at all."""

import numpy as np
from scipy.optimize import LinearConstraint, milp
from scipy.sparse import csr_array, hstack

from compress.ledger import Ledger

_SECOND = 1e-3  # weight of each excess beside the largest
_MARGINS = (0.0, 1e-6)  # parts of the bounds that the solver's rounding may take
_TIME_LIMIT_S = 30.0


def take_strictest(ledger: Ledger) -> None:
    """Take the plan whose largest relative excess over a bound is the least; one within all bounds if there is any.

    The smallest choice of every group costs the least in everything. With these taken costs of layers add, so that
    choices that are cheap in different bounds (ranks save MACs, bits save bytes) make a linear problem in whole
    numbers, which is solved. Under one bound, or none, this is the plan that costs the least.
    """
    for group, choices in enumerate(ledger.menu.groups):
        ledger.set_group(group, len(choices.removed) - 1)
    layer, level, _, saved = ledger.formats()
    bounds = ledger.menu.bounds
    n_layers = len(ledger.menu.layers)
    # (n_bounds, n_entries) cost of each choice against the present one, in units of the bound.
    cost = np.array([-saved[name] / bound for name, bound in bounds.items()]).reshape(len(bounds), len(layer))
    total = cost.sum(axis=0)
    rows = [np.flatnonzero(layer == index) for index in range(n_layers)]
    chosen = np.array([own[np.argmin(total[own])] for own in rows], dtype=np.int64)
    _take(ledger, layer, level, chosen)
    if all((cost[:, own].min(axis=1) >= cost[:, entry]).all() for own, entry in zip(rows, chosen, strict=True)):
        return
    found = [(_excess(ledger), chosen)]
    now = np.array([ledger.exact_cost()[name] / bound for name, bound in bounds.items()])
    fixed = now - cost[:, chosen].sum(axis=1)
    for margin in _MARGINS:
        if found[-1][0] > 0 and (answer := _solve(layer, cost, 1.0 - margin - fixed, n_layers)) is not None:
            _take(ledger, layer, level, answer)
            found.append((_excess(ledger), answer))
    _take(ledger, layer, level, min(found, key=lambda pair: pair[0])[1])


def _take(ledger: Ledger, layer: np.ndarray, level: np.ndarray, entries: np.ndarray) -> None:
    for entry in entries:
        ledger.set_layer(int(layer[entry]), int(level[entry]))


def _excess(ledger: Ledger) -> float:
    """The largest relative excess over a bound; 0 within all."""
    cost = ledger.exact_cost()
    return max(0.0, *(cost[name] / bound - 1.0 for name, bound in ledger.menu.bounds.items()))


def _solve(layer: np.ndarray, cost: np.ndarray, limit: np.ndarray, n_layers: int) -> np.ndarray | None:
    """One entry of each layer; None if the time was over before there was any answer."""
    n_bounds, n_entries = cost.shape
    one_each = csr_array((np.ones(n_entries), (layer, np.arange(n_entries))), shape=(n_layers, n_entries))
    # Columns after the entries: the excess over each bound, and the largest of them.
    eye = np.eye(n_bounds)
    within = hstack([csr_array(cost), csr_array(-eye), csr_array((n_bounds, 1))])
    largest = hstack([csr_array((n_bounds, n_entries)), csr_array(eye), csr_array(-np.ones((n_bounds, 1)))])
    n = n_entries + n_bounds + 1
    upper = np.where(np.arange(n) < n_entries, 1.0, np.inf)
    result = milp(
        np.concatenate([np.zeros(n_entries), np.full(n_bounds, _SECOND), [1.0]]),
        integrality=(np.arange(n) < n_entries).astype(int), bounds=(0, upper),
        constraints=[
            LinearConstraint(hstack([one_each, csr_array((n_layers, n_bounds + 1))]), 1, 1),
            LinearConstraint(within, -np.inf, limit), LinearConstraint(largest, -np.inf, 0),
        ],
        options={"time_limit": _TIME_LIMIT_S, "mip_rel_gap": 1e-4},
    )  # fmt: skip
    if result.x is None:
        return None
    picked = np.flatnonzero(result.x[:n_entries] > 0.5)
    return picked[np.argsort(layer[picked], kind="stable")]
