"""What scores of single weights are made of: gradients of the weights and second moments of what they multiply."""

from collections.abc import Collection, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, fx, nn
from torch.utils import _pytree as pytree

from compress.attributes import value_of
from compress.errors import CompressError, DataError
from compress.gate_gradients import check_losses
from compress.graph import trace
from compress.patches import LinearMap, linear_map
from compress.prunable_weights import PrunableWeight, prunable_layers, prunable_weights
from compress.task import Batch, Task, losses_of

KINDS = ("gradients", "squared_gradients", "inputs", "hessian")
# Positions of an example (pixels, tokens) that a second moment looks at, evenly spaced.
_POSITIONS = 64


@dataclass(frozen=True, eq=False)
class WeightStatistics:
    """Statistics of one weight, float64 on the CPU; what was not collected is None.

    Attributes:
        name: of the layer.
        weight: the weight.
        gradient: of the weight's shape, derivative of the mean loss.
        squared_gradient: of the weight's shape, mean over examples of the square of each one's derivative.
        input_square: `(groups, n)` mean square of what each column of the weight's matrix multiplies.
        input_moment: `(groups, n, n)` mean products of these.
        layout: how the weight is a matrix, for the two above.
    """

    name: str
    weight: Tensor
    gradient: Tensor | None = None
    squared_gradient: Tensor | None = None
    input_square: Tensor | None = None
    input_moment: Tensor | None = None
    layout: LinearMap | None = None

    def need(self, field: str) -> Any:
        """A field that must have been collected. Raises CompressError naming layer and field otherwise."""
        value = getattr(self, field)
        if value is None:
            raise CompressError(
                f"The statistics of layer {self.name!r} lack {field!r}. Name its kind in 'needs', or skip "
                f"the layer: inputs are known of conv and linear layers that can be traced."
            )
        return value


def collect_weight_statistics(
    model: nn.Module, needs: Collection[str], task: Task | None = None, batches: Sequence[Batch] = (),
    skip: Collection[str] = (),
) -> dict[str, WeightStatistics]:  # fmt: skip
    """Layer name -> statistics of its weight, in evaluation mode; model, gradients and RNG stay as they are.

    A forward and a backward pass for `"gradients"`; as many for each example by itself for `"squared_gradients"`; a
    forward pass for `"inputs"` and `"hessian"`, at up to 64 evenly spaced positions of an example. For these two a
    model that was not traced is traced.

    Args:
        model: traced or not.
        needs: subset of `{"gradients", "squared_gradients", "inputs", "hessian"}`; nothing needs no data.
        task, batches: reads the calibration batches and gives the loss of each example.
        skip: layers to leave out, with wildcards.

    Raises:
        DataError: without batches where they are needed, or if the loss is not finite.
    """
    unknown = sorted(set(needs) - set(KINDS))
    if unknown:
        raise CompressError(f"The 'needs' of weight statistics must be among {KINDS}. Got {unknown[0]!r}.")
    batches = list(batches)
    if needs and (task is None or not batches):
        raise DataError(f"Scores of weights that need {sorted(needs)} need a task and at least one calibration batch.")
    weights = prunable_weights(model, skip)
    found: dict[str, dict[str, Any]] = {name: {"weight": _exact(weight.tensor)} for name, weight in weights.items()}
    with _evaluated(model, weights):
        if "gradients" in needs:
            _add(found, "gradient", _gradients(model, task, batches, weights))
        if "squared_gradients" in needs:
            _add(found, "squared_gradient", _squared_gradients(model, task, batches, weights))
        if {"inputs", "hessian"} & set(needs):
            _add_inputs(found, model, task, batches, "hessian" in needs)
    return {name: WeightStatistics(name, **fields) for name, fields in found.items()}


def _exact(value: Tensor) -> Tensor:
    return value.detach().cpu().double()


def _add(found: Mapping[str, dict[str, Any]], field: str, values: Sequence[Tensor]) -> None:
    for fields, value in zip(found.values(), values, strict=True):
        fields[field] = value


@contextmanager
def _evaluated(model: nn.Module, weights: Mapping[str, PrunableWeight]) -> Iterator[None]:
    """Evaluation mode, and weights that take gradients; afterwards modes, flags and random numbers are as before."""
    modes = [(module, module.training) for module in model.modules()]
    frozen = [weight.tensor for weight in weights.values() if not weight.tensor.requires_grad]
    model.eval()
    for tensor in frozen:
        tensor.requires_grad_()
    try:
        with torch.random.fork_rng(devices=range(torch.cuda.device_count())), torch.enable_grad():
            yield
    finally:
        for tensor in frozen:
            tensor.requires_grad_(False)
        for module, training in modes:
            module.training = training


def _derivatives(loss: Tensor, weights: Mapping[str, PrunableWeight], keep: bool = False) -> list[Tensor]:
    tensors = [weight.tensor for weight in weights.values()]
    gradients: Sequence[Tensor | None] = [None] * len(tensors)
    if loss.requires_grad and tensors:
        gradients = torch.autograd.grad(loss, tensors, retain_graph=keep, allow_unused=True)
    return [torch.zeros(t.shape, dtype=torch.float64) if g is None else _exact(g)
            for t, g in zip(tensors, gradients, strict=True)]  # fmt: skip


def _losses(model: nn.Module, task: Task, batch: Batch) -> Tensor:
    losses = losses_of(task, model(*task.inputs(batch)), batch)
    check_losses(losses)
    return losses


def _gradients(
    model: nn.Module, task: Task, batches: Sequence[Batch], weights: Mapping[str, PrunableWeight]
) -> list[Tensor]:
    sums, n = [torch.zeros(w.tensor.shape, dtype=torch.float64) for w in weights.values()], 0
    for batch in batches:
        losses = _losses(model, task, batch)
        n += len(losses)
        for total, gradient in zip(sums, _derivatives(losses.sum(), weights), strict=True):
            total += gradient
    return [total / n for total in sums]


def _squared_gradients(
    model: nn.Module, task: Task, batches: Sequence[Batch], weights: Mapping[str, PrunableWeight]
) -> list[Tensor]:
    sums, n = [torch.zeros(w.tensor.shape, dtype=torch.float64) for w in weights.values()], 0
    for batch in batches:
        for part in _examples(batch, len(task.inputs(batch)[0])):
            losses = _losses(model, task, part)
            n += len(losses)
            for i, loss in enumerate(losses):
                gradients = _derivatives(loss, weights, keep=i + 1 < len(losses))
                for total, gradient in zip(sums, gradients, strict=True):
                    total += gradient.square()
    return [total / n for total in sums]


def _examples(batch: Batch, size: int) -> list[Batch]:
    """Batches of one example each; the batch itself if something in it has not one row per example."""
    leaves = pytree.tree_leaves(batch)
    if not all(isinstance(leaf, Tensor) and leaf.dim() and leaf.shape[0] == size for leaf in leaves):
        return [batch]
    return [pytree.tree_map(lambda leaf, row=row: leaf[row : row + 1], batch) for row in range(size)]


def _add_inputs(
    found: Mapping[str, dict[str, Any]], model: nn.Module, task: Task, batches: Sequence[Batch], products: bool
) -> None:
    module = model if isinstance(model, fx.GraphModule) else trace(model, task.inputs(batches[0])).module
    was_training = module.training
    module.eval()
    try:
        with torch.no_grad():
            sums = _InputSums(module, products)
            for batch in batches:
                sums.run(*task.inputs(batch))
    finally:
        module.train(was_training)
    for name, fields in found.items():
        if name in sums.counts:
            mean = sums.totals[name] / sums.counts[name]
            fields["layout"] = sums.layouts[name]
            fields["input_square"] = mean.diagonal(dim1=1, dim2=2) if products else mean
            fields["input_moment"] = mean if products else None


class _InputSums(fx.Interpreter):
    """Adds up squares, or products, of what the weight of each conv and linear layer multiplies."""

    def __init__(self, module: fx.GraphModule, products: bool) -> None:
        super().__init__(module)
        self._products = products
        self._layers = {layer.node.name: layer for layer in prunable_layers(module)}
        self.layouts: dict[str, LinearMap] = {}
        self.totals: dict[str, Tensor] = {}
        self.counts: dict[str, int] = {}

    def run_node(self, node: fx.Node) -> Any:
        out = super().run_node(node)
        layer = self._layers.get(node.name)
        how = None if layer is None else linear_map(node, value_of(self.module, layer.weight))
        if how is not None:
            self._add(layer.name, how, self.env[node.args[0]], out.shape)
        return out

    def _add(self, name: str, how: LinearMap, x: Tensor, shape: torch.Size) -> None:
        n = how.positions(shape)
        chosen = None if n <= _POSITIONS else torch.linspace(0, n - 1, _POSITIONS, device=x.device).round().long()
        rows = how.input_rows(x, shape, chosen).double()
        found = rows.transpose(1, 2) @ rows if self._products else rows.square().sum(1)
        self.layouts[name] = how
        self.totals[name] = self.totals.get(name, 0.0) + found.cpu()
        self.counts[name] = self.counts.get(name, 0) + rows.shape[1]
