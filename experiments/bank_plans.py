"""The plans of one network of the bank: drawn, summarised, and measured at every moment."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from autolabel.choice_bench import ChoiceBench
from autolabel.format_sampling import bits_by_row, sample_formatted_plans
from autolabel.format_summary import FormatSummarizer
from autolabel.plan_oracle import MOMENTS
from autolabel.plan_sampling import SIZES, PlanDraw, SampledPlans, sample_plans
from autolabel.plan_summary import PlanSummary
from compress.criteria import RandomCriterion
from compress.errors import CompressError
from compress.layer_choice import LayerChoice
from experiments.seeding import derive_seed
from experiments.subject import PARTS, Subject

# With fewer a network is no board, see `boards_of`.
_FEWEST = 5


class TooFewPlansError(CompressError):
    """Units of a network are so few and large that hardly any plans come to one size."""


@dataclass(frozen=True, eq=False)
class DrawnPlans:
    """Plans of one network.

    Attributes:
        plans: all of one size.
        size, fraction: what is held fixed, and at which part of the dense cost.
        summary: what is known of them without running any.
        bits: `(n_plans, n_layers)` of the layer units, in their order; None where all weights stay floats.
    """

    plans: SampledPlans
    size: str
    fraction: float
    summary: PlanSummary
    bits: np.ndarray | None = None


def draw_plans(
    subject: Subject, name: str, fractions: Sequence[float], count: int, widths: Sequence[int], seed: int
) -> DrawnPlans:
    """The plans of a network: what is held fixed and at which fraction depends on its name and the seed alone.

    Args:
        widths: numbers of bits that a layer may have; of plans that only remove there are none.

    Raises:
        TooFewPlansError: if there are fewer than five, where as many are asked for.
    """
    rng = np.random.default_rng(derive_seed(f"{name}/size", seed))
    size = SIZES[int(rng.integers(len(SIZES)))]
    fraction = float(rng.choice(fractions))
    units, costs, constraints = subject.structure.units, subject.costs, subject.settings.constraints
    scores = {**subject.summarizer.scores, "random": RandomCriterion(seed=subject.seed).score(subject.statistics)}
    bits = None
    if widths:
        # Bits save bytes, no MACs.
        size = "weight_bytes"
        bench = ChoiceBench(subject.structure, subject.task, subject.oracle.quantizer, [LayerChoice(b) for b in widths])
        formats = FormatSummarizer(subject.structure, costs, subject.task, subject.scored, bench)
        bits = bits_by_row(costs, units, np.full(len(bench.layers), min(widths)))
    fraction = PlanDraw(units, costs, size, constraints).attainable(fraction, bits)
    if not widths:
        plans = sample_plans(units, costs, scores, size, fraction, count, seed=subject.seed, constraints=constraints)
        _require_plans(plans, count, name)
        return DrawnPlans(plans, size, fraction, subject.summarizer.summarize(plans.removed))
    found = sample_formatted_plans(
        units, costs, scores, formats.sensitivity, widths, fraction, count, seed=subject.seed, constraints=constraints
    )
    plans = found.plans
    _require_plans(plans, count, name)
    summary = formats.extend(subject.summarizer.summarize(plans.removed), plans.removed, found.bits)
    return DrawnPlans(plans, size, fraction, summary, found.bits)


def _require_plans(plans: SampledPlans, count: int, name: str) -> None:
    if len(plans) < min(count, _FEWEST):
        raise TooFewPlansError(f"Only {len(plans)} plans of {name} come to one size: its units are few and large.")


def measure_plans(subject: Subject, drawn: DrawnPlans) -> dict[str, np.ndarray]:
    """Columns of the table of plans: losses and metrics at every moment on every part of the data, and MACs."""
    plans = drawn.plans
    columns: dict[str, list[Any]] = {f"{what}_{moment}_{part}": [] for what in ("loss", "metric") for moment in MOMENTS
                                     for part in PARTS}  # fmt: skip
    columns |= {f"macs_{moment}": [] for moment in MOMENTS}
    looked_at = sum(len(subject.task.inputs(batch)[0]) for batch in subject.bench.judged[PARTS[0]])
    units = subject.structure.units
    layers = np.array(units.ids)[units.kind == "layer"].tolist()
    for number, removed in enumerate(plans.removed):
        looking = looked_at * subject.costs.total(removed)[0]
        bits = None if drawn.bits is None else dict(zip(layers, drawn.bits[number].tolist(), strict=True))
        for outcome in subject.oracle.measure(subject.bench, removed, bits):
            columns[f"macs_{outcome.moment}"].append(outcome.training_macs + looking)
            for part in PARTS:
                columns[f"loss_{outcome.moment}_{part}"].append(outcome.loss[part])
                columns[f"metric_{outcome.moment}_{part}"].append(outcome.metric[part])
    n = len(plans)
    return {
        "network": np.zeros(n, dtype=np.int64),
        "origin": np.array(plans.origin, dtype=str),
        "size": np.full(n, drawn.size),
        "fraction": np.full(n, drawn.fraction),
        **plan_names(subject, drawn),
        **{name: np.array(values, dtype=np.float64) for name, values in columns.items()},
    }


def plan_names(subject: Subject, drawn: DrawnPlans) -> dict[str, np.ndarray]:
    """What each plan removes and, if layers are stored in few bits, how many, as text: both differ in length from
    network to network."""
    masks = [np.packbits(mask[: subject.structure.n_removable]).tobytes().hex() for mask in drawn.plans.removed]
    found = {"removed": np.array(masks, dtype=str)}
    if drawn.bits is not None:
        found["bits"] = np.array([" ".join(map(str, own)) for own in drawn.bits.tolist()], dtype=str)
    return found


def plan_columns(summary: PlanSummary) -> dict[str, np.ndarray]:
    """Numbers of whole plans, as columns of the table of plans."""
    return {name: summary.plan_values[:, i] for i, name in enumerate(summary.plan_names)}


def group_table(summary: PlanSummary) -> dict[str, np.ndarray]:
    """The table of groups: one row for each group of each plan."""
    n_plans, n_groups = len(summary.plan_values), len(summary.groups)
    return {
        "plan": np.repeat(np.arange(n_plans), n_groups),
        "group": np.tile(np.array(summary.groups, dtype=str), n_plans),
        **{name: summary.values[:, :, i].reshape(-1) for i, name in enumerate(summary.names)},
    }
