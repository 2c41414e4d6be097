"""A task says what the model is for: a per-example loss, a metric with a direction, how to read a batch."""

from collections.abc import Iterable
from typing import Any, Protocol, runtime_checkable

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from compress.errors import DataError

Batch = Any


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


def evaluate(model: nn.Module, task: Task, batches: Iterable[Batch]) -> tuple[float, float]:
    """Metric and mean loss of `model` over `batches`, in evaluation mode; the model's mode is restored.

    Returns:
        `(metric, loss)`: the task's metric, and the mean per-example loss accumulated in float64.

    Raises:
        DataError: if there is no batch.
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
                outputs.append(model(*task.inputs(batch)))
                losses.append(task.loss(outputs[-1], batch).double().cpu().numpy())
    finally:
        for module, training in modes:
            module.training = training
    return task.score(torch.cat(outputs), batches), float(np.concatenate(losses).mean())
