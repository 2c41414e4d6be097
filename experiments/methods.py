"""The compared methods: their metric after each stage over seeds, and who won."""

import math
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from statistics import fmean, stdev

from experiments import compared_methods
from experiments.quantities import STAGE_WORDS, STAGES, format_metric, format_spread
from experiments.run_files import Trial

LABELER = "labeler"


@dataclass(frozen=True)
class Sample:
    """Values over seeds.

    Attributes:
        seeds, values: the trials that gave a number.
        failed: seeds of those that gave none.
    """

    seeds: tuple[str, ...]
    values: tuple[float, ...]
    failed: tuple[str, ...] = ()

    @property
    def mean(self) -> float | None:
        """Mean over seeds, None without any."""
        return fmean(self.values) if self.values else None

    @property
    def std(self) -> float | None:
        """Sample standard deviation over seeds, None for fewer than two."""
        return stdev(self.values) if len(self.values) > 1 else None

    def __str__(self) -> str:
        text = format_spread(self.mean, self.std, len(self.values))
        return f"{text}, {len(self.failed)} failed" if self.failed else text


@dataclass(frozen=True)
class Method:
    """One method of the comparison; `macs` and `weight_bytes` are means over its trials."""

    name: str
    stages: dict[str, Sample] = field(default_factory=dict)
    macs: float | None = None
    weight_bytes: float | None = None

    @property
    def learned(self) -> bool:
        """Whether its scores come from the labeler rather than from a formula."""
        return compared_methods.Method(self.name).learned

    @property
    def ranks(self) -> bool:
        """Whether it may be judged beside the labeler: `X/bits` removes no unit, and rests on measured labels."""
        return not compared_methods.Method(self.name).solves_formats


@dataclass(frozen=True)
class Verdict:
    """The best method of the labeler against the best formula, after one stage.

    Attributes:
        stage: which.
        labeler, best: names of the two methods.
        labeler_mean, best_mean: over seeds.
        gap: how much better the labeler is, in the metric's unit; negative if a formula is better.
        clear: whether the gap is beyond two standard errors over seeds; None where there is a single seed.
        sentence: all of it in words.
    """

    stage: str
    labeler: str
    best: str
    labeler_mean: float
    best_mean: float
    gap: float
    clear: bool | None
    sentence: str


def gather_methods(trials: Sequence[Trial], higher_is_better: bool = True) -> tuple[Method, ...]:
    """The methods, the best after the last stage that was compared first."""
    methods = []
    for name in dict.fromkeys(trial.method for trial in trials):
        own = [trial for trial in trials if trial.method == name]
        stages = {}
        for stage in (s for s in STAGES if any(trial.stage == s for trial in own)):
            rows = {trial.seed: trial.metric for trial in own if trial.stage == stage}
            good = {seed: value for seed, value in rows.items() if value is not None}
            failed = tuple(seed for seed in rows if seed not in good)
            stages[stage] = Sample(tuple(good), tuple(good.values()), failed)
        methods.append(Method(name, stages, _mean(t.macs for t in own), _mean(t.weight_bytes for t in own)))
    sign = -1.0 if higher_is_better else 1.0
    last = compared_stages(methods)[-1:]

    def order(method: Method) -> float:
        mean = method.stages[last[0]].mean if last and last[0] in method.stages else None
        return math.inf if mean is None else sign * mean

    return tuple(sorted(methods, key=order))


def compared_stages(methods: Sequence[Method]) -> tuple[str, ...]:
    """The stages after which any method was evaluated, in order."""
    return tuple(stage for stage in STAGES if any(stage in method.stages for method in methods))


def judge(methods: Sequence[Method], stage: str, higher_is_better: bool = True, unit: str = "") -> Verdict | None:
    """The verdict after `stage`; None unless both the labeler and a formula were evaluated."""
    sign = 1.0 if higher_is_better else -1.0
    known = [m for m in methods if m.ranks and stage in m.stages and m.stages[stage].values]
    learned = [m for m in known if m.learned]
    formulas = [m for m in known if not m.learned]
    if not learned or not formulas:
        return None
    labeler, best = (max(some, key=lambda m: sign * m.stages[stage].mean) for some in (learned, formulas))
    ours, theirs = labeler.stages[stage], best.stages[stage]
    gap = sign * (ours.mean - theirs.mean)
    clear = None
    if ours.std is not None and theirs.std is not None:
        error = math.sqrt(ours.std**2 / len(ours.values) + theirs.std**2 / len(theirs.values))
        clear = abs(gap) > 2 * error
    winner = _winner(gap, clear, best.name)
    sure = {
        None: "With a single seed the gap may be chance.",
        True: "The gap is beyond two standard errors over seeds.",
        False: "The gap is within two standard errors over seeds: no clear winner.",
    }[clear]
    words = STAGE_WORDS[stage].capitalize()
    sentence = (
        f"{words}, {winner} {best.name}. {labeler.name} {ours}, {best.name} {theirs}; "
        f"difference {format_metric(sign * gap, signed=True)}{unit}. {sure}"
    )
    return Verdict(stage, labeler.name, best.name, ours.mean, theirs.mean, gap, clear, sentence)


def _winner(gap: float, clear: bool | None, best: str) -> str:
    if gap == 0:
        return "the labeler ties with"
    if gap > 0:
        return "the labeler beats" if clear else "the labeler is ahead of"
    return f"{compared_methods.Method(best).kind} {'beats' if clear else 'is ahead of'} the labeler:"


def _mean(values: Iterable[float | None]) -> float | None:
    known = [value for value in values if value is not None]
    return fmean(known) if known else None
