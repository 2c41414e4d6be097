"""Repair without labels, in one call."""

import logging
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Any

from torch import fx, nn

from compress.batch_norm import reestimate_batch_norm_
from compress.bias_correction import correct_biases_
from compress.errors import CompressError, DataError, PlanError
from compress.graph import flat_inputs, require_traced
from compress.layer_repair import LayerRepair
from compress.lockstep import first_parts
from compress.plan import CompressionPlan
from compress.refit import refit_
from compress.statistics import check_batches
from compress.structure import Structure, analyze
from compress.task import Batch, Task

_log = logging.getLogger(__name__)
STEPS = ("batch_norm", "refit", "bias")


@dataclass(frozen=True)
class RecoveryReport:
    """What was repaired.

    Attributes:
        n_examples: number of inputs that were used.
        layers: errors of the refitted layers, in execution order; empty without a refit.
        norms: running means that were re-estimated.
        biases: biases and shifts that were corrected.
    """

    n_examples: int
    layers: tuple[LayerRepair, ...] = ()
    norms: tuple[str, ...] = ()
    biases: tuple[str, ...] = ()


def recover_(
    small: fx.GraphModule,
    teacher: nn.Module | Structure,
    batches: Iterable[Batch],
    *,
    plan: CompressionPlan | None = None,
    task: Task | None = None,
    steps: Sequence[str] = ("refit", "batch_norm"),
    layers: str = "changed",
    through_sums: bool = True,
    relu_steps: int = 4,
    ridge: float | None = None,
    max_rows: int = 100_000,
    seed: int = 0,
) -> RecoveryReport:
    """Repair a pruned model, in place, so that it computes what the dense model computes. No labels are used.

    Mode, gradients and the global random state stay as they were; the teacher is not changed.

    Args:
        small: from `apply_plan`, in its full precision; with the plan's layers of low rank divided, or not yet.
        teacher: the dense model that `small` was sliced from, or its structure.
        batches: calibration data: batches of `task`; without a task, tensors, dicts of the forward's inputs, or tuples
            that begin with them (labels after them are ignored).
        plan: the plan that `small` was made by; None for the one that `apply_plan` noted on it.
        task: how to read a batch.
        steps: some of `"batch_norm"` (running statistics), `"refit"` (least squares) and `"bias"` (mean of each
            channel), in the order in which they are taken. Statistics after a refit are re-estimated without changing
            what the model computes (see `reestimate_batch_norm_`).
        layers, through_sums, relu_steps, ridge, max_rows, seed: see `refit_`.

    Raises:
        CompressError: for an unknown step or a ridge below 0. DataError: for missing or unfit batches.
        PlanError: if the plan is unknown, or `small` is not a slice of the teacher.
    """
    unknown = set(steps) - set(STEPS)
    if unknown:
        raise CompressError(f"The 'steps' parameter of recover_ must name steps out of {STEPS}. Got {min(unknown)!r}.")
    if ridge is not None and not ridge >= 0:
        raise CompressError(f"The 'ridge' parameter of recover_ must be at least 0, or None. Got {ridge!r}.")
    require_traced(small, "recover_")
    if not steps:
        _log.warning("The 'steps' parameter of recover_ is empty: nothing is repaired.")
        return RecoveryReport(0)
    plan = plan if plan is not None else small.meta.get("plan")
    if plan is None:
        raise PlanError("The small model does not say which plan it was made by. Pass it as the 'plan' of recover_.")
    batches = list(batches)
    if not batches:
        raise DataError("The 'batches' parameter of recover_ must hold at least one calibration batch. Got none.")
    structure = analyze(teacher, _first_inputs(batches[0], task, small))
    removed = plan.removed_mask(structure.units)
    flat = [_flat(structure, batch, task) for batch in batches]
    check_batches(structure, _Flat(), flat)
    if not removed.any() and not first_parts(small, structure):
        _log.warning("The plan removes nothing: there is nothing to repair.")
    dense = structure.traced.module
    modes = [(module, module.training) for model in (small, dense) for module in model.modules()]
    done: dict[str, list] = {"refit": [], "batch_norm": [], "bias": []}
    small.eval()
    dense.eval()
    try:
        for number, step in enumerate(steps):
            if step == "refit":
                found = refit_(small, structure, removed, flat, layers=layers, through_sums=through_sums,
                               relu_steps=relu_steps, ridge=ridge, max_rows=max_rows, seed=seed)  # fmt: skip
            elif step == "bias":
                found = correct_biases_(small, structure, removed, flat)
            else:
                found = reestimate_batch_norm_(small, flat, keep_function="refit" in steps[:number])
            done[step] = found
    finally:
        for module, training in modes:
            module.training = training
    if "refit" in steps and not done["refit"]:
        _log.warning("The refit found no conv or linear layer with changed inputs.")
    return RecoveryReport(
        sum(len(batch[0]) for batch in flat), *(tuple(done[k]) for k in ("refit", "batch_norm", "bias"))
    )


class _Flat:
    """Reads batches that are flat inputs already."""

    def inputs(self, batch: tuple[Any, ...]) -> tuple[Any, ...]:
        return batch


def _first_inputs(batch: Batch, task: Task | None, small: fx.GraphModule) -> Any:
    if task is not None:
        return tuple(task.inputs(batch))
    if isinstance(batch, (tuple, list)):
        return tuple(batch)[: sum(node.op == "placeholder" for node in small.graph.nodes)]
    return batch


def _flat(structure: Structure, batch: Batch, task: Task | None) -> tuple[Any, ...]:
    """The inputs of one batch in the order of the graph's placeholders."""
    inputs = _first_inputs(batch, task, structure.traced.module)
    if isinstance(inputs, dict):
        return tuple(flat_inputs(structure.traced.module, (), inputs))
    inputs = inputs if isinstance(inputs, tuple) else (inputs,)
    return tuple(flat_inputs(structure.traced.module, inputs, {}))
