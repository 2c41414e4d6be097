"""Derivatives of every example's loss by the gate of every unit, in one backward pass over activations only."""

from collections.abc import Sequence
from typing import Any

import numpy as np
import torch
from torch import Tensor, fx

from compress.activation_statistics import reduce_positions
from compress.dimensions import BatchLayout
from compress.errors import DataError
from compress.gates import gate_for, gated_module
from compress.structure import Structure
from compress.task import Batch, Task, losses_of


def collect_gate_gradients(structure: Structure, task: Task, batches: Sequence[Batch]) -> np.ndarray:
    """`(n_examples, n_units)` float32: the sum of activation x gradient over each unit's positions and consumers.

    Raises:
        DataError: if a loss is not finite.
    """
    known = all(site.batch is not None for site in structure.sites)
    module = gated_module(structure)
    if known:
        _tap_products(module)
    module.eval()
    dtype = next((p.dtype for p in module.parameters()), torch.float32)
    found = []
    for batch in batches:
        inputs = task.inputs(batch)
        n_gates = inputs[0].shape[0] if known else 1
        gates = torch.ones(n_gates, structure.n_removable, dtype=dtype, device=inputs[0].device, requires_grad=True)
        module.gates = gates
        with torch.enable_grad():
            losses = losses_of(task, module(*inputs), batch)
            check_losses(losses)
            if known:
                gradient = _gradient(losses.sum(), gates)
            else:
                gradient = torch.cat([_gradient(loss, gates, keep=True) for loss in losses])
        found.append(gradient.detach().float().cpu().numpy())
    return np.concatenate(found)


def check_losses(losses: Tensor) -> None:
    """Raises DataError unless every loss is finite."""
    if not torch.isfinite(losses).all():
        raise DataError("The task's loss is not finite on the calibration data. Check model, labels and inputs.")


def _gradient(loss: Tensor, gates: Tensor, keep: bool = False) -> Tensor:
    """The derivative, zero where the loss does not depend on any gate."""
    if not loss.requires_grad:
        return torch.zeros_like(gates)
    (gradient,) = torch.autograd.grad(loss, gates, retain_graph=keep, allow_unused=True)
    return torch.zeros_like(gates) if gradient is None else gradient


def _tap_products(module: fx.GraphModule) -> None:
    """Replace every product with a gate by a tap: with all gates at one the product need not be computed."""
    graph = module.graph
    for node in list(graph.nodes):
        gate = node.args[1] if node.op == "call_function" and node.target is torch.mul else None
        if not isinstance(gate, fx.Node) or gate.target is not gate_for or gate.args[0] is not node.args[0]:
            continue
        if gate.args[4] is None or len(gate.users) > 1:
            continue
        node.target = _tap
        node.args = gate.args
        graph.erase_node(gate)
    module.recompile()


def _tap(x: Tensor, gates: Tensor, rows: Tensor, dim: int, layout: tuple[int, int, int]) -> Tensor:
    """`x` itself; its gradient leaves sum(x * gradient) at the gates."""
    return _Tap.apply(x, gates, rows, dim, BatchLayout(*layout))


class _Tap(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, x: Tensor, gates: Tensor, rows: Tensor, dim: int, batch: BatchLayout) -> Tensor:
        ctx.save_for_backward(x, rows)
        ctx.place = dim % x.dim(), batch, gates.shape, gates.dtype
        return x.view_as(x)

    @staticmethod
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor | None, ...]:
        x, rows = ctx.saved_tensors
        dim, batch, shape, dtype = ctx.place
        sums = reduce_positions(x.detach() * gradient, dim, batch).to(dtype)
        used = rows >= 0
        at_gates = torch.zeros(shape, dtype=dtype, device=x.device)
        at_gates.index_add_(1, rows[used], sums[:, used])
        return gradient, at_gates, None, None, None
