"""A race of candidate plans: brief trainings that grow longer tell which plan is best."""

from collections.abc import Sequence
from dataclasses import dataclass, replace

import numpy as np

from autolabel.plan_oracle import PlanBench, PlanOracle
from compress.errors import CompressError


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
        part: of the bench's data that chooses.
    """

    steps: tuple[int, ...] = (16, 48)
    keep: float = 0.34
    part: str = "validation"

    def __post_init__(self) -> None:
        if not self.steps or min(self.steps) < 1 or not 0 < self.keep < 1:
            raise CompressError(
                f"PlanRace needs 'steps' of at least 1 and 'keep' in (0, 1). Got {self.steps} and {self.keep}."
            )

    def run(self, bench: PlanBench, oracle: PlanOracle, candidates: np.ndarray | Sequence[np.ndarray]) -> RaceResult:
        """The best of `(n_candidates, n_units)` bool masks. One candidate alone wins without running.

        Raises:
            CompressError: without candidates, or if a plan cannot be applied.
        """
        masks = [np.asarray(mask, dtype=bool) for mask in candidates]
        if not masks:
            raise CompressError("A race needs at least one candidate. Got none.")
        # Others are not looked at: their examples must not choose.
        bench = replace(bench, judged={self.part: bench.judged[self.part]})
        judged = sum(len(bench.task.inputs(batch)[0]) for batch in bench.judged[self.part])
        alive, losses, spent = list(range(len(masks))), [], 0.0
        for number, steps in enumerate(self.steps):
            if len(alive) == 1:
                break
            brief = replace(oracle, moments=("briefly_tuned",), brief_steps=steps)
            found = np.full(len(masks), np.nan)
            for i in alive:
                (outcome,) = brief.measure(bench, masks[i])
                found[i] = outcome.loss[self.part]
                spent += outcome.training_macs + judged * bench.costs.total(masks[i])[0]
            losses.append(found)
            alive.sort(key=lambda i: (not np.isfinite(found[i]), found[i]))
            alive = alive[: 1 if number == len(self.steps) - 1 else max(2, round(self.keep * len(alive)))]
        return RaceResult(alive[0], tuple(losses), spent)
