"""Random plans of one size: what plan labels are measured on."""

from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np

from compress.allocator import Constraints
from compress.costs import CostTable
from compress.errors import BudgetError, CompressError
from compress.menu import pinned_units
from compress.units import UnitTable

SIZES = ("macs", "weight_bytes")
# How strongly groups differ (standard deviation of the logarithm of a group's weight), drawn anew for every plan.
_LARGEST_SPREAD = 1.5
# The same for the units of a group: with it a criterion's order is followed loosely.
_LARGEST_JITTER = 1.0


@dataclass(frozen=True, eq=False)
class SampledPlans:
    """Plans of one network and one size.

    Attributes:
        removed: `(n_plans, n_units)` bool.
        origin: how each was drawn: the score that ordered its units, and `layer` (kept fractions of groups at random)
            or `global` (one threshold over all units), e.g. `"taylor:global"`.
        fraction: `(n_plans,)` its cost as a part of the dense network's.
    """

    removed: np.ndarray
    origin: tuple[str, ...]
    fraction: np.ndarray

    def __len__(self) -> int:
        return len(self.removed)


def sample_plans(
    units: UnitTable,
    costs: CostTable,
    scores: Mapping[str, np.ndarray],
    size: str,
    fraction: float,
    n_plans: int,
    *,
    seed: int = 0,
    constraints: Constraints | None = None,
    tolerance: float = 0.03,
) -> SampledPlans:
    """Distinct random plans that cost the same, as different from one another as plans can sensibly be.

    Every plan follows the order of one of the scores, drawn at random and followed loosely, over groups whose shares
    are drawn at random: either kept fractions of groups, or a threshold over scores.

    Args:
        units, costs: of one model.
        scores: name -> `(n_removable,)` importance of channels and heads, higher is more important.
        size: `"macs"` or `"weight_bytes"`: what is held fixed.
        fraction: of the dense cost, in (0, 1).
        n_plans: how many are wanted; fewer come back where there are no more.
        seed: of everything random.
        constraints: `floor` and `pinned` (whole groups) are respected.
        tolerance: how far below the fraction a plan may cost, as a part of it; a plan beyond it is drawn again.

    Raises:
        BudgetError: if the smallest plan costs more than the fraction.
        CompressError: for an unknown size or a score that is not finite.
    """
    if size not in SIZES:
        raise CompressError(f"The 'size' parameter of sample_plans must be one of {SIZES}. Got {size!r}.")
    for name, values in scores.items():
        if not np.isfinite(values).all():
            raise CompressError(f"The 'scores' parameter of sample_plans must be finite. {name!r} is not.")
    draw = PlanDraw(units, costs, size, constraints or Constraints())
    bound = fraction * draw.dense
    if draw.cost(draw.strictest()) > bound:
        least = draw.cost(draw.strictest()) / draw.dense
        raise BudgetError(f"No plan costs {fraction} of the dense {size}. The smallest costs {least:.4f}.")
    rng = np.random.default_rng([seed, 7])
    found: dict[bytes, tuple[np.ndarray, str, float]] = {}
    for attempt in range(12 * n_plans):
        if len(found) == n_plans:
            break
        name = str(rng.choice(sorted(scores)))
        style = "layer" if attempt % 3 else "global"
        removed = draw.descend(draw.values(scores[name], style, rng), bound)
        reached = draw.cost(removed) / draw.dense
        if reached >= fraction * (1 - tolerance):
            found.setdefault(removed.tobytes(), (removed, f"{name}:{style}", reached))
    kept = list(found.values())
    mask = np.array([plan for plan, _, _ in kept]).reshape(len(kept), len(units))
    return SampledPlans(mask, tuple(origin for _, origin, _ in kept), np.array([reached for _, _, reached in kept]))


class PlanDraw:
    """One network at one size: which units may go, and what a mask costs.

    Args:
        units, costs: of one model.
        size: `"macs"` or `"weight_bytes"`.
        constraints: `floor`, `floors` and `pinned` are respected; of a group with a pinned unit everything stays.

    Raises:
        CompressError: for constraints that name what does not exist, or `round_to` above 1.
    """

    def __init__(self, units: UnitTable, costs: CostTable, size: str, constraints: Constraints) -> None:
        self.units, self.costs, self.place = units, costs, SIZES.index(size)
        self.dense = (costs.dense_macs, costs.dense_weight_bytes)[self.place]
        self.removable = np.flatnonzero(units.removable)
        names, self.group = np.unique(units.group[self.removable].astype(str), return_inverse=True)
        self.sizes = np.bincount(self.group)
        own = np.array([constraints.floor_of(name) for name in names])
        floors = np.maximum(np.ceil(own * self.sizes), 1).astype(int)
        unknown = sorted({*constraints.floors} - set(names))
        if unknown or constraints.round_to > 1:
            raise CompressError(
                "Plans are drawn with floors of groups that exist, and round_to=1. Got "
                f"{f'the group {unknown[0]!r}' if unknown else f'round_to={constraints.round_to}'}."
            )
        # A group is drawn as a whole: where some of it must stay, all of it does.
        rows = pinned_units(units, costs, constraints.pinned)[self.removable]
        pinned = np.bincount(self.group, rows, minlength=len(names)) > 0
        self.floors = np.where(pinned, self.sizes, floors)

    def cost(self, removed: np.ndarray, bits: np.ndarray | None = None) -> float:
        """What a mask costs, in the unit of the size; `bits` as in `CostTable.total`."""
        return self.costs.total(removed, bits)[self.place]

    def strictest(self) -> np.ndarray:
        """The mask that removes all that may go."""
        return self._mask(self._order(np.arange(len(self.removable), dtype=np.float64)))

    def attainable(self, fraction: float, bits: np.ndarray | None = None) -> float:
        """The fraction of the dense cost; where most of a network must stay (a recurrent layer), of what may go.

        Args:
            fraction: in (0, 1).
            bits: of the cheapest plan, as in `CostTable.total`.
        """
        least = self.cost(self.strictest(), bits) / self.dense
        return least + fraction * (1 - least) if fraction < 1.1 * least else fraction

    def values(self, score: np.ndarray, style: str, rng: np.random.Generator) -> np.ndarray:
        """`(n_removable,)` positive values drawn at random; those with the smallest go first."""
        spread, jitter = rng.uniform(0, _LARGEST_SPREAD), rng.uniform(0, _LARGEST_JITTER) * rng.integers(0, 2)
        share = np.exp(spread * rng.standard_normal(len(self.sizes)))[self.group]
        noise = np.exp(jitter * rng.standard_normal(len(score)))
        if style == "global":
            positive = np.maximum(score, 1e-9 * max(float(score.max(initial=0.0)), 1e-30))
            if rng.integers(0, 2):
                mean = np.bincount(self.group, positive) / self.sizes
                positive = positive / mean[self.group]
            return positive * share * noise
        shifted = score - score.min(initial=0.0)
        loose = (shifted + 1e-9 * max(float(shifted.max(initial=0.0)), 1e-30)) * noise
        return share / self.rank_from_top(loose, rng.random(len(score)))

    def rank_from_top(self, score: np.ndarray, ties: np.ndarray | None = None) -> np.ndarray:
        """`(n_removable,)` rank of each unit in its group in (0, 1], 1 for the least important.

        A threshold over share / rank keeps the fraction `share` of every group, up to a common factor.
        """
        order = np.lexsort((np.zeros(len(score)) if ties is None else ties, -score, self.group))
        starts = np.concatenate([[0], np.cumsum(self.sizes)[:-1]])
        rank = np.empty(len(score))
        rank[order] = np.arange(len(score)) - starts[self.group[order]] + 1
        return rank / self.sizes[self.group]

    def _order(self, values: np.ndarray) -> np.ndarray:
        """Removable units in the order in which they go; the best of each group, as many as its floor, never do."""
        ordered = np.argsort(values, kind="stable")
        from_top = np.empty(len(values), dtype=int)
        best_first = ordered[::-1]
        grouped = best_first[np.argsort(self.group[best_first], kind="stable")]
        starts = np.concatenate([[0], np.cumsum(self.sizes)[:-1]])
        from_top[grouped] = np.arange(len(values)) - starts[self.group[grouped]]
        return ordered[from_top[ordered] >= self.floors[self.group[ordered]]]

    def _mask(self, gone: np.ndarray) -> np.ndarray:
        removed = np.zeros(len(self.units), dtype=bool)
        removed[self.removable[gone]] = True
        return removed

    def descend(self, values: np.ndarray, bound: float, bits: np.ndarray | None = None) -> np.ndarray:
        """The mask of the fewest units, in order, that costs no more than `bound`; of all if none is that cheap."""
        order = self._order(values)
        low, high = 0, len(order)
        while low < high:
            middle = (low + high) // 2
            if self.cost(self._mask(order[:middle]), bits) <= bound:
                high = middle
            else:
                low = middle + 1
        return self._mask(order[:low])
