"""What a plan will do after its repair, predicted from other plans of its size that are repaired and measured."""

import math
from collections.abc import Callable, MutableMapping, Sequence
from dataclasses import replace
from typing import Any

import numpy as np

from autolabel.plan_oracle import RepairedLoss
from autolabel.plan_sampling import sample_plans
from autolabel.pretrained import load_plan_damage
from compress.errors import BudgetError
from compress.plan import CompressionPlan
from compress.task import evaluate
from experiments.workbench import Workbench

COVERAGE = 0.9
_FEWEST = 2


def predict_recovered(
    bench: Workbench, plan: CompressionPlan, plans: int, on_plan: Callable[[int, int], None] | None = None
) -> dict[str, Any]:
    """Plain JSON: `nats`, `low` and `high` of the damage on label examples after the repair, `measured` plans and their
    `forward_macs`; or why nothing was predicted (`skipped`)."""
    structure, costs = bench.structure, bench.costs
    removed = plan.removed_mask(structure.units)
    fraction = costs.total(removed)[0] / costs.dense_macs
    if not removed.any():
        return {"skipped": "the plan removes nothing"}
    if any(layer_format.rank for layer_format in plan.layer_formats.values()):
        return {"skipped": "the plan has layers of low rank, and plans that only remove say nothing of these"}
    # First of all: a folder that lacks it must not cost the measuring.
    model = load_plan_damage(bench.config.plan_labeler)
    batches = bench.batches("calibration", bench.config.measure.batch_size, noise=0.05)
    summarizer = bench.plan_summarizer(bench.statistics, batches, bench.config.seed)
    limits = replace(bench.parts.constraints, round_to=1)
    try:
        drawn = sample_plans(structure.units, costs, summarizer.scores, "macs", fraction, plans,
                             seed=bench.config.seed, constraints=limits).removed  # fmt: skip
    except BudgetError as error:
        return {"skipped": f"no other plans of its size: {error}"}
    if len(drawn) < _FEWEST:
        return {"skipped": "there are no other plans of its size"}
    label = bench.batches("label", limit=bench.config.measure.images)
    dense_loss = evaluate(bench.model, bench.task, label)[1]
    measure, losses = repaired_loss(bench, label), []
    for number, mask in enumerate(drawn, start=1):
        losses.append(measure(mask))
        if on_plan is not None:
            on_plan(number, len(drawn))
    sound = np.isfinite(losses)
    if sound.sum() < _FEWEST:
        return {"skipped": "other plans of its size cannot be repaired"}
    drawn, damages = drawn[sound], [loss - dense_loss for loss in losses if math.isfinite(loss)]
    found = model.predict(
        summarizer.summarize(np.concatenate([drawn, removed[None]])), dense_loss, range(len(drawn)), damages
    )
    low, high = found.interval(COVERAGE)
    return {
        "nats": float(found.nats[-1]), "low": float(low[-1]), "high": float(high[-1]), "coverage": COVERAGE,
        "measured": len(drawn), "measured_damages": [float(damage) for damage in damages],
        "forward_macs": measure.forward_macs,
    }  # fmt: skip


def repaired_loss(
    bench: Workbench, label: Sequence[Any], known: MutableMapping[str, list[float]] | None = None
) -> RepairedLoss:
    """What plans lose on `label` after the repair that the run does; `known` as in `RepairedLoss`."""
    structure, costs = bench.structure, bench.costs
    inputs: list[tuple[Any, ...]] = []
    judged = sum(len(bench.task.inputs(batch)[0]) for batch in label)

    def measure(removed: np.ndarray) -> tuple[float, float]:
        # Not before a plan is there that nobody measured yet.
        inputs[:] = inputs or bench.recovery_inputs()
        ids = [structure.units.ids[row] for row in np.flatnonzero(removed)]
        small = bench.repaired(CompressionPlan.removing(structure.units, ids), inputs)
        own = costs.total(removed)[0]
        macs = (costs.dense_macs + own) * sum(len(batch[0]) for batch in inputs) + own * judged
        return evaluate(small, bench.task, label)[1], macs

    return RepairedLoss(measure, known)
