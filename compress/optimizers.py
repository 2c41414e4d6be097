"""The optimizer of a fine-tuning, and what its learning rate means for each group of parameters."""

from collections.abc import Mapping, Sequence
from typing import Any

import torch
from torch import nn

from compress.formatted_weight import formatted_weights


def make_optimizer(
    model: nn.Module, parameters: Sequence[nn.Parameter], settings: Mapping[str, Any]
) -> torch.optim.Optimizer:
    """The optimizer of these settings over these parameters of a model, and of what is trained beside it.

    Weight decay acts on what has two or more dimensions. AdamW takes steps of the learning rate, however small the
    gradient: trained scales, offsets and centroids of number formats get groups of their own, whose learning rate is a
    part of their size (see `relative_step`). What is trained is then nearly the logarithm of a scale (Jain et al. 2019,
    "Trained Quantization Thresholds", arXiv:1903.08066); plain steps throw a scale of .02 about by a tenth of itself.

    Args:
        model: whose formats are looked for.
        parameters: all that are trained.
        settings: `optimizer`, `lr`, `momentum`, `weight_decay` and `range_rate` of `finetune_`.
    """
    adaptive, lr, momentum = settings["optimizer"] == "adamw", settings["lr"], settings["momentum"]
    formats = [[p for p in entry.module.parameters() if p.requires_grad] for entry in formatted_weights(model)]
    formats = [own for own in formats if own] if adaptive else []
    apart = {id(p) for own in formats for p in own}
    rest = [p for p in parameters if id(p) not in apart]
    rate = settings["range_rate"]
    groups: list[dict[str, Any]] = [
        {"params": [p for p in rest if p.dim() > 1], "weight_decay": settings["weight_decay"], "rate": None},
        {"params": [p for p in rest if p.dim() <= 1], "weight_decay": 0.0, "rate": None},
        *({"params": own, "weight_decay": 0.0, "rate": rate} for own in formats),
    ]
    groups = [group for group in groups if group["params"]]
    if adaptive:
        return torch.optim.AdamW(groups, lr=lr, betas=(momentum, 0.999))
    return torch.optim.SGD(groups, lr=lr, momentum=momentum, nesterov=momentum > 0)


@torch.no_grad()
def relative_step(group: Mapping[str, Any]) -> float:
    """What the learning rate of a group is multiplied by: where it has a rate, that of its mean magnitude."""
    if group["rate"] is None:
        return 1.0
    return group["rate"] * float(torch.cat([p.flatten() for p in group["params"]]).abs().mean())
