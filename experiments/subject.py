"""One network with everything that its plans are made from and judged with."""

from collections.abc import Mapping
from dataclasses import dataclass, field
from functools import cached_property
from itertools import chain, islice, repeat
from typing import Any

import numpy as np
from torch import nn

from autolabel.plan_criteria import plan_criteria
from autolabel.plan_oracle import PlanBench, PlanOracle
from autolabel.plan_summary import PlanSummarizer
from compress.allocator import Constraints
from compress.costs import CostTable
from compress.counting import unit_costs
from compress.output_sensitivity import collect_output_sensitivity
from compress.statistics import Statistics, collect_statistics
from compress.structure import Structure, analyze
from compress.task import Batch, ClassificationTask, Task
from experiments.data import DataSplits, ShuffledBatches, make_batches
from experiments.teacher import RememberingTeacher

# Labelers learn from outcomes on validation (and label) examples; outcomes on test examples only judge them.
PARTS = ("validation", "test")
_EVALUATION_BATCH = 1000
_NOISE = 0.05


@dataclass(frozen=True)
class RepairSettings:
    """What is done to every plan of a network.

    Attributes:
        images: examples of the calibration part for statistics and repair, and of the label part for unit labels.
        steps, batch_size, augment, finetune: optimizer steps of the fine-tuning after the repair, its other settings.
        brief_steps: of the brief one.
        constraints: floor and pinned groups.
        max_rows: of each least-squares problem of the repair.
        judged: examples of the validation part that choices are made on, beside the label part; None for all.
    """

    images: int = 256
    steps: int = 128
    brief_steps: int = 20
    batch_size: int = 64
    augment: bool = False
    finetune: Mapping[str, Any] = field(default_factory=lambda: {"optimizer": "adamw", "lr": 2e-3})
    constraints: Constraints = field(default_factory=lambda: Constraints(floor=0.05))
    max_rows: int = 20_000
    judged: int | None = None


class Subject:
    """A network, its statistics, and the bench that its plans are judged on.

    Args:
        model, data, task: the dense network and what it is for.
        settings: of the repair.
        seed: of repair and training.
        deal: draw calibration and label examples anew from both parts with this seed; None takes the parts in order.
    """

    def __init__(
        self, model: nn.Module, data: DataSplits, settings: RepairSettings, seed: int, task: Task | None = None,
        deal: int | None = None,
    ) -> None:  # fmt: skip
        self.settings, self.seed, self.task = settings, seed % 2**31, task or ClassificationTask()
        size = settings.batch_size
        calibration, label = make_batches(data.calibration, size), make_batches(data.label, size)
        if deal is not None:
            pool = [*calibration, *label]
            order = np.random.default_rng([deal, 17]).permutation(len(pool))
            calibration = [pool[i] for i in order[: len(calibration)]]
            label = [pool[i] for i in order[len(calibration) :]]
        few = _first(calibration, settings.images, size)
        self.calibration = self._with_targets(model, few)
        # Where the dense network's own outputs are the target, it has no gradient: targets for scores are blurred.
        self.scored = self._with_targets(model, few, noise=_NOISE)
        self.label = self._with_targets(model, _first(label, settings.images, size))
        self.structure: Structure = analyze(model, tuple(x[:2] for x in self.task.inputs(self.calibration[0])))
        self.costs: CostTable = unit_costs(self.structure)
        # As many steps for every network, whatever the size of its data.
        batches = ShuffledBatches(data.train, size, self.seed, augment=settings.augment)
        train = self._with_targets(model, list(islice(chain.from_iterable(repeat(batches)), settings.steps)))
        chosen_on = data.validation if settings.judged is None else data.validation.take(settings.judged)
        judged = {"validation": make_batches(chosen_on, _EVALUATION_BATCH) + label,
                  "test": make_batches(data.test, _EVALUATION_BATCH)}  # fmt: skip
        judged = {part: self._with_targets(model, found) for part, found in judged.items()}
        self.bench = PlanBench(
            self.structure, self.costs, self.task, self.calibration, lambda epoch: train, judged,
            RememberingTeacher(self.structure.traced.module) if isinstance(self.task, ClassificationTask) else None,
        )  # fmt: skip
        self.oracle = PlanOracle(
            brief_steps=settings.brief_steps, epochs=1, finetune=settings.finetune, seed=self.seed,
            max_rows=settings.max_rows,
        )  # fmt: skip

    def _with_targets(self, model: nn.Module, batches: list[Batch], noise: float = 0.0) -> list[Batch]:
        attach = getattr(self.task, "attach_targets", None)
        return batches if attach is None else attach(model, batches, noise=noise, seed=self.seed)

    @cached_property
    def statistics(self) -> Statistics:
        """Of the calibration examples."""
        return collect_statistics(self.structure, self.task, self.scored)

    @cached_property
    def summarizer(self) -> PlanSummarizer:
        """Of this network's plans."""
        few = self.scored[: max(256 // self.settings.batch_size, 1)]
        sensitivity = collect_output_sensitivity(self.structure, self.task, few)
        return PlanSummarizer(self.statistics, sensitivity, self.costs, plan_criteria())


def _first(batches: list[Batch], examples: int, size: int) -> list[Batch]:
    return batches[: max(examples // size, 1)]
