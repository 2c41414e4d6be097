"""Gates: one multiplier per unit, put where the unit is consumed, so that zero means as if it were absent."""

from typing import Any

import numpy as np
import torch
from torch import Tensor, fx

from compress.attributes import copy_traced
from compress.errors import CompressError
from compress.graph import ATEN, argument, place
from compress.structure import Site, Structure

NORMS = (ATEN.layer_norm.default, ATEN.rms_norm.default, ATEN.group_norm.default)
SOFTMAXES = {ATEN.softmax.int: False, ATEN._softmax.default: False, ATEN.log_softmax.int: True,
             ATEN._log_softmax.default: True}  # fmt: skip
EXTREMES = (ATEN.amax.default, ATEN.amin.default)
MEANS = (ATEN.mean.dim, ATEN.mean.default)
SPREADS = {ATEN.var.correction: False, ATEN.var.dim: False, ATEN.std.correction: True, ATEN.std.dim: True}


def gated_module(structure: Structure, gates: Tensor | None = None) -> fx.GraphModule:
    """The model with a gate for every unit; parameters are shared, shapes stay the same.

    `module.gates` holds the multipliers, `(1, n_removable)` for all examples alike or `(batch, n_removable)` for each
    example its own. Set it before a call; all ones give the model itself. Gates carry gradients.
    """
    graph = copy_traced(structure.traced.graph)
    nodes = {node.name: node for node in graph.nodes}
    module = fx.GraphModule(structure.traced.module, graph)
    source = structure.traced.module
    for name, parameter in source.named_parameters(remove_duplicate=False):
        place(module, name, parameter)
    for name, buffer in source.named_buffers(remove_duplicate=False):
        owner, _, leaf = name.rpartition(".")
        place(module, name, buffer, leaf not in source.get_submodule(owner)._non_persistent_buffers_set)
    n = structure.n_removable
    module.register_buffer("gates", torch.ones(1, n) if gates is None else gates, persistent=False)
    with graph.inserting_before(next(iter(graph.nodes))):
        gates_node = graph.create_node("get_attr", "gates", name="gates")
    by_node: dict[str, list[Site]] = {}
    for site in structure.sites:
        by_node.setdefault(site.node.name, []).append(site)
    for name, sites in by_node.items():
        _gate(module, nodes[name], sites, gates_node)
    module.recompile()
    module.train(source.training)
    return module


def _gate(module: fx.GraphModule, node: fx.Node, sites: list[Site], gates: fx.Node) -> None:
    """Silence the units of these sites at `node`: its input is multiplied, or its sums are weighted."""
    graph = node.graph
    with graph.inserting_before(node):
        found = []
        for site in sites:
            name = f"gate_rows_{len(module._buffers)}"
            module.register_buffer(name, torch.from_numpy(site.rows), persistent=False)
            rows = graph.create_node("get_attr", name)
            layout = (site.batch.dim, site.batch.outer, site.batch.inner) if site.batch else None
            x = node.args[site.argument]
            found.append((site, graph.call_function(gate_for, (x, gates, rows, site.dim, layout))))
        if any(node.target in kinds for kinds in (NORMS, SOFTMAXES, EXTREMES, MEANS, SPREADS)):
            gate = found[0][1]
            for _, other in found[1:]:
                gate = graph.call_function(torch.mul, (gate, other))
            new = _weighted(graph, node, gate)
            node.replace_all_uses_with(new)
            graph.erase_node(node)
            return
        for site, gate in found:
            x = node.args[site.argument]
            node.update_arg(site.argument, graph.call_function(torch.mul, (x, gate), name=f"{node.name}_gated"))


def _weighted(graph: fx.Graph, node: fx.Node, gate: fx.Node) -> fx.Node:
    if node.target is ATEN.group_norm.default:
        return graph.call_function(gated_group_norm, (node.args[0], gate, *node.args[1:]), name=f"{node.name}_gated")
    if node.target in NORMS:
        centre = node.target is ATEN.layer_norm.default
        weight, bias = argument(node, 2, "weight"), argument(node, 3, "bias") if centre else None
        eps = argument(node, 4 if centre else 3, "eps", 1e-5 if centre else None)
        arguments = (node.args[0], gate, len(node.args[1]), weight, bias, eps, centre)
        return graph.call_function(gated_layer_norm, arguments, name=f"{node.name}_gated")
    if node.target in MEANS:
        dims = argument(node, 1, "dim") if node.target is ATEN.mean.dim else None
        keepdim = argument(node, 2, "keepdim", False) if node.target is ATEN.mean.dim else False
        return graph.call_function(gated_mean, (node.args[0], gate, dims, keepdim), name=f"{node.name}_gated")
    if node.target in SPREADS:
        by_flag = node.target in (ATEN.var.dim, ATEN.std.dim)
        correction = int(argument(node, 2, "unbiased", True)) if by_flag else node.kwargs.get("correction")
        keepdim = argument(node, 3 if by_flag else 9, "keepdim", False)
        arguments = (node.args[0], gate, argument(node, 1, "dim"), 1 if correction is None else correction, keepdim,
                     SPREADS[node.target])  # fmt: skip
        return graph.call_function(gated_spread, arguments, name=f"{node.name}_gated")
    if node.target in SOFTMAXES:
        arguments = (node.args[0], gate, node.args[1], SOFTMAXES[node.target])
        return graph.call_function(gated_softmax, arguments, name=f"{node.name}_gated")
    worst = float("inf") if node.target is ATEN.amin.default else float("-inf")
    silenced = graph.call_function(gated_extreme, (node.args[0], gate, worst))
    return graph.call_function(node.target, (silenced, *node.args[1:]), dict(node.kwargs), name=f"{node.name}_gated")


def gate_for(x: Tensor, gates: Tensor, rows: Tensor, dim: int, layout: tuple[int, int, int] | None) -> Tensor:
    """The gates of one dimension of `x`, shaped to be broadcast with it; fixed indices (row -1) get one."""
    table = torch.cat([gates, gates.new_ones(gates.shape[0], 1)], dim=1).to(x.dtype)
    values = table[:, rows]
    shape = [1] * x.dim()
    shape[dim] = len(rows)
    if values.shape[0] == 1:
        return values.view(shape)
    if layout is None:
        raise CompressError(
            "Gates of single examples need a known batch dimension here. Use one gate for all examples."
        )
    batch_dim, outer, inner = layout
    values = values.repeat_interleave(inner, dim=0).repeat(outer, 1)
    shape[batch_dim] = values.shape[0]
    return (values if batch_dim < dim else values.t()).reshape(shape)


def gated_layer_norm(
    x: Tensor, gate: Tensor, n_dims: int, weight: Tensor | None, bias: Tensor | None, eps: float | None, centre: bool
) -> Tensor:
    """Layer norm (or RMS norm, without `centre`) in which every index counts as much as its gate says."""
    dims = tuple(range(x.dim() - n_dims, x.dim()))
    x = x * (gate != 0)
    count = _nonzero(gate.expand(x.shape).sum(dims, keepdim=True))
    if centre:
        x = x - (x * gate).sum(dims, keepdim=True) / count
    power = (x * x * gate).sum(dims, keepdim=True) / count
    out = x * torch.rsqrt(power + (torch.finfo(x.dtype).eps if eps is None else eps))
    if weight is not None:
        out = out * weight
    return out if bias is None else out + bias


def gated_group_norm(
    x: Tensor, gate: Tensor, groups: int, weight: Tensor | None = None, bias: Tensor | None = None, eps: float = 1e-5,
    _cudnn: bool = True,
) -> Tensor:  # fmt: skip
    """Group norm in which every channel counts as much as its gate says; an empty group gives its bias."""
    shape = (x.shape[0], groups, -1)
    x = x * (gate != 0)
    values, weights = x.reshape(shape), gate.expand(x.shape).reshape(shape)
    count = _nonzero(weights.sum(-1, keepdim=True))
    centred = values - (values * weights).sum(-1, keepdim=True) / count
    power = (centred * centred * weights).sum(-1, keepdim=True) / count
    out = (centred * torch.rsqrt(power + eps)).reshape(x.shape)
    per_channel = (1, -1, *[1] * (x.dim() - 2))
    if weight is not None:
        out = out * weight.view(per_channel)
    return out if bias is None else out + bias.view(per_channel)


def gated_mean(x: Tensor, gate: Tensor, dims: list[int] | int | None, keepdim: bool) -> Tensor:
    """Mean over the indices that are there."""
    dims = list(range(x.dim())) if dims is None else dims
    weights = gate.expand(x.shape)
    return (x * gate).sum(dims, keepdim=keepdim) / _nonzero(weights.sum(dims, keepdim=keepdim))


def gated_spread(
    x: Tensor, gate: Tensor, dims: list[int] | None, correction: float, keepdim: bool, root: bool
) -> Tensor:
    """Variance (or its root) of the indices that are there."""
    dims = list(range(x.dim())) if dims is None else dims
    count = gate.expand(x.shape).sum(dims, keepdim=True)
    centred = (x - (x * gate).sum(dims, keepdim=True) / _nonzero(count)) * (gate != 0)
    power = (centred * centred * gate).sum(dims, keepdim=keepdim)
    out = power / ((count if keepdim else count.squeeze(dims)) - correction)
    return out.sqrt() if root else out


def _nonzero(count: Tensor) -> Tensor:
    """Counts to divide by: where nothing is left there is nothing to divide either."""
    return count + (count == 0)


def gated_softmax(x: Tensor, gate: Tensor, dim: int, log: bool) -> Tensor:
    """Softmax (or its logarithm) over the indices that are there, each as often as its gate says."""
    there = gate != 0
    x = x - x.masked_fill(~there, float("-inf")).amax(dim, keepdim=True).detach()
    x = x * there
    total = (x.exp() * gate).sum(dim, keepdim=True)
    return x - total.log() if log else x.exp() / total


def gated_extreme(x: Tensor, gate: Tensor, worst: float) -> Tensor:
    """Values of a maximum or minimum in which a silenced index never wins."""
    return x.masked_fill(gate == 0, worst)


def gates_of(removed: np.ndarray, like: Tensor | None = None) -> Tensor:
    """`(1, n)` gates, zero where `removed`."""
    gates = torch.from_numpy(1.0 - removed.astype(np.float64))[None]
    return gates.to(torch.float32) if like is None else gates.to(like)


def evaluate_gated(structure: Structure, gates: Tensor, *inputs: Any) -> Any:
    """Outputs of the model under these gates."""
    return gated_module(structure, gates)(*inputs)
