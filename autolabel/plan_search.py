"""Searches plans of one size with a plan labeler: thousands are summarised and judged; none is run, or a few are."""

import logging
from collections.abc import Callable, Collection, Iterator, Mapping
from dataclasses import dataclass, replace

import numpy as np

from autolabel.few_shot import AdaptedPlanLabeler
from autolabel.format_sampling import nearest_bits, sample_formatted_plans
from autolabel.format_summary import FormatSummarizer
from autolabel.plan_labeler import PlanLabeler
from autolabel.plan_sampling import PlanDraw, sample_plans
from autolabel.plan_summary import PlanSummarizer, PlanSummary
from compress.allocator import Constraints
from compress.costs import CostTable
from compress.errors import BudgetError, CompressError
from compress.menu import pinned_units
from compress.units import UnitTable

_LOG = logging.getLogger(__name__)
# Of searches that measure: one number more where they find others.
MEASURED_VERSION = 1
# Shares of groups are multiplied by up to about e to this power when a plan is changed.
_STEP = 0.5
# Bits that a layer's wish is changed by (standard deviation), and that founders differ by.
_BIT_STEP, _BIT_SPREAD = 1.0, 1.0
# Plans that are measured at most before the labeler is corrected, how many then have children, for how many rounds.
_BATCH, _PARENTS, _ROUNDS = 8, 12, 3
# Measured plans that correct a labeler at the least.
_FEWEST = 2


@dataclass(frozen=True, eq=False)
class FoundPlan:
    """The best plan of a search.

    Attributes:
        removed: `(n_units,)` bool.
        score, spread: what the labeler says of it, among random plans of the same size (0 is the middle, lower better).
        n_judged: plans that were judged on the way.
        history: best score after every round before plans were measured.
        losses: of the plans that were measured, in this order; empty where none was.
        bits: `(n_layers,)` of the layer units, in their order, where these were searched too.
    """

    removed: np.ndarray
    score: float
    spread: float
    n_judged: int
    history: tuple[float, ...]
    losses: tuple[float, ...] = ()
    bits: np.ndarray | None = None


@dataclass(frozen=True, eq=False)
class _Genes:
    """What plans are made from.

    Attributes:
        shares, order: `(n_plans, n_groups)` how much each group keeps relative to others, and which importance orders
            it.
        wish: `(n_plans, n_layers)` bits that each layer would have if any number were offered; no layers where weights
            stay floats.
    """

    shares: np.ndarray
    order: np.ndarray
    wish: np.ndarray

    def __iter__(self) -> Iterator[tuple[np.ndarray, np.ndarray, np.ndarray]]:
        return zip(self.shares, self.order, self.wish, strict=True)


@dataclass(frozen=True, eq=False)
class _Candidate:
    """A plan and what it was made from.

    Attributes:
        mask: `(n_units,)` bool, what it removes.
        bits: `(n_layers,)` of the layer units.
        shares, order, wish: see `_Genes`.
        score, spread: what the judge said of it.
    """

    mask: np.ndarray
    bits: np.ndarray
    shares: np.ndarray
    order: np.ndarray
    wish: np.ndarray
    score: float
    spread: float

    @property
    def key(self) -> bytes:
        return self.mask.tobytes() + self.bits.tobytes()


@dataclass(frozen=True)
class PlanSearch:
    """An evolutionary search over the shares that groups keep and the criterion that orders each group's units.

    The labeler is asked for a pessimistic score, its mean plus `caution` standard deviations over its ensemble: a
    search finds the plans that a labeler is wrong about, and there its members disagree.

    With `measured` plans it goes on: those that the labeler likes best, also among the plans of single criteria, are
    repaired and measured. After every quarter of them, or every eighth plan, what they lost corrects the labeler (see
    `AdaptedPlanLabeler`), and their children are judged anew. The plan that lost least is taken.

    Args:
        population: plans that live on after each round.
        rounds, children: how many rounds, and new plans in each.
        caution: see above.
        reference: random plans that all others are compared with.
        measured: plans that are measured at most.
        seed: of everything random.

    Raises:
        CompressError: if one plan is to be measured, or less than none.
    """

    population: int = 24
    rounds: int = 24
    children: int = 100
    caution: float = 1.0
    reference: int = 60
    measured: int = 0
    seed: int = 0

    def __post_init__(self) -> None:
        if self.measured < 0 or self.measured == 1:
            raise CompressError(f"PlanSearch measures no plan, or at least 2. Got measured={self.measured}.")

    def run(
        self, summarizer: PlanSummarizer, labeler: PlanLabeler, size: str, fraction: float,
        constraints: Constraints | None = None, on_round: Callable[[int, int], None] | None = None,
        orders: Mapping[str, np.ndarray] | None = None, measure: Callable[[np.ndarray], float] | None = None,
        formats: FormatSummarizer | None = None,
    ) -> FoundPlan:  # fmt: skip
        """The best plan that costs at most `fraction` of the dense network.

        Args:
            summarizer, labeler: who judges, and of which network.
            size, fraction, constraints: of the plans.
            on_round: called with the rounds done, or rounds and measured plans, and all of them.
            orders: more importances, `(n_removable,)`, that may order the units of a group; a labeler's, for instance.
            measure: gives what a plan, `(n_units,)` bool, loses after its repair. Needed where plans are measured.
            formats: with it the bits of layers are searched too, at a size in bytes; no plan is measured then.

        Raises:
            BudgetError: if no plan does.
        """
        if self.measured and measure is None:
            raise CompressError("A search that measures plans needs the 'measure' parameter.")
        if formats is not None and (self.measured or size != "weight_bytes"):
            raise CompressError(
                "A search of units and bits measures no plans, and its size is weight_bytes. Got "
                f"measured={self.measured}, size={size!r}."
            )
        constraints = constraints or Constraints()
        units, costs = summarizer.statistics.units, summarizer.costs
        if formats is not None:
            _check_formats(formats, units, costs, constraints, fraction)
        scores = {**summarizer.scores, **(orders or {})}
        summarizer.expect(orders or {})
        if formats is None:
            random = sample_plans(units, costs, summarizer.scores, size, fraction, self.reference, seed=self.seed,
                                  constraints=constraints)  # fmt: skip
        else:
            drawn = sample_formatted_plans(
                units, costs, summarizer.scores, formats.sensitivity, formats.widths, fraction, self.reference,
                seed=self.seed, constraints=constraints,
            )  # fmt: skip
            random = drawn.plans
        if not len(random):
            raise BudgetError(
                f"No random plan comes near {fraction:.3g} of the dense {size}, which a search compares its plans "
                "with: units are few and large. Take an allocator that adds damages."
            )
        known = summarizer.summarize(random.removed)
        if formats is not None:
            known = formats.extend(known, random.removed, drawn.bits)
        draw = PlanDraw(units, costs, size, constraints)
        breeding = _Breeding(self, summarizer, known, draw, fraction * draw.dense, scores, formats)
        whole, history = self.rounds + self.measured, []
        genes = breeding.founders()
        alive: list[_Candidate] = []
        for number in range(self.rounds):
            alive = breeding.survivors(labeler, genes, alive)
            if not alive:
                raise BudgetError(f"No plan of the search costs {fraction:.3g} of the dense {size}.")
            history.append(alive[0].score + self.caution * alive[0].spread)
            genes = breeding.children(alive)
            if on_round is not None:
                on_round(number + 1, whole)
        best, losses = alive[0], []
        if measure is not None and self.measured:

            def measured(mask: np.ndarray) -> float:
                losses.append(measure(mask))
                if on_round is not None:
                    on_round(self.rounds + len(losses), whole)
                return losses[-1]

            best = self._least_measured(breeding, labeler, alive, measured)
            # In the units of plans that were never measured.
            score, spread = labeler.predict(summarizer.summarize(best.mask[None]), breeding.known)
            best = replace(best, score=float(score[0]), spread=float(spread[0]))
        return FoundPlan(
            best.mask, best.score, best.spread, breeding.n_judged, tuple(history), tuple(losses),
            None if formats is None else best.bits,
        )  # fmt: skip

    def _least_measured(
        self, breeding: "_Breeding", labeler: PlanLabeler, alive: list[_Candidate],
        measure: Callable[[np.ndarray], float],
    ) -> _Candidate:  # fmt: skip
        """The plan that loses least of those that are measured, beginning with the labeler's favourites."""
        tried: dict[bytes, tuple[float, _Candidate]] = {}
        batch = min(_BATCH, max(_FEWEST, self.measured // 4))
        # Also what single criteria would do: the search may have left them early.
        waiting = [*alive[: (batch + 1) // 2], *breeding.single_orders(labeler)[: batch // 2], *alive]
        while True:
            new = [c for c in {c.key: c for c in waiting}.values() if c.key not in tried]
            for candidate in new[: min(batch, self.measured - len(tried))]:
                tried[candidate.key] = measure(candidate.mask), candidate
            ranked = sorted(tried.values(), key=lambda pair: (not np.isfinite(pair[0]), pair[0]))
            if not new or len(tried) >= self.measured:
                break
            parents = [candidate for _, candidate in ranked[:_PARENTS]]
            judge, waiting = breeding.corrected(labeler, list(tried.values())), []
            for _ in range(_ROUNDS):
                genes = breeding.children(waiting or parents)
                waiting = breeding.survivors(judge, genes, waiting, tried)
        loss, best = ranked[0]
        if not np.isfinite(loss):
            _LOG.warning("None of %d measured plans has a finite loss: the labeler's favourite is taken.", len(tried))
        return best


def _check_formats(
    formats: FormatSummarizer, units: UnitTable, costs: CostTable, constraints: Constraints, fraction: float
) -> None:
    """A search of bits gives few to all layers, and compares plans of one size."""
    if constraints.max_bits_only or pinned_units(units, costs, constraints.pinned)[units.kind == "layer"].any():
        raise CompressError(
            "A search of units and bits gives all layers few bits: none may be pinned or max_bits_only."
        )
    widest = formats.rows(np.full(len(formats.layers), max(formats.widths)))
    whole = costs.total(np.zeros(len(units), dtype=bool), widest)[1] / costs.dense_weight_bytes
    if whole <= fraction:
        raise BudgetError(
            f"The budget leaves nothing to search: all layers whole in {max(formats.widths)} bits take {whole:.3g} of "
            f"the dense weight_bytes, {fraction:.3g} is allowed. Take an allocator that adds damages."
        )


class _Breeding:
    """Makes plans of one network and one size, and lets a judge choose among them.

    Args:
        search: whose settings count.
        summarizer, known: of the network, and the random plans that all others are compared with.
        draw, bound: makes plans, and what they may cost.
        scores: name -> `(n_removable,)` importances that may order the units of a group.
        formats: of the network, where bits are searched too.
    """

    def __init__(
        self, search: PlanSearch, summarizer: PlanSummarizer, known: PlanSummary, draw: PlanDraw, bound: float,
        scores: Mapping[str, np.ndarray], formats: FormatSummarizer | None = None,
    ) -> None:  # fmt: skip
        self.search, self.summarizer, self.known, self._formats = search, summarizer, known, formats
        self._draw, self._bound = draw, bound
        self._ranks = np.stack([draw.rank_from_top(scores[name]) for name in sorted(scores)])
        self._rng = np.random.default_rng([search.seed, 11])
        self.n_judged = 0

    def founders(self) -> _Genes:
        """The first plans: first each order alone with equal shares, then random ones; bits around a random mean."""
        n_groups, n_orders, children = len(self._draw.sizes), len(self._ranks), self.search.children
        shares = np.exp(0.5 * self._rng.standard_normal((children, n_groups)))
        shares[:n_orders] = 1.0
        order = np.repeat(self._rng.integers(0, n_orders, children)[:, None], n_groups, axis=1)
        order[:n_orders] = np.arange(n_orders)[:, None]
        return _Genes(shares, order, self._wishes(children))

    def _wishes(self, count: int) -> np.ndarray:
        """`(count, n_layers)` bits for the first plans; those of every other plan as sensitive as layers are."""
        if self._formats is None:
            return np.zeros((count, 0))
        widths, guide = self._formats.widths, self._formats.guide
        mean = self._rng.uniform(min(widths), max(widths), (count, 1))
        spread = _BIT_SPREAD * self._rng.standard_normal((count, len(guide)))
        return mean + guide * (np.arange(count)[:, None] % 2) + spread

    def single_orders(self, judge: PlanLabeler | AdaptedPlanLabeler) -> list[_Candidate]:
        """The plan of each order alone, the one that the judge likes best first."""
        n_groups, n_orders = len(self._draw.sizes), len(self._ranks)
        order = np.repeat(np.arange(n_orders)[:, None], n_groups, axis=1)
        genes = _Genes(np.ones((n_orders, n_groups)), order, np.zeros((n_orders, 0)))
        return sorted(self._judged(judge, genes), key=self._rated)

    def survivors(
        self, judge: PlanLabeler | AdaptedPlanLabeler, genes: _Genes, alive: list[_Candidate],
        tried: Collection[bytes] = (),
    ) -> list[_Candidate]:  # fmt: skip
        """The best of new plans and of those that live, without those that were tried."""
        found = {candidate.key: candidate for candidate in alive}
        for candidate in self._judged(judge, genes):
            if candidate.key not in tried:
                found.setdefault(candidate.key, candidate)
        return sorted(found.values(), key=self._rated)[: self.search.population]

    def corrected(
        self, labeler: PlanLabeler, tried: list[tuple[float, _Candidate]]
    ) -> PlanLabeler | AdaptedPlanLabeler:
        """The labeler, corrected by the measured plans whose losses are finite, where these are enough."""
        sound = [(loss, candidate.mask) for loss, candidate in tried if np.isfinite(loss)]
        if len(sound) < _FEWEST:
            return labeler
        plans = self.summarizer.summarize(np.stack([mask for _, mask in sound]))
        return AdaptedPlanLabeler(labeler, plans, np.array([loss for loss, _ in sound]), self.known)

    def children(self, alive: list[_Candidate]) -> _Genes:
        """New plans: two parents each, mixed group by group and layer by layer, then changed a little."""
        rng, count = self._rng, self.search.children
        parents = rng.integers(0, len(alive), (count, 2))
        mother, father = (
            (np.stack([alive[i].shares for i in side]), np.stack([alive[i].order for i in side])) for side in parents.T
        )
        mixed = rng.random(mother[0].shape) < 0.3
        shares = np.where(mixed, father[0], mother[0])
        order = np.where(mixed, father[1], mother[1])
        changed = rng.random(shares.shape) < 0.4
        shares = shares * np.exp(np.where(changed, _STEP * rng.standard_normal(shares.shape), 0.0))
        switched = rng.random(shares.shape) < 0.1
        order = np.where(switched, rng.integers(0, len(self._ranks), shares.shape), order)
        if self._formats is None:
            return _Genes(shares, order, np.zeros((count, 0)))
        sides = [np.stack([alive[i].wish for i in side]) for side in parents.T]
        wish = np.where(rng.random(sides[0].shape) < 0.3, sides[1], sides[0])
        changed = rng.random(wish.shape) < 0.4
        return _Genes(shares, order, wish + np.where(changed, _BIT_STEP * rng.standard_normal(wish.shape), 0.0))

    def _judged(self, judge: PlanLabeler | AdaptedPlanLabeler, genes: _Genes) -> list[_Candidate]:
        """The plans that meet the bound, and what the judge says of them."""
        draw, ranks, formats = self._draw, self._ranks, self._formats
        plans = []
        for share, which, wish in genes:
            bits = np.zeros(0, dtype=np.int64) if formats is None else nearest_bits(wish, formats.widths)
            rows = None if formats is None else formats.rows(bits)
            values = share[draw.group] / ranks[which[draw.group], np.arange(ranks.shape[1])]
            mask = draw.descend(values, self._bound, rows)
            # So many bits that no removal makes up for them.
            if formats is None or draw.cost(mask, rows) <= self._bound:
                plans.append((mask, bits, share, which, wish))
        if not plans:
            return []
        masks = np.stack([plan[0] for plan in plans])
        summary = self.summarizer.summarize(masks)
        if formats is not None:
            summary = formats.extend(summary, masks, np.stack([plan[1] for plan in plans]))
        score, spread = judge.predict(summary, self.known)
        self.n_judged += len(masks)
        told = zip(plans, score.tolist(), spread.tolist(), strict=True)
        return [_Candidate(*plan, *said) for plan, *said in told]

    def _rated(self, candidate: _Candidate) -> float:
        return candidate.score + self.search.caution * candidate.spread
