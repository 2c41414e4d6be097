"""What allocators do with a ledger: see that the budget can be met, step down into it, give back, write the plan."""

import math
from collections.abc import Mapping
from dataclasses import asdict, replace
from typing import Any

import numpy as np

from compress.allocator import Constraints
from compress.budget import Budget, cost_words
from compress.errors import BudgetError, CompressError
from compress.layer_choice import LayerChoice
from compress.layer_prices import ranks_of
from compress.ledger import Ledger, Savings
from compress.menu import Menu
from compress.number_format import NumberFormat
from compress.plan import CompressionPlan, LayerFormat
from compress.quantizer import FLOAT_BITS
from compress.strictest_plan import take_strictest

CLOSE = 0.99  # a bound counts as spent from this fraction on
_FREE = 1e-12  # damage that is counted for a harmless step, as a fraction of all damage on the menu


def require_nats(menu: Menu, allocator: str) -> None:
    """Raises CompressError if the scores are only an order: sums over groups would mean nothing."""
    if menu.scale != "nats":
        raise CompressError(
            f"The scores are an order within each group, and the allocator '{allocator}' adds them over groups. "
            "Use the allocator 'uniform', or scores whose scale is 'nats'."
        )


def feasible_budget(menu: Menu, budget: Budget) -> Budget:
    """The budget itself if some plan meets it, else the closest one: bounds are raised as little as needed."""
    ledger = Ledger(menu)
    take_strictest(ledger)
    least = ledger.exact_cost()
    dense = menu.costs.dense
    raised = {}
    for name, bound in menu.bounds.items():
        if least[name] > bound:
            fraction = getattr(budget, name) <= 1
            raised[name] = (
                min(1.0, math.ceil(least[name] / dense[name] * 1e4) / 1e4) if fraction else math.ceil(least[name])
            )
    return replace(budget, **raised)


def require_feasible(menu: Menu, budget: Budget, constraints: Constraints) -> None:
    """Raises BudgetError, with the closest feasible budget and what to loosen, if no plan meets the budget."""
    closest = feasible_budget(menu, budget)
    if closest == budget:
        return
    ledger = Ledger(menu)
    take_strictest(ledger)
    least = ledger.exact_cost()
    dense = menu.costs.dense
    lines = [
        f"The '{name}' parameter of Budget cannot be met: {getattr(budget, name)!r} allows {cost_words(bound)} of "
        f"{cost_words(dense[name])}, and the closest plan under the constraints needs {cost_words(least[name])} "
        f"({least[name] / dense[name]:.4f} of dense)."
        for name, bound in menu.bounds.items()
        if least[name] > bound
    ]
    terms = ", ".join(f"{name}={value!r}" for name, value in asdict(closest).items() if value is not None)
    raise BudgetError(f"{' '.join(lines)} Closest feasible: Budget({terms}). {_what_to_loosen(menu, constraints)}")


def _what_to_loosen(menu: Menu, constraints: Constraints) -> str:
    tips, units = [], menu.units
    if units.groups and constraints.floor > 0:
        tips.append(f"lower floor={constraints.floor}")
    if units.groups and any(constraints.floors.values()):
        tips.append(f"lower some of floors={dict(list(constraints.floors.items())[:3])}")
    if units.groups and constraints.round_to > 1:
        tips.append(f"lower round_to={constraints.round_to}")
    if constraints.pinned:
        tips.append(f"unpin some of {list(constraints.pinned)[:3]}")
    if constraints.max_bits_only and "weight_bytes" in menu.bounds:
        tips.append(f"free some of max_bits_only={list(constraints.max_bits_only)[:3]}")
    if menu.bounds.keys() - {"macs"} and all(c.bits.min() > 2 for c in menu.layers):
        tips.append("offer fewer bits (score the choices '4bit', '3bit' or '2bit')")
    if len(menu.groups) < len(units.groups):
        tips.append("score or free the groups of which nothing may go")
    loosen = f"Or loosen the constraints: {'; '.join(tips)}." if tips else "The constraints leave nothing to loosen."
    return loosen if units.groups else f"{units.why_nothing_goes()} {loosen}"


def descend(ledger: Ledger) -> None:
    """Take steps, the least damage for what it saves first, until every bound is met or no step is left.

    What a step saves is its exact marginal cost. Under several bounds, savings count as fractions of dense, weighed by
    how far each bound is exceeded, and only up to what is still needed.
    """
    menu = ledger.menu
    dense = menu.costs.dense
    total = sum(c.damage.max() for c in (*menu.groups, *menu.layers))
    least = _FREE * total if total > 0 else 1.0
    while min((slack := ledger.slack()).values(), default=0.0) < 0:
        group_damage, group_saved = ledger.group_steps(1)
        layer, level, format_damage, format_saved = ledger.formats()
        damage = np.concatenate([group_damage, format_damage])
        gain = np.zeros(len(damage))
        for name, left in slack.items():
            if left < 0:
                weight = -left / ledger.bounds[name] / dense[name]
                gain += weight * np.minimum(np.concatenate([group_saved[name], format_saved[name]]), -left)
        useful = ~np.isnan(damage) & (gain > 0) & _comes_closer(ledger, slack, group_saved, format_saved)
        if not useful.any():
            # A level that saves nothing by itself may stand before one that does.
            if np.isnan(group_damage).all():
                return
            ledger.set_group(int(best := np.nanargmin(group_damage)), int(ledger.group_level[best]) + 1)
            continue
        price = np.full(len(damage), np.inf)
        price[useful] = np.maximum(damage[useful], least) / gain[useful]
        best = int(np.argmin(price))
        if best < len(group_damage):
            ledger.set_group(best, int(ledger.group_level[best]) + 1)
        else:
            ledger.set_layer(int(layer[best - len(group_damage)]), int(level[best - len(group_damage)]))


def _comes_closer(ledger: Ledger, slack: Savings, group_saved: Savings, format_saved: Savings) -> np.ndarray:
    """Which steps lower the squared excess over all bounds: a layer must not go to and fro between two of them."""
    before, after = 0.0, 0.0
    for name, left in slack.items():
        saved = np.concatenate([group_saved[name], format_saved[name]])
        before += min(left / ledger.bounds[name], 0.0) ** 2
        after += np.minimum((left + saved) / ledger.bounds[name], 0.0) ** 2
    return after < before * (1 - 1e-12)


def give_back(ledger: Ledger) -> None:
    """Take back steps while they fit, the most damage for what is left of the bounds first."""
    while _step_back(ledger):
        pass


def _step_back(ledger: Ledger) -> bool:
    slack = ledger.slack()
    group_damage, group_saved = ledger.group_steps(-1)
    layer, level, format_damage, format_saved = ledger.formats()
    regained = -np.concatenate([group_damage, format_damage])
    wider = level < ledger.layer_level[layer]
    fits = ~np.isnan(regained) & (regained >= 0) & np.concatenate([np.ones(len(group_damage), dtype=bool), wider])
    price = np.zeros(len(regained))
    for name, left in slack.items():
        needed = -np.concatenate([group_saved[name], format_saved[name]])
        fits &= needed <= max(left, 0.0)
        price += np.maximum(needed, 0.0) / max(left, 1e-300)
    if not fits.any():
        return False
    worth = np.full(len(regained), -np.inf)
    worth[fits] = regained[fits] / np.maximum(price[fits], 1e-12)
    best = int(np.argmax(worth))
    if best < len(group_damage):
        ledger.set_group(best, int(ledger.group_level[best]) - 1)
    else:
        ledger.set_layer(int(layer[best - len(group_damage)]), int(level[best - len(group_damage)]))
    return True


def settle(ledger: Ledger) -> None:
    """Step down into the bounds, give back what fits, and see that the cost table itself agrees."""
    descend(ledger)
    give_back(ledger)
    if exceeds(ledger):
        ledger.bounds = {name: bound * (1 - 1e-9) for name, bound in ledger.bounds.items()}
        descend(ledger)
        give_back(ledger)
    if exceeds(ledger):
        take_strictest(ledger)


def exceeds(ledger: Ledger) -> bool:
    """Whether a bound of the menu is exceeded by the exact cost, however little."""
    cost = ledger.exact_cost()
    return any(cost[name] > bound for name, bound in ledger.menu.bounds.items())


def write_plan(
    ledger: Ledger, allocator: str, budget: Budget, constraints: Constraints, details: Mapping[str, Any]
) -> CompressionPlan:
    """The plan of the levels chosen so far, with predicted damage and exact cost.

    The provenance holds no times, so that equal inputs give equal files.
    """
    menu = ledger.menu
    cost = ledger.exact_cost()
    assert not exceeds(ledger), f"plan above its bounds {menu.bounds}: {cost}"
    taken = {c.name: c.choices[level] for c, level in zip(menu.layers, ledger.layer_level, strict=True)}
    provenance = {
        "allocator": allocator,
        "budget": asdict(budget),
        "bounds": dict(menu.bounds),
        "constraints": {k: list(v) if isinstance(v, tuple) else v for k, v in asdict(constraints).items()},
        "stopped_by": stopped_by(ledger, cost),
        "unscored_8bit_layers": menu.unscored,
        **details,
    }
    return CompressionPlan.removing(
        menu.units,
        [menu.units.ids[row] for row in np.flatnonzero(ledger.removed())],
        layer_formats=_formats(menu, taken),
        predicted_damage=ledger.raw_damage() if menu.scale == "nats" else None,
        predicted_cost={name: cost[name] for name in ("macs", "weight_bytes", *menu.bounds)},
        provenance=provenance,
    )


def _formats(menu: Menu, taken: Mapping[str, LayerChoice]) -> dict[str, LayerFormat]:
    costs = menu.costs
    rows = {name: row for row, name in enumerate(costs.layer_names)}
    found = {}
    for name, choice in taken.items():
        if choice != LayerChoice():
            rank = None if choice.rank is None else int(ranks_of(costs, choice)[rows[name]])
            found[name] = format_of(choice, rank, costs.number_format)
    return found


def format_of(choice: LayerChoice, rank: int | None, number_format: NumberFormat) -> LayerFormat:
    """What a plan says of a layer in this choice, which is not float32 alone.

    A choice without a scheme of its own is symmetric in plans: what all layers have in common is applied afterwards.

    Args:
        rank: of the layer's factors.
        number_format: what choices with a scheme have besides it.
    """
    scheme = {FLOAT_BITS: "float32", 16: "float16"}.get(choice.bits, "symmetric")
    found = LayerFormat(choice.bits, scheme, density=choice.density, rank=rank, rank_scheme=choice.rank_scheme)
    return found if choice.scheme is None else number_format.of(choice).applied(found)


def stopped_by(ledger: Ledger, cost: Mapping[str, float], step: str = "single step back") -> str:
    """Why the plan does not keep more; `step` is what the allocator would have to do for that.

    Names of bounds such as `"macs"` when these are spent to within 1 %; `"nothing left to keep"` when all
    that may stay as it is does; `"step size: ..."` when the smallest step back would exceed a bound.
    """
    bounds = ledger.menu.bounds
    spent = [name for name, bound in bounds.items() if cost[name] >= CLOSE * bound]
    if spent:
        return " and ".join(spent)
    if not ledger.group_level.any() and not ledger.layer_level.any():
        return "nothing left to keep"
    return f"step size: no {step} fits into {' and '.join(bounds)}"
