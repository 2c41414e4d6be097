"""A race of candidate plans: brief trainings that grow longer tell which plan is best."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace

import numpy as np

from autolabel.plan_formula import PlanFormula
from autolabel.plan_labeler import PlanLabeler
from autolabel.plan_oracle import PlanBench, PlanOracle, loss_and_macs
from autolabel.plan_summary import PlanSummarizer
from compress.errors import CompressError

# A `(n_units,)` bool mask and a number of optimizer steps -> loss on the data that choose, and the MACs that it took.
BriefTraining = Callable[[np.ndarray, int], tuple[float, float]]


@dataclass(frozen=True, eq=False)
class RaceResult:
    """Who won.

    Attributes:
        winner: row of the candidates.
        losses: one array for each round, `(n_candidates,)` loss on the data that choose; NaN for those that had left.
        forward_macs: spent on repairs, trainings and judgements, in MACs.
    """

    winner: int
    losses: tuple[np.ndarray, ...]
    forward_macs: float


@dataclass(frozen=True)
class PlanRace:
    """Successive halving (Jamieson and Talwalkar 2016, arXiv:1502.07943) among plans of one network and one size.

    Every candidate is repaired and trained for a few steps; the better part of them is trained anew for more steps, and
    so on. What a plan loses after a brief training tells well what it loses after a long one.

    Args:
        steps: optimizer steps of each round.
        keep: part of the candidates that stays after each round but the last, at least two.
    """

    steps: tuple[int, ...] = (16, 48)
    keep: float = 0.34

    def __post_init__(self) -> None:
        if not self.steps or min(self.steps) < 1 or not 0 < self.keep < 1:
            raise CompressError(
                f"PlanRace needs 'steps' of at least 1 and 'keep' in (0, 1). Got {self.steps} and {self.keep}."
            )

    def scaled(self, factor: float) -> "PlanRace":
        """The same race in longer or briefer trainings, of one step at least."""
        return replace(self, steps=tuple(max(1, round(steps * factor)) for steps in self.steps))

    def run(
        self, train: BriefTraining, candidates: np.ndarray | Sequence[np.ndarray],
        on_plan: Callable[[int, int], None] | None = None,
    ) -> RaceResult:  # fmt: skip
        """The best of `(n_candidates, n_units)` bool masks. One candidate alone wins without running.

        Args:
            train: repairs a plan, trains it for so many steps and judges it.
            candidates: what each plan removes.
            on_plan: called with the number of trainings done and of all.

        Raises:
            CompressError: without candidates, or if a plan cannot be applied.
        """
        masks = [np.asarray(mask, dtype=bool) for mask in candidates]
        if not masks:
            raise CompressError("A race needs at least one candidate. Got none.")
        sizes = self._sizes(len(masks))
        alive, losses, spent, done = list(range(len(masks))), [], 0.0, 0
        for steps, left in zip(self.steps, [*sizes[1:], 1], strict=True):
            if len(alive) == 1:
                break
            found = np.full(len(masks), np.nan)
            for i in alive:
                found[i], macs = train(masks[i], steps)
                spent, done = spent + macs, done + 1
                if on_plan is not None:
                    on_plan(done, sum(sizes))
            losses.append(found)
            alive.sort(key=lambda i: (not np.isfinite(found[i]), found[i]))
            alive = alive[:left]
        return RaceResult(alive[0], tuple(losses), spent)

    def _sizes(self, candidates: int) -> list[int]:
        """How many plans are trained in each round."""
        sizes = [candidates]
        for _ in self.steps[1:]:
            sizes.append(max(min(2, sizes[-1]), round(self.keep * sizes[-1])))
        return sizes


def brief_training(bench: PlanBench, oracle: PlanOracle, part: str = "validation") -> BriefTraining:
    """What a race does to a plan on a bench, judged on one part of its data."""

    def train(removed: np.ndarray, steps: int) -> tuple[float, float]:
        briefly = replace(oracle, moments=("briefly_tuned",), brief_steps=steps)
        return loss_and_macs(bench, briefly, part, removed)

    return train


def choose_entrants(
    leader: PlanLabeler | PlanFormula, summarizer: PlanSummarizer, favourites: Sequence[np.ndarray],
    others: Sequence[np.ndarray], candidates: int,
) -> list[np.ndarray]:  # fmt: skip
    """Who takes part in a race: what searches found, the leader's favourite first, and the others it likes best.

    Args:
        leader: judges all of them, compared with one another.
        summarizer: of their network.
        favourites: `(n_units,)` bool each, at least one; all of them enter.
        others: plans of formulas, for instance.
        candidates: how many of the others enter beside the favourites, each plan once.
    """
    masks = np.stack([*favourites, *others])
    score, _ = leader.predict(summarizer.summarize(masks))
    own = len(favourites)
    entrants = {masks[i].tobytes(): masks[i] for i in np.argsort(score[:own], kind="stable")}
    most = len(entrants) + candidates
    for i in own + np.argsort(score[own:]):
        if len(entrants) < most:
            entrants.setdefault(masks[i].tobytes(), masks[i])
    return list(entrants.values())
