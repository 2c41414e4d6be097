"""Searches plans of one size with a plan labeler: hundreds are summarised and judged, none is run."""

from collections.abc import Callable, Mapping
from dataclasses import dataclass

import numpy as np

from autolabel.plan_labeler import PlanLabeler
from autolabel.plan_sampling import PlanDraw, sample_plans
from autolabel.plan_summary import PlanSummarizer
from compress.allocator import Constraints
from compress.errors import BudgetError

# Shares of groups are multiplied by up to about e to this power when a plan is changed.
_STEP = 0.5


@dataclass(frozen=True, eq=False)
class FoundPlan:
    """The best plan of a search.

    Attributes:
        removed: `(n_units,)` bool.
        score, spread: what the labeler says of it, among random plans of the same size (0 is the middle, lower better).
        n_judged: plans that were judged on the way.
        history: best score after every round.
    """

    removed: np.ndarray
    score: float
    spread: float
    n_judged: int
    history: tuple[float, ...]


@dataclass(frozen=True)
class PlanSearch:
    """An evolutionary search over the shares that groups keep and the criterion that orders each group's units.

    The labeler is asked for a pessimistic score, its mean plus `caution` standard deviations over its ensemble: a
    search finds the plans that a labeler is wrong about, and there its members disagree.

    Args:
        population: plans that live on after each round.
        rounds, children: how many rounds, and new plans in each.
        caution: see above.
        reference: random plans that all others are compared with.
        seed: of everything random.
    """

    population: int = 24
    rounds: int = 12
    children: int = 72
    caution: float = 1.0
    reference: int = 60
    seed: int = 0

    def run(
        self, summarizer: PlanSummarizer, labeler: PlanLabeler, size: str, fraction: float,
        constraints: Constraints | None = None, on_round: Callable[[int, int], None] | None = None,
        orders: Mapping[str, np.ndarray] | None = None,
    ) -> FoundPlan:  # fmt: skip
        """The best plan that costs at most `fraction` of the dense network.

        `orders` are more importances, `(n_removable,)`, that may order the units of a group; a labeler's, for instance.

        Raises:
            BudgetError: if no plan does.
        """
        constraints = constraints or Constraints()
        units, costs = summarizer.statistics.units, summarizer.costs
        scores = {**summarizer.scores, **(orders or {})}
        summarizer.expect(orders or {})
        random = sample_plans(units, costs, summarizer.scores, size, fraction, self.reference, seed=self.seed,
                              constraints=constraints)  # fmt: skip
        if not len(random):
            raise BudgetError(
                f"No random plan comes near {fraction:.3g} of the dense {size}, which a search compares its plans "
                "with: units are few and large. Take an allocator that adds damages."
            )
        known = summarizer.summarize(random.removed)
        draw = PlanDraw(units, costs, size, constraints)
        bound = fraction * draw.dense
        names = sorted(scores)
        ranks = np.stack([draw.rank_from_top(scores[name]) for name in names])
        rng = np.random.default_rng([self.seed, 11])
        n_groups = len(draw.sizes)
        shares = np.exp(0.5 * rng.standard_normal((self.children, n_groups)))
        shares[: len(names)] = 1.0
        order = np.repeat(rng.integers(0, len(names), self.children)[:, None], n_groups, axis=1)
        order[: len(names)] = np.arange(len(names))[:, None]
        best: dict[bytes, tuple[float, float, np.ndarray, np.ndarray, np.ndarray]] = {}
        history, judged = [], 0
        for number in range(self.rounds):
            masks = np.stack([
                draw.descend(share[draw.group] / ranks[which[draw.group], np.arange(ranks.shape[1])], bound)
                for share, which in zip(shares, order, strict=True)
            ])  # fmt: skip
            score, spread = labeler.predict(summarizer.summarize(masks), known)
            judged += len(masks)
            for i, mask in enumerate(masks):
                rated = float(score[i] + self.caution * spread[i])
                best.setdefault(mask.tobytes(), (rated, float(spread[i]), mask, shares[i], order[i]))
            alive = sorted(best.values(), key=lambda found: found[0])[: self.population]
            best = {found[2].tobytes(): found for found in alive}
            history.append(alive[0][0])
            shares, order = self._children(alive, rng, len(names))
            if on_round is not None:
                on_round(number + 1, self.rounds)
        rated, spread_, mask, _, _ = alive[0]
        return FoundPlan(mask, rated - self.caution * spread_, spread_, judged, tuple(history))

    def _children(self, alive: list, rng: np.random.Generator, n_orders: int) -> tuple[np.ndarray, np.ndarray]:
        """Shares and orders of new plans: two parents each, mixed group by group, then changed a little."""
        parents = rng.integers(0, len(alive), (self.children, 2))
        mother = np.stack([alive[i][3] for i in parents[:, 0]]), np.stack([alive[i][4] for i in parents[:, 0]])
        father = np.stack([alive[i][3] for i in parents[:, 1]]), np.stack([alive[i][4] for i in parents[:, 1]])
        mixed = rng.random(mother[0].shape) < 0.3
        shares = np.where(mixed, father[0], mother[0])
        order = np.where(mixed, father[1], mother[1])
        changed = rng.random(shares.shape) < 0.4
        shares = shares * np.exp(np.where(changed, _STEP * rng.standard_normal(shares.shape), 0.0))
        switched = rng.random(shares.shape) < 0.1
        return shares, np.where(switched, rng.integers(0, n_orders, shares.shape), order)
