"""The whole road in one call: label, decide, cut, repair, fine-tune, quantise."""

import logging
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, replace
from functools import partial
from itertools import islice
from typing import Any

import numpy as np
from torch import fx, nn

from autolabel.allocators import LearnedSearchAllocator
from autolabel.call_checks import (
    check_numbers,
    check_parameters,
    check_parts,
    check_removable,
    evaluate_dense,
    undisturbed,
    warn_of_weights,
)
from autolabel.labeler import Labeler
from autolabel.labelers import GBDTLabeler
from autolabel.learning import Learned, join_scores, learn_labels
from autolabel.measuring import measure
from autolabel.oracles import LayerChoiceOracle, RemovalOracle
from autolabel.plan_criteria import plan_criteria
from autolabel.plan_formula import PlanFormula
from autolabel.plan_oracle import PlanBench, PlanOracle, RepairedLoss, loss_and_macs
from autolabel.plan_search import PlanSearch
from autolabel.plan_summary import PlanSummarizer
from autolabel.pretrained import load_competence, load_plan_labeler
from autolabel.tables import LabelTable
from compress.allocation import allocate, check_budget
from compress.allocator import Allocator, Constraints
from compress.application import apply_plan
from compress.budget import Budget
from compress.costs import CostTable
from compress.counting import unit_costs
from compress.criteria import FisherCriterion, ReconstructionCriterion, SecondOrderCriterion, TaylorCriterion
from compress.criterion import score_units
from compress.errors import ArtifactError, CompressError, DataError
from compress.finetuning import finetune_
from compress.graph import uncompiled
from compress.latency_table import measure_latencies
from compress.layer_choice import LayerChoice
from compress.output_sensitivity import collect_output_sensitivity
from compress.plan import CompressionPlan
from compress.product_counting import UNCOUNTED
from compress.quantization import prepare_quantized
from compress.quantizers import MseQuantizer
from compress.recovery import recover_
from compress.scores import Scores
from compress.statistics import Statistics, collect_statistics
from compress.structure import Structure, analyze
from compress.task import Batch, ClassificationTask, Task, evaluate

_LOG = logging.getLogger(__name__)
# Favourites of the labeler of whole plans and of a formula.
SEARCHED, BY_FORMULA = "plans/search", "refit_loss/search"
_SENSITIVITY_BATCHES = 8
# Whose plans compete with the labeler's.
_CRITERIA = (SecondOrderCriterion, FisherCriterion, TaylorCriterion, ReconstructionCriterion)


@dataclass(frozen=True, eq=False)
class Compressed:
    """What `auto_compress` hands back.

    Attributes:
        model: the compressed model, in evaluation mode; fake-quantised where the plan has formats.
        plan: what was done; save it with `compress.save_artifact`.
        method: whose scores the plan is made of: `"labeler"`; `"plans/search"` or `"refit_loss/search"`, the favourite
            among thousands of whole plans of the labeler that ships with the package or of a formula; or the criterion
            that did better on `validation`.
        validation: method -> validation loss after repair, for every method that was tried.
        stages: metric and loss on `validation` after each stage: dense, pruned, recovered, fine_tuned, quantized.
        learned: labels and their quality; None if nothing was measured.
        structure: the analysed dense model.
    """

    model: fx.GraphModule
    plan: CompressionPlan
    method: str
    validation: dict[str, float]
    stages: dict[str, tuple[float, float]]
    learned: Learned | None
    structure: Structure


@undisturbed()
def auto_compress(
    model: nn.Module,
    task: Task,
    train: Iterable[Batch],
    calibration: Sequence[Batch],
    example_inputs: Any,
    budget: Budget,
    *,
    label: Sequence[Batch] | None = None,
    validation: Sequence[Batch] | None = None,
    labeler: Labeler | None = None,
    sample: int | None = 256,
    search_plans: int = 0,
    allocator: str | Allocator = "greedy",
    constraints: Constraints | None = None,
    bits: Sequence[int] = (),
    epochs: int = 3,
    lr: float = 1e-3,
    distill: bool | None = None,
    seed: int = 0,
) -> Compressed:
    """A smaller model within `budget`, made of what was measured and learned on this very model.

    Args:
        model: the trained network; it stays as it is.
        task: reads batches, gives per-example losses and the metric.
        train: batches for fine-tuning, iterated once per epoch.
        calibration: batches for features, repair and activation ranges. Labels are only read by the loss.
        example_inputs: inputs of the forward, batch first.
        budget: upper bounds; refused before any work if no plan can meet them. Where it bounds milliseconds, layers are
            timed first, by ONNX Runtime on one thread of this machine, see `compress.latency_table`.
        label: batches that damage is measured on; None takes the second half of `calibration`.
        validation: batches that choose among the plans of all methods, and stop fine-tuning; None takes `label`.
        labeler: None for gradient-boosted trees.
        sample: how many units are measured; None for all, 0 for none: a search of whole plans (without `bits`, and
            where MACs or weight bytes are the only bound) and formulas make the plans from statistics.
        search_plans: how many plans each of both searches repairs and measures on `label`; what they lose corrects
            whoever judges, and the plan that loses least is taken. 0 runs none. Without `validation` of its own such a
            plan then competes on examples that it was chosen on.
        allocator, constraints: who spends the budget, within what.
        bits: widths that layers may be stored in, e.g. `(8, 4)`; empty keeps float32.
        epochs, lr: of fine-tuning; 0 epochs leaves it out.
        distill: whether fine-tuning imitates the model too, whose outputs must be logits (last dimension: classes) for
            it. None does so for a `ClassificationTask` with outputs `(batch, classes)`, and for no other.
        seed: of everything random.

    Raises:
        BudgetError: with the closest feasible budget. DataError, TraceError: for unfit data or models.
        CompressError: naming any other parameter that is out of range; nothing is measured before.
    """
    model = uncompiled(model)
    check_parts(model, task, budget, labeler, allocator, constraints, {
        "calibration": calibration, **({"train": train} if epochs else {}),
        **{name: value for name, value in (("label", label), ("validation", validation)) if value is not None},
    })  # fmt: skip
    check_numbers(sample, search_plans, bits, epochs, lr, distill, seed)
    check_parameters(model, epochs)
    judged = "validation" if validation is not None else "label" if label is not None else "calibration"
    calibration, label = _split(list(calibration), label)
    validation = label if validation is None else list(validation)
    structure = analyze(model, example_inputs)
    check_removable(structure)
    costs, constraints = unit_costs(structure), constraints or Constraints()
    if budget.latency_ms is not None:
        times = measure_latencies(structure, [LayerChoice(width) for width in bits])
        costs = replace(costs, latency_ms=times.for_layers(costs.layer_names))
    silent = [name for name, _ in costs.uncounted if name in UNCOUNTED]
    if silent and budget.macs is not None:
        _LOG.warning("MACs of %s are not counted: a bound on MACs is one of all other layers.", ", ".join(silent))
    warn_of_weights(model, structure)
    check_budget(structure.units, costs, budget, constraints, ("removed", *(f"{b}bit" for b in bits)))
    # Before hours of measuring: everything that will be read.
    if epochs:
        train = list(train) if isinstance(train, Iterator) else train
        evaluate_dense(structure, model, task, list(islice(train, 1)), "train")
    if validation is not label:
        evaluate_dense(structure, model, task, label, "label")
    stages = {"dense": evaluate_dense(structure, model, task, validation, judged)}
    statistics = collect_statistics(structure, task, calibration)
    criteria = {kind.name: kind() for kind in _CRITERIA}
    learned = None if sample == 0 else learn_labels(
        structure, task, label, statistics, labeler or GBDTLabeler(seed=seed), RemovalOracle(), sample=sample,
        criteria=criteria, seed=seed,
    )  # fmt: skip
    formats = measure(structure, None, task, label, LayerChoiceOracle(bits)) if bits else None
    candidates: dict[str, Scores | LabelTable] = {} if learned is None else {"labeler": learned.labels}
    candidates |= {name: score_units(structure, criterion, statistics) for name, criterion in criteria.items()}
    plans = {
        name: allocate(structure.units, join_scores(structure, scores, formats), costs, budget, allocator=allocator,
                       constraints=constraints)
        for name, scores in candidates.items()
    }  # fmt: skip
    bounds = set(budget.absolute(costs.dense))
    if not bits and constraints.round_to == 1 and (bounds == {"macs"} or bounds == {"weight_bytes"}):
        try:
            plans |= _search(
                structure, task, calibration, label, search_plans, statistics, costs, budget, constraints, seed
            )
        except ArtifactError:
            raise  # of the labeler that ships: nothing to go on from
        except CompressError as error:
            # Too few plans of that size, or statistics that say nothing of them: formulas and labels may still do.
            _LOG.warning("No plans are searched: %s", error)
    elif search_plans:
        _LOG.warning("No plans are searched, and none measured: that needs MACs or weight bytes alone, and no bits.")
    inputs = [tuple(task.inputs(batch)) for batch in calibration]
    losses: dict[str, float] = {}
    repaired: dict[str, tuple[Any, ...]] = {}
    for name, plan in plans.items():
        twin = next((other for other in repaired if _alike(plans[other], plan)), None)
        if twin is not None:
            losses[name], repaired[name] = losses[twin], (plan, *repaired[twin][1:])
            continue
        small = apply_plan(structure, plan)
        pruned = evaluate(small, task, validation)
        recover_(small, structure, inputs, plan=plan, seed=seed)
        recovered = evaluate(small, task, validation)
        losses[name] = recovered[1]
        repaired[name] = plan, small, pruned, recovered
    method = min(losses, key=lambda name: (losses[name], name != "labeler"))
    if learned is not None and method != "labeler":
        _LOG.warning(
            "The labeler's plan loses to %s (%.4f against %.4f): falling back.",
            method,
            losses["labeler"],
            losses[method],
        )
    plan, small, stages["pruned"], stages["recovered"] = repaired[method]
    plan = replace(plan, provenance={**plan.provenance, "method": method})
    if distill is None:
        distill = isinstance(task, ClassificationTask) and len(structure.traced.output_shape) == 2
    teacher = model if distill else None
    if epochs:
        finetune_(
            small,
            task,
            train,
            teacher=teacher,
            epochs=epochs,
            lr=lr,
            optimizer="adamw",
            validation=validation,
            seed=seed,
        )
    stages["fine_tuned"] = evaluate(small, task, validation)
    if plan.layer_formats:
        plan = replace(plan, activation_bits=8)
        small = prepare_quantized(small, plan, inputs, MseQuantizer())
        if epochs:
            finetune_(
                small, task, train, teacher=teacher, epochs=1, lr=lr / 10, optimizer="adamw", validation=validation,
                seed=seed,
            )  # fmt: skip
        stages["quantized"] = evaluate(small, task, validation)
    return Compressed(small.eval(), plan, method, losses, stages, learned, structure)


def _search(
    structure: Structure, task: Task, calibration: Sequence[Batch], label: Sequence[Batch], measured: int,
    statistics: Statistics, costs: CostTable, budget: Budget, constraints: Constraints, seed: int,
) -> dict[str, CompressionPlan]:  # fmt: skip
    """The favourites of the labeler that ships and of a formula, among plans of which some may be measured."""
    sensitivity = collect_output_sensitivity(structure, task, calibration[:_SENSITIVITY_BATCHES], seed=seed)
    summarizer = PlanSummarizer(statistics, sensitivity, costs, plan_criteria())
    nothing = np.zeros((1, len(structure.units)), dtype=bool)
    verdict = load_competence().judge(summarizer.summarize(nothing))
    _LOG.info("This network lies %s.", verdict)
    bench = PlanBench(structure, costs, task, calibration, lambda epoch: (), {"label": label}, structure.traced.module)
    # As many rows as in the repair that plans get afterwards.
    oracle = PlanOracle(moments=("refitted",), max_rows=100_000, seed=seed)
    known: dict[str, list[float]] = {}
    features, found = statistics.forward_macs + sensitivity.forward_macs, {}
    for name, judge in ((SEARCHED, load_plan_labeler()), (BY_FORMULA, PlanFormula())):
        measure = RepairedLoss(partial(loss_and_macs, bench, oracle, "label"), known)
        search = PlanSearch(measured=measured, seed=seed)
        plan = LearnedSearchAllocator(summarizer, judge, search, measure=measure).allocate(
            structure.units, None, costs, budget, constraints
        )
        told: dict[str, Any] = {"competence": verdict.record()} if name == SEARCHED else {}
        if measured:
            used = plan.provenance["search"]["measured"]
            told |= {"search_plans": {"measured": used, "forward_macs": features + measure.forward_macs}}
        found[name] = replace(plan, provenance={**plan.provenance, **told})
    return found


def _alike(first: CompressionPlan, second: CompressionPlan) -> bool:
    """Whether two plans make the same model, whoever made them."""
    return first.remove_channels == second.remove_channels and first.layer_formats == second.layer_formats


def _split(calibration: list[Batch], label: Sequence[Batch] | None) -> tuple[list[Batch], list[Batch]]:
    """Calibration and label batches without an example in common."""
    if label is not None:
        return calibration, list(label)
    if len(calibration) < 2:
        raise DataError(
            "The 'calibration' parameter of auto_compress must hold at least two batches when 'label' is not given: "
            f"half of them are measured on. Got {len(calibration)}."
        )
    half = int(np.ceil(len(calibration) / 2))
    return calibration[:half], calibration[half:]
