"""What `auto_compress` was called with, checked before any work: whatever is wrong is told by its parameter."""

import logging
import math
from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager
from numbers import Integral, Real
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.utils.parametrize import is_parametrized

from compress.allocation import ALLOCATORS
from compress.allocator import Constraints
from compress.budget import Budget
from compress.errors import BudgetError, CompressError, DataError, first_line
from compress.graph import loose_weights
from compress.quantizer import INTEGER_BITS
from compress.statistics import check_batches
from compress.structure import Structure
from compress.task import Batch, Task, evaluate

_LOG = logging.getLogger(__name__)
_TASK = ("metric_name", "higher_is_better", "inputs", "loss", "score")
_LABELER = ("name", "fit", "predict")
_SEEDS = 2**31


def check_parts(
    model: Any, task: Any, budget: Any, labeler: Any, allocator: Any, constraints: Any, batches: dict[str, Any]
) -> None:
    """Refuse what is of another kind than `auto_compress` works with.

    Args:
        model, task, budget, labeler, allocator, constraints: its parameters.
        batches: name -> value of those that hold batches.

    Raises:
        CompressError: naming the parameter.
    """
    _require("model", isinstance(model, nn.Module), "a torch.nn.Module", model)
    lacking = [name for name in _TASK if not hasattr(task, name)]
    rule = f"an object with {', '.join(_TASK)}, such as ClassificationTask()"
    _require("task", not lacking and not isinstance(task, type), rule, task)
    if not isinstance(budget, Budget):
        raise BudgetError(_refusal("budget", "a compress.Budget, such as Budget(macs=0.5)", budget))
    known = labeler is None or (not isinstance(labeler, type) and all(hasattr(labeler, name) for name in _LABELER))
    _require("labeler", known, "None or a labeler out of autolabel.labelers, such as GBDTLabeler()", labeler)
    named = allocator in ALLOCATORS if isinstance(allocator, str) else callable(getattr(allocator, "allocate", None))
    rule = f"one of {list(ALLOCATORS)}, or an Allocator"
    _require("allocator", named and not isinstance(allocator, type), rule, allocator)
    known = constraints is None or isinstance(constraints, Constraints)
    _require("constraints", known, "None or a compress.Constraints", constraints)
    for name, value in batches.items():
        if not isinstance(value, Iterable) or isinstance(value, (Tensor, str, dict)):
            raise DataError(_refusal(name, "a list of batches, such as [(inputs, labels), ...]", value))


@contextmanager
def undisturbed() -> Iterator[None]:
    """Gradients are taken and numbers are float32 in it, whatever context the caller is in."""
    with (
        torch.inference_mode(False), torch.enable_grad(),
        torch.autocast("cpu", enabled=False), torch.autocast("cuda", enabled=False),
    ):  # fmt: skip
        yield


def check_parameters(model: nn.Module, epochs: int) -> None:
    """Refuse a model whose bytes would be told wrong, or that is to be trained and cannot be.

    Raises:
        CompressError: for parameters of float64 (of half precision, see `collect_statistics`), or if all are frozen.
    """
    double = next((name for name, value in model.named_parameters() if value.dtype == torch.float64), None)
    _require(
        "model", double is None, "of float32, as budgets and bytes are: pass model.float()", f"{double} of float64"
    )
    parameters = list(model.parameters())
    trained = not parameters or any(value.requires_grad for value in parameters)
    rule = "one with a parameter that requires a gradient, or epochs=0 must leave the fine-tuning out"
    _require("model", trained or not epochs, rule, type(model).__name__)


def warn_of_weights(model: nn.Module, structure: Structure) -> None:
    """Say which weights little can be done about, and what would change that."""
    folded = [name or type(module).__name__ for name, module in model.named_modules() if is_parametrized(module)]
    if folded:
        _LOG.warning(
            "Weights are computed in every forward by parametrizations of %s: little of these layers can go. Fold them "
            "first: torch.nn.utils.parametrize.remove_parametrizations.", _some(folded),
        )  # fmt: skip
    if loose := loose_weights(structure.traced.module):
        _LOG.warning(
            "These weights are multiplied outside of any Linear, conv or embedding (x @ w): they stay float32, and the "
            "refit leaves them alone: %s. Make them nn.Linear for both.", _some(loose),
        )  # fmt: skip


def _some(names: Sequence[str], most: int = 3) -> str:
    return ", ".join(names[:most]) + (f" and {len(names) - most} more" if len(names) > most else "")


def check_numbers(sample: Any, search_plans: Any, bits: Any, epochs: Any, lr: Any, distill: Any, seed: Any) -> None:
    """Refuse numbers out of range. Raises CompressError naming the parameter of `auto_compress`."""
    _require("sample", sample is None or _is_int(sample, 0), "an int of at least 0, or None for all units", sample)
    enough = _is_int(search_plans, 0) and search_plans != 1
    _require("search_plans", enough, "0, or an int of at least 2: one plan says nothing", search_plans)
    widths = isinstance(bits, Sequence) and not isinstance(bits, str) and all(_is_int(b, 1) for b in bits)
    rule = f"a sequence of widths out of {INTEGER_BITS}, or empty"
    _require("bits", widths and set(bits) <= set(INTEGER_BITS), rule, bits)
    _require("epochs", _is_int(epochs, 0), "an int of at least 0", epochs)
    number = isinstance(lr, Real) and not isinstance(lr, bool)
    _require("lr", number and math.isfinite(lr) and lr > 0, "a number above 0", lr)
    _require("distill", distill is None or isinstance(distill, bool), "True, False or None", distill)
    _require("seed", _is_int(seed, 0) and seed < _SEEDS, f"an int from 0 to {_SEEDS - 1}", seed)


def check_removable(structure: Structure) -> None:
    """Refuse a model of which nothing can be removed. Raises CompressError with the reasons."""
    if not structure.n_removable:
        raise CompressError(f"{structure.units.why_nothing_goes()} allocate chooses number formats alone.")


def evaluate_dense(
    structure: Structure, model: nn.Module, task: Task, batches: Sequence[Batch], name: str
) -> tuple[float, float]:
    """Metric and loss of the dense model on batches that came as the parameter `name` of `auto_compress`.

    Raises:
        DataError: naming the parameter, if the batches do not fit model or task.
    """
    if not batches:
        raise DataError(f"The '{name}' parameter of auto_compress must hold at least one batch. Got none.")
    try:
        check_batches(structure, task, batches)
        return evaluate(model, task, batches)
    except DataError as error:
        raise DataError(f"The '{name}' parameter of auto_compress does not fit. {error}") from error
    except (KeyError, IndexError, TypeError, AttributeError) as error:
        raise DataError(
            f"The '{name}' parameter of auto_compress does not fit. The task cannot read its batches "
            f"({type(error).__name__}: {first_line(error)})"
        ) from error


def _is_int(value: Any, least: int) -> bool:
    return isinstance(value, Integral) and not isinstance(value, bool) and value >= least


def _require(name: str, met: bool, rule: str, value: Any) -> None:
    if not met:
        raise CompressError(_refusal(name, rule, value))


def _refusal(name: str, rule: str, value: Any) -> str:
    told = repr(value) if value is None or isinstance(value, (str, int, float, tuple, list)) else type(value).__name__
    return f"The '{name}' parameter of auto_compress must be {rule}. Got {told[:80]}."
