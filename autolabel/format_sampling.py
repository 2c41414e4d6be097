"""Random plans of one size in bytes that remove units and store what stays in few bits."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np

from autolabel.plan_sampling import PlanDraw, SampledPlans
from compress.allocator import Constraints
from compress.costs import CostTable
from compress.errors import BudgetError, CompressError
from compress.units import UnitTable

# Part of the plans that remove nothing, where bits alone meet the size.
_WHOLE = 0.25
# How strongly the bits of layers differ (standard deviation), drawn anew for every plan.
_LARGEST_SPREAD = 1.5


@dataclass(frozen=True, eq=False)
class FormattedPlans:
    """Plans of one network and one size in bytes.

    Attributes:
        plans: what they remove; `fraction` is of the bytes, bits counted.
        bits: `(n_plans, n_layers)` int64, bits of the weights of each layer unit, in their order.
    """

    plans: SampledPlans
    bits: np.ndarray


def bits_by_row(costs: CostTable, units: UnitTable, bits: np.ndarray) -> np.ndarray:
    """`(n_cost_layers,)` bits as `CostTable.total` takes them, from `(n_layers,)` of the layer units in their order."""
    own = np.zeros(len(units))
    own[units.kind == "layer"] = bits
    return np.where(costs.layer_unit >= 0, own[costs.layer_unit], 0.0)


def sample_formatted_plans(
    units: UnitTable, costs: CostTable, scores: Mapping[str, np.ndarray], sensitivity: np.ndarray,
    widths: Sequence[int], fraction: float, n_plans: int, *, seed: int = 0, constraints: Constraints | None = None,
    tolerance: float = 0.05,
) -> FormattedPlans:  # fmt: skip
    """Distinct random plans of as many bytes, from many units in few bits to few units in many bits.

    Units go as in `sample_plans`. Bits are drawn for each layer around a mean that is drawn for each plan; in half of
    the plans sensitive layers get more, see `guided_bits`.

    Args:
        units, costs: of one model.
        scores: name -> `(n_removable,)` importance of channels and heads, higher is more important.
        sensitivity: `(n_layers,)` positive: how much an error of the same size in each weight of a layer unit hurts.
        widths: numbers of bits that a layer may have.
        fraction: of the dense bytes (float32), in (0, 1).
        n_plans, seed, constraints, tolerance: as of `sample_plans`.

    Raises:
        BudgetError: if the smallest plan costs more than the fraction.
        CompressError: without widths.
    """
    offered = np.array(sorted(set(widths)))
    if not len(offered):
        raise CompressError("Plans of few bits need 'widths'. Got none.")
    draw = PlanDraw(units, costs, "weight_bytes", constraints or Constraints())
    n_layers, bound = int((units.kind == "layer").sum()), fraction * draw.dense
    nothing = np.zeros(len(units), dtype=bool)

    def rows(bits: np.ndarray) -> np.ndarray:
        return bits_by_row(costs, units, bits)

    least = draw.cost(draw.strictest(), rows(np.full(n_layers, offered[0])))
    if least > bound:
        raise BudgetError(
            f"No plan costs {fraction} of the dense bytes. The smallest costs {least / draw.dense:.4f}: take a larger "
            "fraction."
        )
    guided = guided_bits(sensitivity)
    rng = np.random.default_rng([seed, 13])
    found: dict[bytes, tuple[np.ndarray, np.ndarray, str, float]] = {}
    for attempt in range(20 * n_plans):
        if len(found) == n_plans:
            break
        by_sensitivity, whole = bool(rng.integers(0, 2)), rng.random() < _WHOLE
        wish = guided * by_sensitivity + rng.uniform(0, _LARGEST_SPREAD) * rng.standard_normal(n_layers)
        name, style = str(rng.choice(sorted(scores))), "layer" if attempt % 3 else "global"
        values = draw.values(scores[name], style, rng)
        mean = rng.uniform(offered[0], offered[-1])
        if whole:
            levels = np.linspace(offered[0] - np.ptp(wish), offered[-1] + np.ptp(wish), 200)
            fitting = [x for x in levels if draw.cost(nothing, rows(nearest_bits(wish + x, offered))) <= bound]
            if not fitting:
                continue
            bits, removed = nearest_bits(wish + fitting[-1], offered), nothing
        else:
            bits = nearest_bits(wish + mean, offered)
            removed = draw.descend(values, bound, rows(bits))
            # What units were too large to use up goes to layers that still can have more bits.
            for layer in rng.permutation(n_layers):
                higher, more = offered[offered > bits[layer]], bits.copy()
                more[layer] = higher[0] if len(higher) else bits[layer]
                if draw.cost(removed, rows(more)) <= bound:
                    bits = more
        reached = draw.cost(removed, rows(bits)) / draw.dense
        if fraction * (1 - tolerance) <= reached <= fraction:
            origin = f"{'whole' if whole else f'{name}:{style}'}/{'sensitive' if by_sensitivity else 'random'}"
            found.setdefault(removed.tobytes() + bits.tobytes(), (removed, bits, origin, reached))
    kept = list(found.values())
    return FormattedPlans(
        SampledPlans(
            np.array([x[0] for x in kept]).reshape(len(kept), len(units)),
            tuple(x[2] for x in kept),
            np.array([x[3] for x in kept]),
        ),
        np.array([x[1] for x in kept]).reshape(len(kept), n_layers),
    )


def nearest_bits(wish: np.ndarray, offered: Sequence[int] | np.ndarray) -> np.ndarray:
    """`(n_layers,)` int64: of the numbers offered, the nearest to each wish."""
    offered = np.asarray(offered)
    return offered[np.abs(wish[:, None] - offered).argmin(axis=1)].astype(np.int64)


def guided_bits(sensitivity: np.ndarray) -> np.ndarray:
    """`(n_layers,)` bits more than the mean that each layer should have by rate-distortion theory: the error of a
    uniform quantiser falls by four with each bit."""
    guided = 0.5 * np.log2(np.maximum(sensitivity, 1e-30))
    return guided - guided.mean()
