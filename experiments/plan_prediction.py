"""What a plan will do after its repair, predicted from other plans of its size that are repaired and measured."""

import hashlib
import logging
import math
from collections.abc import Callable, MutableMapping, Sequence
from dataclasses import replace
from typing import Any

import numpy as np

from autolabel.plan_sampling import sample_plans
from autolabel.pretrained import load_plan_damage
from compress.errors import BudgetError, DataError
from compress.plan import CompressionPlan
from compress.task import evaluate
from experiments.workbench import Workbench

log = logging.getLogger(__name__)
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
    losses, spent = measure_plans(bench, drawn, label, on_plan)
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
        "measured": len(drawn), "measured_damages": [float(damage) for damage in damages], "forward_macs": spent,
    }  # fmt: skip


def measure_plans(
    bench: Workbench, drawn: np.ndarray, label: Sequence[Any], on_plan: Callable[[int, int], None] | None = None,
    known: MutableMapping[str, list[float]] | None = None,
) -> tuple[list[float], float]:  # fmt: skip
    """Loss of each plan after its repair, infinite where that breaks, and the forward MACs that all of it took.

    Args:
        drawn: `(n_plans, n_units)` bool.
        label: batches that losses are measured on.
        on_plan: called with the plans done and all of them.
        known: losses, and MACs of the repair, of what was measured before, by plan; what is measured is added.
    """
    structure, costs = bench.structure, bench.costs
    known = {} if known is None else known
    inputs: list[tuple[Any, ...]] = []
    judged = sum(len(bench.task.inputs(batch)[0]) for batch in label)
    losses, spent = [], 0.0
    for number, mask in enumerate(drawn, start=1):
        name = f"after repair of {hashlib.sha256(mask.tobytes()).hexdigest()}"
        own = costs.total(mask)[0]
        if name not in known:
            inputs = inputs or bench.recovery_inputs()
            repair = (costs.dense_macs + own) * sum(len(batch[0]) for batch in inputs)
            ids = [structure.units.ids[row] for row in np.flatnonzero(mask)]
            try:
                small = bench.repaired(CompressionPlan.removing(structure.units, ids), inputs)
                known[name] = [evaluate(small, bench.task, label)[1], repair]
            except DataError as error:
                log.warning("A plan cannot be repaired: %s", error)
                known[name] = [math.inf, repair]
        loss, repair = known[name]
        losses.append(loss)
        spent += repair + own * judged
        if on_plan is not None:
            on_plan(number, len(drawn))
    return losses, spent
