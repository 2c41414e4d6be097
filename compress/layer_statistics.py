"""What coarser weights of each layer would do, from one forward and one backward pass over the calibration data."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import Tensor, fx

from compress.activation_statistics import reduce_positions
from compress.attributes import value_of
from compress.costs import BIT_CHOICES
from compress.counting import count_macs
from compress.dimensions import BatchLayout, Value, batch_layout
from compress.errors import DataError
from compress.folding import output_axis
from compress.gate_gradients import check_losses
from compress.graph import Layer
from compress.quantizer import Quantizer, fake_quantize_weight, largest_integer, weight_scale
from compress.scores import Scores
from compress.statistics import check_batches
from compress.structure import Structure
from compress.task import Batch, Task, losses_of


@dataclass(frozen=True, eq=False)
class LayerStatistics:
    """Statistics of the layers of one model; `n_layers` rows in the order of its layer units, float64.

    Attributes:
        structure: the model.
        names: the layers.
        bits: `n_bits` widths.
        weight_error: `(n_layers, n_bits)` |dW|^2 / |W|^2 of rounding the weight.
        output_error: `(n_layers, n_bits)` the same of the layer's outputs, with its own inputs exact.
        first: `(n_layers, n_bits)` E[t]; t is the derivative of an example's loss along dW, the whole rounding error.
        second: `(n_layers, n_bits)` E[t^2].
        fisher: `(n_layers, n_bits)` sum over weights of E[g^2] dW^2, rounding errors taken as independent.
        input_mean_abs, input_rms, input_max, output_rms: `(n_layers,)` of the layer's values; 0 for token inputs.
        positions: `(n_layers,)` outputs per example and channel.
        forward_macs: MACs spent on collecting.
    """

    structure: Structure
    names: tuple[str, ...]
    bits: tuple[int, ...]
    weight_error: np.ndarray
    output_error: np.ndarray
    first: np.ndarray
    second: np.ndarray
    fisher: np.ndarray
    input_mean_abs: np.ndarray
    input_rms: np.ndarray
    input_max: np.ndarray
    output_rms: np.ndarray
    positions: np.ndarray
    forward_macs: float = 0.0

    def scores(self) -> Scores:
        """Second-order damage in nats of each width, E[t] + 0.5 E[t^2]; NaN for channels and heads."""
        units = self.structure.units
        values = np.full((len(units), len(self.bits)), np.nan)
        values[units.positions(self.names)] = self.first + 0.5 * self.second
        return Scores(units.ids, tuple(f"{bits}bit" for bits in self.bits), values, "nats")


def collect_layer_statistics(
    structure: Structure, task: Task, batches: Sequence[Batch], quantizer: Quantizer, bits: Sequence[int] = BIT_CHOICES
) -> LayerStatistics:
    """Statistics of every layer, in evaluation mode; model, gradients and RNG stay as they are.

    The derivative along the rounding error is taken per example, at the layer's outputs: sum of gradient x (layer with
    weight dW). So correlated errors count, as no diagonal Hessian lets them; the diagonal one (HAWQ, Dong et al. 2019,
    arXiv:1905.03696; FIT, Zandonati et al. 2022, arXiv:2210.08502) is `fisher`.

    Args:
        structure: the analysed model.
        task: reads batches and gives the per-example loss.
        batches: calibration batches.
        quantizer: chooses the scales of the rounded weights.
        bits: the widths.

    Raises:
        DataError: for an empty or wrongly shaped calibration set, or a loss that is not finite.
    """
    batches = list(batches)
    if not batches:
        raise DataError(
            "The 'batches' parameter of collect_layer_statistics must hold at least one calibration batch. Got none."
        )
    check_batches(structure, task, batches)
    probe = _LayerProbe(structure, quantizer, bits)
    module = structure.traced.module
    was_training = module.training
    module.eval()
    try:
        with torch.enable_grad():
            for batch in batches:
                inputs = task.inputs(batch)
                probe.begin(inputs[0].shape[0])
                losses = losses_of(task, probe.run(*inputs), batch)
                check_losses(losses)
                probe.finish(losses)
    finally:
        module.train(was_training)
    passes = 3 + len(probe.bits)
    return probe.statistics(passes * probe.n_examples * count_macs(structure))


class _LayerProbe(fx.Interpreter):
    """Runs the graph on detached weights; when the gradient of a layer's output arrives, meets it with dW."""

    def __init__(self, structure: Structure, quantizer: Quantizer, bits: Sequence[int]) -> None:
        super().__init__(structure.traced.module)
        self._structure = structure
        self.bits = tuple(bits)
        self._layers = {layer.node.name: layer for layer in structure.traced.layers()}
        self.names = tuple(dict.fromkeys(layer.name for layer in self._layers.values()))
        self._row = {name: i for i, name in enumerate(self.names)}
        shape = (len(self.names), len(self.bits))
        self._sums = {name: np.zeros(shape) for name in ("first", "second", "fisher", "error", "weight")}
        self._energy, self._outputs = np.zeros(shape[0]), np.zeros(shape[0])
        self._inputs = {name: np.zeros(shape[0]) for name in ("abs", "square", "count", "max")}
        self._positions = np.zeros(shape[0])
        self._leaves: dict[str, Tensor] = {}
        self._errors: dict[str, list[Tensor]] = {}
        self.n_examples = 0
        shared: dict[int, Tensor] = {}
        for layer in self._layers.values():
            weight = value_of(structure.traced.module, layer.weight)
            self._leaves[layer.weight] = shared.setdefault(id(weight), weight.detach().requires_grad_())
            if layer.name not in self._errors:
                self._errors[layer.name] = self._round(layer, weight.detach(), quantizer)

    def _round(self, layer: Layer, weight: Tensor, quantizer: Quantizer) -> list[Tensor]:
        """dW of each width."""
        errors, axis = [], output_axis(layer)
        energy = max(float(weight.double().square().sum()), 1e-30)
        for column, bits in enumerate(self.bits):
            largest = largest_integer(bits)
            scale = weight_scale(weight, largest, quantizer, axis)
            error = (fake_quantize_weight(weight.float(), scale, largest, axis) - weight.float()).to(weight.dtype)
            self._sums["weight"][self._row[layer.name], column] = float(error.double().square().sum()) / energy
            errors.append(error)
        return errors

    def begin(self, n_examples: int) -> None:
        """Start a batch."""
        self._along = torch.zeros(len(self.names), len(self.bits), n_examples, dtype=torch.float64)
        self.n_examples += n_examples

    def fetch_attr(self, target: str) -> Any:
        leaf = self._leaves.get(target)
        return super().fetch_attr(target) if leaf is None else leaf

    def run_node(self, node: fx.Node) -> Any:
        layer = self._layers.get(node.name)
        if layer is None:
            return super().run_node(node)
        args, kwargs = self.fetch_args_kwargs_from_env(node)
        out = super().run_node(node)
        self._read(layer, args, out)
        if out.requires_grad:
            out.register_hook(lambda gradient: self._meet(layer, args, kwargs, gradient))
        return out

    def _read(self, layer: Layer, args: tuple, out: Tensor) -> None:
        row = self._row[layer.name]
        x = args[1 if layer.kind == "embedding" else 0].detach()
        if x.is_floating_point():
            self._inputs["abs"][row] += float(x.abs().sum(dtype=torch.float64))
            self._inputs["square"][row] += float(x.square().sum(dtype=torch.float64))
            self._inputs["count"][row] += x.numel()
            self._inputs["max"][row] = max(self._inputs["max"][row], float(x.abs().amax()))
        self._energy[row] += float(out.detach().square().sum(dtype=torch.float64))
        self._outputs[row] += out.numel()
        channels = args[0 if layer.kind == "embedding" else 1].shape[output_axis(layer)]
        self._positions[row] += out.numel() / (channels if layer.kind != "embedding" else out.shape[-1])

    def _meet(self, layer: Layer, args: tuple, kwargs: dict, gradient: Tensor) -> None:
        """Add gradient x (layer with weight dW) of every width."""
        row = self._row[layer.name]
        position = 0 if layer.kind == "embedding" else 1
        value = self._structure.values.get(layer.node.name)
        n_examples = self._along.shape[2]
        with torch.no_grad():
            for column, error in enumerate(self._errors[layer.name]):
                changed = [a.detach() if isinstance(a, Tensor) else a for a in args]
                changed[position] = error
                if layer.kind != "embedding" and len(changed) > 2:
                    changed[2] = None
                effect = layer.node.target(*changed, **{k: v for k, v in kwargs.items() if k != "bias"})
                self._sums["error"][row, column] += float(effect.square().sum(dtype=torch.float64))
                layout = _layout(value, self._structure, effect, n_examples)
                product = effect * gradient
                if layout is None:
                    # Without knowing whose values these are, every example gets an equal part.
                    self._along[row, column] += float(product.sum(dtype=torch.float64)) / n_examples
                else:
                    dim = next(d for d in range(product.dim()) if d != layout.dim)
                    self._along[row, column] += reduce_positions(product, dim, layout).double().sum(1).cpu()

    def finish(self, losses: Tensor) -> None:
        """End a batch: run the backward pass and add up."""
        names = list(self._leaves)
        unique = list({id(leaf): leaf for leaf in self._leaves.values()}.values())
        gradients: dict[int, Tensor | None] = {id(leaf): None for leaf in unique}
        if losses.requires_grad and unique:
            found = torch.autograd.grad(losses.sum(), unique, allow_unused=True)
            gradients = dict(zip(gradients, found, strict=True))
        self._sums["first"] += self._along.sum(2).numpy()
        self._sums["second"] += self._along.square().sum(2).numpy()
        weights = {layer.name: layer.weight for layer in self._layers.values() if layer.weight in names}
        for name, weight in weights.items():
            gradient = gradients[id(self._leaves[weight])]
            for column, error in enumerate(self._errors[name] if gradient is not None else ()):
                self._sums["fisher"][self._row[name], column] += float((gradient * error).double().square().sum())

    def statistics(self, macs: float) -> LayerStatistics:
        """What was added up."""
        n, sums = max(self.n_examples, 1), self._sums
        count = np.maximum(self._inputs["count"], 1)
        return LayerStatistics(
            self._structure, self.names, self.bits, sums["weight"],
            sums["error"] / np.maximum(self._energy, 1e-30)[:, None], sums["first"] / n, sums["second"] / n,
            sums["fisher"] / n, self._inputs["abs"] / count, np.sqrt(self._inputs["square"] / count),
            self._inputs["max"],
            np.sqrt(self._energy / np.maximum(self._outputs, 1)), self._positions / n, macs,
        )  # fmt: skip


def _layout(value: Any, structure: Structure, x: Tensor, n_examples: int) -> BatchLayout | None:
    """Where the examples lie in `x`; of a structure traced with another batch size."""
    if not isinstance(value, Value) or x.dim() < 2:
        return None
    traced = next((len(np.unique(labels)) for labels in value.batch if labels is not None), 0)
    found = batch_layout(value, traced) if traced else None
    if found is None or x.shape[found.dim] != found.outer * n_examples * found.inner:
        return None
    return found
