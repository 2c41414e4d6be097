"""Batch-norm statistics estimated anew: what a pruned network's channels really have for mean and variance."""

import logging
from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor, fx

from compress.attributes import value_of
from compress.graph import ATEN, is_parameter
from compress.lockstep import Walk

_log = logging.getLogger(__name__)


def reestimate_batch_norm_(
    module: fx.GraphModule, batches: Sequence[tuple[Any, ...]], *, keep_function: bool = False
) -> list[str]:
    """Set running mean and variance of every batch norm to those of these inputs, in place, in execution order.

    The variance is the exact one of all batches together (unbiased, as in training); each norm sees what the norms
    before it give with their new statistics.

    Args:
        module: a traced module.
        batches: flat inputs of the forward, for each batch.
        keep_function: scale and shift change along, so that the model computes the same in evaluation mode. After a
            refit, whose solution holds for the old statistics only, this makes training mode agree with it.

    Returns:
        Names of the running means that were set; empty if there is no batch norm.
    """
    done: dict[str, fx.Node] = {}
    walk = Walk(module, batches)
    with torch.no_grad():
        for node in walk.nodes():
            if node.target is not ATEN.batch_norm.default or node.args[3] is None:
                continue
            if node.args[3].target in done:
                _log.warning("Batch norm %s is used more than once; its first use counts.", node.args[3].target)
                continue
            done[node.args[3].target] = node
            mean, variance = pooled_moments([values[node.args[0].name] for values in walk.values])
            _set(module, node, mean, variance, keep_function)
            walk.run(node)
    if not done:
        _log.debug("The model has no batch norm: there is nothing to re-estimate.")
    return list(done)


def pooled_moments(values: Sequence[Tensor]) -> tuple[Tensor, Tensor]:
    """`(mean, unbiased variance)` of each channel (dimension 1) over all other dimensions of all values, in float64."""
    count, total = 0, 0.0
    for x in values:
        count += x.numel() // x.shape[1]
        total = total + x.double().transpose(0, 1).flatten(1).sum(1)
    mean = total / count
    square = sum((x.double().transpose(0, 1).flatten(1) - mean[:, None]).square().sum(1) for x in values)
    return mean, square / max(count - 1, 1)


def _set(module: fx.GraphModule, node: fx.Node, mean: Tensor, variance: Tensor, keep_function: bool) -> None:
    _, weight, bias, old_mean, old_variance, _, _, eps, *_ = node.args
    old_mean, old_variance = value_of(module, old_mean.target), value_of(module, old_variance.target)
    if keep_function:
        if not (is_parameter(weight) and is_parameter(bias)):
            _log.warning("Batch norm %s has no scale and shift to adapt and stays as it is.", node.name)
            return
        gamma, beta = value_of(module, weight.target), value_of(module, bias.target)
        # A channel that never varies tells nothing about its scale.
        alive = variance > eps * 1e-3
        variance = torch.where(alive, variance, old_variance.double())
        slope = gamma.double() * torch.rsqrt(old_variance.double() + eps)
        beta.copy_(beta.double() + (mean - old_mean.double()) * slope)
        gamma.copy_(slope * torch.sqrt(variance + eps))
    old_mean.copy_(mean)
    old_variance.copy_(variance)
