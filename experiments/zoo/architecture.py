"""From a recipe to its network."""

from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from compress.errors import CompressError
from experiments.seeding import seeded
from experiments.zoo.families import (
    AttentionNet,
    ConcatNet,
    Conv1dNet,
    Conv2dNet,
    DepthwiseNet,
    MLPNet,
    RecurrentNet,
    ResidualNet,
    SelfAttention,
)
from experiments.zoo.recipe import Recipe
from experiments.zoo.tasks import TASKS, input_spec

_ALL_KINDS = ("image", "signal", "tokens")


@dataclass(frozen=True)
class Family:
    """A family's class, and the kinds of inputs that it suits."""

    network: type[nn.Module]
    kinds: tuple[str, ...] = _ALL_KINDS


FAMILIES = {
    "mlp": Family(MLPNet),
    "conv1d": Family(Conv1dNet, ("signal", "tokens")),
    "conv2d": Family(Conv2dNet, ("image",)),
    "residual": Family(ResidualNet),
    "depthwise": Family(DepthwiseNet),
    "concat": Family(ConcatNet),
    "attention": Family(AttentionNet),
    "recurrent": Family(RecurrentNet),
}


def _pairs() -> tuple[tuple[str, str], ...]:
    """Every family with every task that it suits, family after family, each beginning with another task."""
    suited = {
        name: [task for task in TASKS if TASKS[task].spec.kind in family.kinds] for name, family in FAMILIES.items()
    }
    found = []
    for turn in range(len(TASKS)):
        for shift, (name, tasks) in enumerate(suited.items()):
            if turn < len(tasks):
                found.append((name, tasks[(turn + shift) % len(tasks)]))
    return tuple(found)


PAIRS = _pairs()


def build_network(recipe: Recipe) -> nn.Module:
    """The network with its initial weights, which depend on the recipe alone, in training mode.

    Raises:
        CompressError: for an unknown family or task, or a family that does not suit the task.
    """
    spec = input_spec(recipe.task)
    if (recipe.family, recipe.task) not in PAIRS:
        raise CompressError(
            f"The family {recipe.family!r} of recipe {recipe.name!r} does not suit the task {recipe.task!r}. "
            f"Families: {', '.join(FAMILIES)}."
        )
    with seeded(f"zoo/weights/{recipe.name}", recipe.seed):
        return FAMILIES[recipe.family].network(recipe, spec)


def network_size(recipe: Recipe) -> tuple[int, int]:
    """`(parameters, macs)` of one example, without making weights; a GRU, which costs leave out, is counted here."""
    spec = input_spec(recipe.task)
    with torch.device("meta"):
        network = FAMILIES[recipe.family].network(recipe, spec).eval()
        inputs = torch.empty(1, *spec.shape, dtype=torch.int64 if spec.tokens else torch.float32)
    macs: list[int] = []
    for module in network.modules():
        if isinstance(module, (nn.Linear, nn.Conv1d, nn.Conv2d, nn.GRU, SelfAttention)):
            module.register_forward_hook(lambda layer, _, output: macs.append(_layer_macs(layer, output)))
    with torch.no_grad():
        network(inputs)
    return sum(p.numel() for p in network.parameters()), sum(macs)


def _layer_macs(layer: nn.Module, output: Any) -> int:
    if isinstance(layer, nn.GRU):
        steps = output[0].shape[1]
        return steps * (layer.weight_ih_l0.numel() + layer.weight_hh_l0.numel())
    assert isinstance(output, Tensor)
    if isinstance(layer, SelfAttention):
        # Queries with keys, and the result with values; its linear layers are counted by themselves.
        return 2 * output.numel() * output.shape[1]
    return output.numel() * layer.weight[0].numel()
