"""How far the outputs and the loss of a network move when the outputs of one layer do."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor, fx
from torch.utils import _pytree as pytree

from compress.counting import count_macs
from compress.errors import DataError
from compress.gate_gradients import check_losses
from compress.graph import Layer
from compress.structure import Structure
from compress.task import Batch, Task, losses_of, outputs_of

# Beyond this many outputs of a layer only the diagonal is worth its memory.
_MOST_OUTPUTS = 2048


@dataclass(frozen=True, eq=False)
class OutputSensitivity:
    """Second-order sensitivity to small changes of layers' outputs, summed over positions.

    If a layer's outputs change by d at every position independently, with E[d d^T] = C, the network's outputs change by
    trace(C J) / `output_energy` of their variance (the Gauss-Newton approximation), and the loss by about
    trace(C F) / 2 nats (the empirical Fisher one).

    Attributes:
        outputs: call of the layer -> J, `(n_outputs, n_outputs)` float64, or its diagonal `(n_outputs,)` where there
            are very many: E over examples of J^T J, J being the derivative of the network's outputs.
        loss: the same of the derivative of the loss: F.
        output_energy: variance of the network's outputs over examples, summed over outputs.
        forward_macs: MACs spent (a backward pass counts as two forward passes).
        variances: node that another one reads beside a second -> variance of its output over the examples of a batch,
            summed over elements.
    """

    outputs: Mapping[str, Tensor]
    loss: Mapping[str, Tensor]
    output_energy: float
    forward_macs: float
    variances: Mapping[str, float] = field(default_factory=dict)


def collect_output_sensitivity(
    structure: Structure, task: Task, batches: Sequence[Batch], probes: int = 4, seed: int = 0
) -> OutputSensitivity:
    """Sensitivity to the outputs of every conv and linear layer, in evaluation mode; the model stays as it is.

    J is estimated from random projections of the network's first output (Hutchinson 1990): `probes` backward passes
    over each batch, and one for F.

    Raises:
        DataError: without batches, or if the loss is not finite.
    """
    batches = list(batches)
    if not batches:
        raise DataError("The 'batches' of collect_output_sensitivity must hold at least one batch. Got none.")
    probe = _Probe(structure)
    module, generator = structure.traced.module, torch.Generator().manual_seed(seed)
    was_training = module.training
    module.eval()
    total, square, mean = 0, 0.0, None
    try:
        for batch in batches:
            inputs = task.inputs(batch)
            with torch.enable_grad():
                outputs = outputs_of(probe.outputs, inputs)
                first = next(leaf for leaf in pytree.tree_leaves(outputs) if isinstance(leaf, Tensor))
                losses = losses_of(task, outputs, batch)
                check_losses(losses)
                for _ in range(probes):
                    direction = torch.randn(first.shape, generator=generator, dtype=torch.float32).to(first)
                    probe.add("outputs", (direction * first).sum(), probes)
                probe.add("loss", losses.sum(), 1)
            values = first.detach().double()
            total += inputs[0].shape[0]
            square += float(values.square().sum())
            summed = values.sum(0)
            mean = summed if mean is None else _sum(mean, summed)
    finally:
        module.train(was_training)
    energy = max(square - float(mean.square().sum()) / total, 1e-30) / total
    found = {kind: {name: matrix / total for name, matrix in sums.items()} for kind, sums in probe.sums.items()}
    macs = (1 + 2 * (probes + 1)) * total * count_macs(structure)
    variances = {name: value / len(batches) for name, value in probe.variances.items()}
    return OutputSensitivity(found["outputs"], found["loss"], energy, macs, variances)


def _sum(a: Tensor, b: Tensor) -> Tensor:
    """The sum; outputs of sequences of other lengths (padding) are taken as zero beyond their end."""
    shape = [max(sizes) for sizes in zip(a.shape, b.shape, strict=True)]
    found = a.new_zeros(shape)
    for x in (a, b):
        found[tuple(slice(size) for size in x.shape)] += x
    return found


class _Probe(fx.Interpreter):
    """Runs the graph, and keeps the outputs of its layers for the gradients to come."""

    def __init__(self, structure: Structure) -> None:
        super().__init__(structure.traced.module)
        self._layers = {x.node.name: x for x in structure.traced.layers() if x.kind != "embedding"}
        self._kept: dict[str, Tensor] = {}
        self.sums: dict[str, dict[str, Tensor]] = {"outputs": {}, "loss": {}}
        self.variances: dict[str, float] = {}
        values = {node for node in self.graph.nodes if node.op in ("call_function", "placeholder")}
        meetings = [node.all_input_nodes for node in values if len(values & {*node.all_input_nodes}) > 1]
        self._met = {source for sources in meetings for source in sources}

    def outputs(self, *inputs: Any) -> Any:
        self._kept = {}
        return self.run(*inputs)

    def run_node(self, node: fx.Node) -> Any:
        out = super().run_node(node)
        if node in self._met and isinstance(out, Tensor) and out.is_floating_point() and out.dim():
            own = float(out.detach().double().var(0, correction=0).sum())
            self.variances[node.name] = self.variances.get(node.name, 0.0) + own
        if node.name in self._layers:
            if not out.requires_grad:
                out = out.detach().requires_grad_()
            self._kept[node.name] = out
            # What comes next may write into it.
            return out.clone()
        return out

    def add(self, kind: str, value: Tensor, probes: int) -> None:
        if not value.requires_grad or not self._kept:
            return
        gradients = torch.autograd.grad(value, list(self._kept.values()), retain_graph=True, allow_unused=True)
        for name, gradient in zip(self._kept, gradients, strict=True):
            if gradient is None:
                continue
            rows = _by_output(self._layers[name], gradient)
            narrow = rows.shape[1] <= _MOST_OUTPUTS
            found = ((rows.t() @ rows) if narrow else rows.square().sum(0)).double().cpu() / probes
            sums = self.sums[kind]
            sums[name] = found if name not in sums else sums[name] + found


def _by_output(layer: Layer, gradient: Tensor) -> Tensor:
    dim = gradient.dim() - 1 if layer.kind == "linear" else 1
    return gradient.movedim(dim, -1).reshape(-1, gradient.shape[dim])
