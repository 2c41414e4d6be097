"""Training on a GPU: models and batches go there for as long as it takes, and come back."""

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor, fx, nn
from torch.utils import _pytree as pytree

CPU = torch.device("cpu")


def is_available(name: str) -> bool:
    """Whether torch knows this device and has it here."""
    try:
        torch.empty(0, device=name)
    except (RuntimeError, AssertionError):  # an unknown name, or a build without it
        return False
    return True


class PlacedBatches:
    """Batches whose tensors are moved to a device when their turn comes.

    Args:
        batches: with a length; a `set_epoch` of theirs is passed on.
        device: where to.
    """

    def __init__(self, batches: Any, device: torch.device) -> None:
        self.batches, self.device = batches, device

    def __len__(self) -> int:
        return len(self.batches)

    def __iter__(self) -> Iterator[Any]:
        for batch in self.batches:
            yield pytree.tree_map(lambda leaf: leaf.to(self.device) if isinstance(leaf, Tensor) else leaf, batch)

    def set_epoch(self, epoch: int) -> None:
        """Choose the epoch, where there is a choice."""
        if hasattr(self.batches, "set_epoch"):
            self.batches.set_epoch(epoch)


@contextmanager
def placed(models: Sequence[nn.Module], device: torch.device) -> Iterator[None]:
    """Within it, the models are on the device; afterwards they are on the CPU, where everything else happens."""
    try:
        for model in models:
            move(model, device)
        yield
    finally:
        for model in models:
            move(model, CPU)


def move(model: nn.Module, device: torch.device) -> None:
    """Move a model, and what a traced one makes itself, in place."""
    model.to(device)
    if not isinstance(model, fx.GraphModule):
        return
    # Tensors that a traced graph makes itself (positions, masks) name the device they were traced on.
    named = [node for node in model.graph.nodes if isinstance(node.kwargs.get("device"), torch.device)]
    for node in named:
        node.kwargs = {**node.kwargs, "device": device}
    if named:
        model.recompile()
