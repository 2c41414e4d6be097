"""Low bits from a plan: fold, insert fake-quantisers, choose their ranges on calibration data."""

import logging
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import torch
from torch import Tensor, fx

from compress.attributes import value_of
from compress.errors import DataError, PlanError
from compress.factor_formats import part_formats
from compress.fake_quantization import (
    ACTIVATION_OP,
    WEIGHT_OP,
    check_formats,
    insert_fake_quantizers,
    integer_input,
    quantized_weights,
    quantizes_activations,
    tied_layers,
)
from compress.folding import fold_batch_norm
from compress.formatted_weight import insert_stored_formats
from compress.graph import Layer, as_inputs, flat_inputs, require_traced
from compress.plan import CompressionPlan, LayerFormat
from compress.quantizer import Histogram, Quantizer, affine_parameters, weight_scale
from compress.task import running_on

_log = logging.getLogger(__name__)
_BINS = 2048
_INT32_BIAS_LIMIT = 2.0**30


def prepare_quantized(
    module: fx.GraphModule,
    plan: CompressionPlan,
    calibration_batches: Sequence[Any],
    quantizer: Quantizer,
    reduce_range: bool = True,
    trained_ranges: bool = False,
) -> fx.GraphModule:
    """A copy that computes with the low-bit weights and activations of the plan, as floats, and can be trained on.

    Batch norms are folded. Weights keep their float values as parameters and are rounded in every forward, with scales
    fixed here; the gradient passes straight through (Bengio, Leonard, Courville 2013, "Estimating or Propagating
    Gradients Through Stochastic Neurons", arXiv:1308.3432; clipped values get none). Activations are rounded to 256
    levels with ranges fixed here: the input of every quantised conv and linear, and all edges between ops that an
    engine can compute on integers; residual streams that end in a float operation (layer norm) stay float. Transposed
    convs and embeddings keep float activations. (Jacob et al. 2018, "Quantization and Training of Neural Networks",
    CVPR, arXiv:1712.05877.) Of a plan with dynamic ranges, see `compress.dynamic_ranges`, only the inputs of quantised
    convs and linears are rounded, each over its own range at run time.

    Formats that engines do not compute on (`LayerFormat.on_integers`) are stored ones, see `compress.formatted_weight`:
    their layers compute on decoded weights, keep float activations, and leave in float weights. A layer of density
    below 1 keeps the zeros that its weight has here, whatever its format: prune it first.

    Args:
        module: a traced module, e.g. from `apply_plan`, and `factorize_plan` if the plan has ranks; it stays as it is.
        plan: its `layer_formats` say which layers, its `activation_bits` (None or 8) whether activations too, its
            `activation_ranges` whether over ranges that are fixed here or at run time.
        calibration_batches: tuples or dicts of the forward's inputs, as the module was traced. May be empty if only
            weights are quantised, or ranges are dynamic.
        quantizer: who chooses the ranges.
        reduce_range: 8-bit weights use the integers up to 63 only. Pairs of their products with 8-bit activations fit
            into 16 bits, so the fast kernels of CPUs without VNNI are exact. Without it such weights are exported as
            uint8: as exact, finer by a bit, and about half as fast.
        trained_ranges: scales, offsets and centroids of stored formats are parameters that are trained too. Scales of
            the integers that engines compute on stay fixed; a symmetric format per group, with groups as long as a
            channel, has the same levels with trained scales, in a stored format.

    Raises:
        PlanError: for a format of an unknown layer, or activation bits other than 8.
        DataError: if calibration data is missing, or some value in the network is not finite.
    """
    if plan.activation_bits not in (None, 8):
        raise PlanError(f"The 'activation_bits' of a plan must be 8 or None. Got {plan.activation_bits!r}.")
    require_traced(module, "prepare_quantized")
    if not plan.layer_formats:
        _log.warning("The plan has no layer formats: nothing is quantised.")
    activations = plan.activation_bits is not None
    batches = list(calibration_batches)
    folded = fold_batch_norm(module, batches[0] if batches else None)
    formats = part_formats(plan)
    check_formats(folded, formats)
    computed = activations or not trained_ranges
    ranges = plan.activation_ranges if activations else None
    prepared = insert_fake_quantizers(folded, formats if computed else {}, ranges, reduce_range)
    layers = tied_layers(folded)
    _warn_of_unpruned(layers, folded, formats)
    insert_stored_formats(prepared, layers, formats, quantizer, trained_ranges, on_integers=computed)
    for entry in quantized_weights(prepared):
        weight = value_of(prepared, entry.parameter)
        prepared.get_buffer(entry.scale).copy_(weight_scale(weight, entry.largest, quantizer, entry.axis))
    if ranges == "static" and quantizes_activations(prepared):
        histograms = _observe(prepared, batches)
        for node, histogram in histograms.items():
            scale, zero_point = affine_parameters(*quantizer.activation_range(histogram))
            prepared.get_buffer(node.args[1].target).fill_(scale)
            prepared.get_buffer(node.args[2].target).fill_(zero_point)
        _bound_biases(prepared)
    return prepared


def _warn_of_unpruned(
    layers: Sequence[Sequence[Layer]], module: fx.GraphModule, formats: Mapping[str, LayerFormat]
) -> None:
    for layer in (layer for group in layers for layer in group if layer.name in formats):
        share = (value_of(module, layer.weight) != 0).double().mean().item()
        if share > formats[layer.name].density + 0.01:
            _log.warning("Layer %r is to keep %.3g of its weights, but %.3g are not zero: it was not pruned.",
                         layer.name, formats[layer.name].density, share)  # fmt: skip


class _Observer(fx.Interpreter):
    """Runs the graph with float activations and shows every value that will be quantised to `see`."""

    def __init__(self, module: fx.GraphModule, see: Any) -> None:
        super().__init__(module)
        self.see = see

    def run_node(self, node: fx.Node) -> Any:
        if node.target is ACTIVATION_OP:
            value = self.env[node.args[0]]
            self.see(node, value)
            return value
        return super().run_node(node)


def _observe(module: fx.GraphModule, batches: Sequence[Any]) -> dict[fx.Node, Histogram]:
    """A histogram of every activation to be quantised, in two passes: ends first, then counts in float64."""
    if not batches:
        raise DataError(
            "The 'calibration_batches' parameter of prepare_quantized must hold at least one batch. Got none."
        )
    ends: dict[fx.Node, tuple[float, float]] = {}
    counts: dict[fx.Node, np.ndarray] = {}

    def see_ends(node: fx.Node, value: Tensor) -> None:
        if not torch.isfinite(value).all():
            raise DataError(f"Activation {node.args[0].name!r} is NaN or infinite on the calibration data.")
        low, high = (float(end) for end in torch.aminmax(value))
        seen = ends.get(node, (low, high))
        ends[node] = (min(low, seen[0]), max(high, seen[1]))

    def see_counts(node: fx.Node, value: Tensor) -> None:
        low, high = ends[node]
        if high > low:
            counts[node] = (
                counts.get(node, 0.0) + torch.histc(value.detach().float(), _BINS, low, high).double().cpu().numpy()
            )

    was_training = module.training
    module.eval()
    try:
        with torch.no_grad():
            for see in (see_ends, see_counts):
                observer = _Observer(module, see)
                for batch in batches:
                    inputs = flat_inputs(module, *as_inputs(batch))
                    with running_on(inputs):
                        observer.run(*inputs, enable_io_processing=False)
    finally:
        module.train(was_training)
    return {node: Histogram(low, high, counts.get(node, np.zeros(_BINS))) for node, (low, high) in ends.items()}


def _bound_biases(module: fx.GraphModule) -> None:
    """Raise the weight scales under which a bias would not fit the int32 that engines add it in."""
    for entry in quantized_weights(module):
        for layer in entry.node.users:
            source = integer_input(layer)
            rounded = layer.args[2] if source is not None and len(layer.args) > 2 else None
            if rounded is None or rounded.target is not WEIGHT_OP:
                continue
            bias = value_of(module, rounded.args[0].target).detach().abs()
            floor = bias / (module.get_buffer(source.args[1].target) * _INT32_BIAS_LIMIT)
            scale = module.get_buffer(entry.scale)
            scale.copy_(torch.maximum(scale, floor))
