"""A task says what the model is for: a per-example loss, a metric with a direction, how to read a batch."""

from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from typing import Any, Protocol, runtime_checkable

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn import functional as F
from torch.utils import _pytree as pytree

from compress.errors import CompressError, DataError, first_line

Batch = Any
_ONE_TENSOR = "wrap the model in a module that returns that tensor alone"


@runtime_checkable
class Task(Protocol):
    """The seam between a model and what it is used for."""

    metric_name: str
    higher_is_better: bool

    def inputs(self, batch: Batch) -> tuple[Any, ...]:
        """The positional inputs of the model's forward for this batch; each leads with the batch dimension."""

    def loss(self, outputs: Any, batch: Batch) -> Tensor:
        """Loss of each example in nats (or the task's own unit), shape `(batch,)`, differentiable."""

    def score(self, outputs: Tensor, batches: list[Batch]) -> float:
        """The metric over a whole data set: `outputs` are concatenated in the order of `batches`."""


class ClassificationTask:
    """Single-label classification: batches are `(inputs, labels)`, loss cross-entropy, metric accuracy in percent."""

    metric_name = "accuracy_percent"
    higher_is_better = True

    def inputs(self, batch: tuple[Tensor, Tensor]) -> tuple[Tensor, ...]:
        return (batch[0],)

    def loss(self, outputs: Tensor, batch: tuple[Tensor, Tensor]) -> Tensor:
        return F.cross_entropy(outputs, batch[1], reduction="none")

    def score(self, outputs: Tensor, batches: list[tuple[Tensor, Tensor]]) -> float:
        labels = torch.cat([labels for _, labels in batches]).to(outputs.device)
        return 100.0 * (outputs.argmax(dim=-1) == labels).double().mean().item()


def losses_of(task: Task, outputs: Any, batch: Batch) -> Tensor:
    """The task's losses of a batch, `(batch,)`; what is wrong with the batch is told as such.

    Raises:
        DataError: if the loss cannot be computed of these outputs and this batch, or is not one for each example.
    """
    try:
        losses = task.loss(outputs, batch)
    except (CompressError, torch.OutOfMemoryError):
        raise
    except (RuntimeError, ValueError, TypeError, LookupError, AttributeError) as error:
        remedy = "Check the labels: their number, their type and their range."
        if not isinstance(outputs, Tensor):
            remedy = f"The model gives a {type(outputs).__name__}: {_ONE_TENSOR}, or have the task's loss read it."
        raise DataError(
            f"The task's loss cannot be computed on a batch of {_shapes(batch)} and outputs of {_shapes(outputs)}: "
            f"{first_line(error)} {remedy}"
        ) from error
    n = task.inputs(batch)[0].shape[0]
    if not isinstance(losses, Tensor) or tuple(losses.shape) != (n,):
        found = _shapes(losses)
        raise DataError(f"The task's loss must be one number for each of {n} examples, shape ({n},). Got {found}.")
    return losses


def outputs_of(model: Any, inputs: tuple[Any, ...]) -> Any:
    """The model's outputs; inputs that do not fit it are told as such.

    Raises:
        DataError: if the model does not run on these inputs.
    """
    with running_on(inputs):
        return model(*inputs)


@contextmanager
def running_on(inputs: Any) -> Iterator[None]:
    """Within it, an error of torch is a DataError that names the shapes and types of `inputs`."""
    try:
        yield
    except (CompressError, torch.OutOfMemoryError):
        raise
    except (RuntimeError, ValueError, TypeError, LookupError, AssertionError) as error:
        raise DataError(
            f"The model does not run on inputs of {_shapes(inputs)}: {first_line(error)} Check their shapes and types."
        ) from error


def _shapes(value: Any) -> str:
    leaves = [leaf for leaf in pytree.tree_leaves(value) if isinstance(leaf, Tensor)]
    told = ", ".join(f"{tuple(leaf.shape)} {str(leaf.dtype).removeprefix('torch.')}" for leaf in leaves)
    return told or type(value).__name__


def evaluate(model: nn.Module, task: Task, batches: Iterable[Batch]) -> tuple[float, float]:
    """Metric and mean loss of `model` over `batches`, in evaluation mode; the model's mode is restored.

    Returns:
        `(metric, loss)`: the task's metric, and the mean per-example loss accumulated in float64.

    Raises:
        DataError: if there is no batch, or one that does not fit the model or the task.
    """
    batches = list(batches)
    if not batches:
        raise DataError("The 'batches' parameter of evaluate must hold at least one batch. Got none.")
    modes = [(module, module.training) for module in model.modules()]
    model.eval()
    outputs, losses = [], []
    try:
        with torch.no_grad():
            for batch in batches:
                outputs.append(outputs_of(model, task.inputs(batch)))
                losses.append(losses_of(task, outputs[-1], batch).double().cpu().numpy())
    finally:
        for module, training in modes:
            module.training = training
    if not all(isinstance(out, Tensor) for out in outputs):
        raise DataError(
            f"The model gives a {type(outputs[0]).__name__}, and the metric needs one tensor, examples first: "
            f"{_ONE_TENSOR}."
        )
    return task.score(torch.cat(outputs), batches), float(np.concatenate(losses).mean())
