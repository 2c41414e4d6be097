"""The oracle of whole plans: what a network loses at once, after the refit, after a few steps and after fine-tuning."""

import hashlib
import logging
import math
from collections.abc import Callable, Iterable, Mapping, MutableMapping, Sequence
from dataclasses import dataclass, field, replace
from itertools import islice
from typing import Any

import numpy as np
from torch import fx, nn

from compress.application import slice_model
from compress.costs import CostTable
from compress.errors import CompressError, DataError
from compress.finetuning import finetune_
from compress.plan import CompressionPlan, LayerFormat
from compress.quantization import prepare_quantized
from compress.quantizer import Quantizer
from compress.quantizers.mse import MseQuantizer
from compress.recovery import recover_
from compress.structure import Structure
from compress.task import Batch, Task, evaluate

_LOG = logging.getLogger(__name__)
MOMENTS = ("at_once", "refitted", "briefly_tuned", "finetuned")


@dataclass(frozen=True)
class PlanOutcome:
    """What became of one plan at one moment.

    Attributes:
        moment: one of `MOMENTS`.
        loss, metric: data part -> mean loss per example, and metric.
        training_macs: MACs spent to get there since the plan was applied, in forward-MACs of the dense model's kind
            (a training step counts three forwards of the small model and one of the teacher); evaluation not counted.
    """

    moment: str
    loss: Mapping[str, float]
    metric: Mapping[str, float]
    training_macs: float


@dataclass(frozen=True, eq=False)
class PlanBench:
    """One network and the data that its plans are judged with; no two parts may share an example.

    Attributes:
        structure, costs: of the dense model.
        task: reads batches, gives losses and the metric.
        repair: batches of the refit; their labels are not read.
        train: `train(epoch)` gives the batches of that epoch.
        judged: data part -> batches that outcomes are measured on.
        teacher: the dense model as fine-tuning asks it.
    """

    structure: Structure
    costs: CostTable
    task: Task
    repair: Sequence[Batch]
    train: Callable[[int], Iterable[Batch]]
    judged: Mapping[str, Sequence[Batch]]
    teacher: nn.Module


@dataclass(frozen=True)
class PlanOracle:
    """Does to a plan what the product does to it, and looks at each moment.

    Args:
        moments: which to measure, out of `MOMENTS`, in this order.
        steps, ridge, max_rows: of the repair, see `recover_`. Batch norms learn their statistics anew after the refit:
            training would begin with a jump to them otherwise.
        brief_steps: optimizer steps of the moment `"briefly_tuned"`.
        epochs: of the moment `"finetuned"`.
        finetune: other settings of `finetune_`; the same for the brief training.
        seed: of repair and training.
        quantizer: of plans that store layers in few bits.
    """

    moments: tuple[str, ...] = MOMENTS
    steps: tuple[str, ...] = ("refit", "batch_norm")
    ridge: float | None = None
    max_rows: int = 20_000
    brief_steps: int = 20
    epochs: int = 2
    finetune: Mapping[str, Any] = field(default_factory=lambda: {"optimizer": "adamw", "lr": 2e-3})
    seed: int = 0
    quantizer: Quantizer = field(default_factory=MseQuantizer)

    name = "plan"

    def __post_init__(self) -> None:
        unknown = [moment for moment in self.moments if moment not in MOMENTS]
        if unknown:
            raise CompressError(f"The 'moments' parameter of PlanOracle must be out of {MOMENTS}. Got {unknown[0]!r}.")

    def measure(
        self, bench: PlanBench, removed: np.ndarray, bits: Mapping[str, int] | None = None
    ) -> list[PlanOutcome]:  # fmt: skip
        """One outcome for each moment of the plan that removes the units where `removed` (`(n_units,)` bool) is True.

        Args:
            bits: layer -> bits of its weights, which are rounded at once or after the refit; trainings go on with
                rounded weights, through which gradients pass. None rounds nothing.

        Raises:
            CompressError: if the plan cannot be applied.
        """
        structure = bench.structure
        units = structure.units
        plan = CompressionPlan.removing(units, [units.ids[row] for row in np.flatnonzero(removed)])
        small = slice_model(structure, removed).eval()
        found = []
        if "at_once" in self.moments:
            found.append(self._look("at_once", bench, self._stored(small, plan, bits), 0.0))
        if set(self.moments) == {"at_once"}:
            return found
        dense_macs, small_macs, spent = bench.costs.dense_macs, bench.costs.total(removed)[0], 0.0
        if removed.any() or bits is None:
            recover_(
                small, structure, bench.repair, plan=plan, task=bench.task, steps=self.steps, ridge=self.ridge,
                max_rows=self.max_rows, seed=self.seed,
            )  # fmt: skip
            spent = (dense_macs + small_macs) * sum(len(bench.task.inputs(batch)[0]) for batch in bench.repair)
        small = self._stored(small, plan, bits)
        if "refitted" in self.moments:
            found.append(self._look("refitted", bench, small, spent))
        example_macs = 3 * small_macs + dense_macs
        if "briefly_tuned" in self.moments:
            state = {name: value.clone() for name, value in small.state_dict().items()}
            trained = self._train(bench, small, lambda epoch: list(islice(bench.train(epoch), self.brief_steps)), 1)
            found.append(self._look("briefly_tuned", bench, small, spent + trained * example_macs))
            small.load_state_dict(state)
        if "finetuned" in self.moments:
            trained = self._train(bench, small, bench.train, self.epochs)
            found.append(self._look("finetuned", bench, small, spent + trained * example_macs))
        return found

    def _stored(
        self, small: fx.GraphModule, plan: CompressionPlan, bits: Mapping[str, int] | None
    ) -> fx.GraphModule:  # fmt: skip
        if not bits:
            return small
        formats = {layer: LayerFormat(own) for layer, own in bits.items()}
        return prepare_quantized(small, replace(plan, layer_formats=formats), [], self.quantizer).eval()

    def _train(self, bench: PlanBench, small: nn.Module, train: Callable[[int], Iterable[Batch]], epochs: int) -> int:
        """Fine-tune with distillation; return the number of examples that were seen, the last batches taken as full."""
        report = finetune_(small, bench.task, train, teacher=bench.teacher, epochs=epochs, progress=False,
                           seed=self.seed, **self.finetune)  # fmt: skip
        small.eval()
        return report.steps * len(bench.task.inputs(next(iter(train(0))))[0])

    def _look(self, moment: str, bench: PlanBench, small: Any, macs: float) -> PlanOutcome:
        found = {part: evaluate(small, bench.task, batches) for part, batches in bench.judged.items()}
        return PlanOutcome(moment, {p: v[1] for p, v in found.items()}, {p: v[0] for p, v in found.items()}, macs)


def loss_and_macs(bench: PlanBench, oracle: PlanOracle, part: str, removed: np.ndarray) -> tuple[float, float]:
    """Mean loss of a plan on one part of the data at the oracle's only moment; MACs of getting there and of judging."""
    # Others are not looked at: their examples must not choose.
    (outcome,) = oracle.measure(replace(bench, judged={part: bench.judged[part]}), removed)
    judged = sum(len(bench.task.inputs(batch)[0]) for batch in bench.judged[part])
    return outcome.loss[part], outcome.training_macs + judged * bench.costs.total(removed)[0]


class RepairedLoss:
    """What plans lose after their repair; each plan is measured once, and costs everyone who asks.

    Args:
        measure: `(n_units,)` bool, what a plan removes -> its loss after the repair, and the MACs that both took.
        known: the same of plans that were measured before, by name; what is measured is added.

    Attributes:
        forward_macs: of all plans that were asked about, but those whose repair broke.
    """

    def __init__(
        self,
        measure: Callable[[np.ndarray], tuple[float, float]],
        known: MutableMapping[str, list[float]] | None = None,
    ) -> None:
        self._measure, self._known = measure, {} if known is None else known
        self.forward_macs = 0.0

    def __call__(self, removed: np.ndarray) -> float:
        """The loss of a plan; infinite if its repair breaks."""
        name = f"after repair of {hashlib.sha256(removed.tobytes()).hexdigest()}"
        if name not in self._known:
            try:
                self._known[name] = list(self._measure(removed))
            except DataError as error:
                _LOG.warning("A plan cannot be repaired: %s", error)
                self._known[name] = [math.inf, 0.0]
        loss, macs = self._known[name]
        self.forward_macs += macs
        return loss
