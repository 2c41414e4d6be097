"""The seam of what takes part in a training besides the loss: penalties, masks that are held, schedules of sparsity."""

from typing import Any, Protocol, runtime_checkable

from torch import Tensor, nn


@runtime_checkable
class TrainingHook(Protocol):
    """Called by `finetune_`. What it must remember over a kill lies in the model's parameters and buffers."""

    name: str

    def settings(self) -> dict[str, Any]:
        """Plain JSON of what it was made with: a checkpoint of another hook is refused."""

    def attach(self, model: nn.Module, step: int, total_steps: int) -> None:
        """Called once before training, at `step` 0, or at the step from which a checkpoint goes on."""

    def penalty(self, model: nn.Module) -> Tensor | None:
        """What is added to the loss of this step, a scalar in nats; None for nothing."""

    def after_step(self, model: nn.Module, step: int) -> None:
        """Called after optimizer step number `step` (from 1), under `torch.no_grad`."""

    def settled(self, step: int) -> bool:
        """Whether the model after `step` steps may be the result: False while a schedule still removes weights."""


@runtime_checkable
class PreparingHook(TrainingHook, Protocol):
    """A hook with parameters of its own, which the model holds while it is trained."""

    def prepare(self, model: nn.Module) -> None:
        """Called before the optimizer is made and a checkpoint is read: puts the parameters into the model."""

    def release(self, model: nn.Module) -> None:
        """Called at the end, also after an error: takes away what `prepare` put in and keeps its effect."""
