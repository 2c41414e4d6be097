"""What is known of a layer before its weights are coarsened."""

from collections.abc import Mapping
from typing import ClassVar

import numpy as np

from autolabel.feature import log_size, ratio, signed_log
from compress.attributes import value_of
from compress.costs import BIT_CHOICES
from compress.counting import unit_costs
from compress.errors import CompressError
from compress.layer_statistics import LayerStatistics

_PER_BITS = {
    "quant_mse": "log10 of |dW|^2 / |W|^2 of the weights rounded to {} bits",
    "quant_output_error": "log10 of the layer's relative output error at {} bits, its inputs exact",
    "quant_first_order": "signed log of E[t] at {} bits, t = derivative of an example's loss along dW",
    "quant_second_order": "signed log of E[t] + 0.5 E[t^2] at {} bits, expected damage in nats",
    "quant_curvature": "log10 of 0.5 E[t^2] at {} bits",
    "quant_fisher": "log10 of 0.5 sum E[g^2] dW^2 at {} bits, the diagonal Fisher of the weights",
}


class LayerFeatures:
    """Structure, weights, values and sensitivity of each layer, one row per layer."""

    name: ClassVar[str] = "layers"
    choice: ClassVar[str] = "bits"
    columns: ClassVar[Mapping[str, str]] = {
        "layer_depth": "position among the layers, 0 first to 1 last",
        "layer_is_first": "1 for the first layer",
        "layer_is_last": "1 for the last layer",
        "layer_is_conv": "1 for a convolution (transposed ones too)",
        "layer_is_embedding": "1 for an embedding",
        "layer_is_grouped": "1 for a grouped or depthwise convolution",
        "layer_log_macs": "log10 of MACs",
        "layer_macs_share": "MACs as a part of the dense network's",
        "layer_log_weights": "log10 of the number of weights",
        "layer_weights_share": "weights as a part of all layers'",
        "layer_log_fan_in": "log10 of weights per output channel",
        "layer_log_outputs": "log10 of output channels",
        "layer_kernel": "kernel area, 1 for a linear layer",
        "layer_log_positions": "log10 of outputs per example and channel",
        "layer_weight_mean_abs": "mean magnitude of the weights",
        "layer_weight_rms": "root mean square of the weights",
        "layer_weight_peak": "largest weight over root mean square",
        "layer_weight_kurtosis": "excess kurtosis of the weights",
        "layer_weight_zeros": "part of the weights that is exactly zero",
        "layer_channel_spread": "log10 of largest over smallest range among output channels",
        "layer_input_mean_abs": "mean magnitude of the inputs",
        "layer_input_rms": "root mean square of the inputs",
        "layer_input_peak": "largest input over root mean square",
        "layer_output_rms": "root mean square of the outputs",
        **{f"{name}_{bits}bit": text.format(bits) for name, text in _PER_BITS.items() for bits in BIT_CHOICES},
    }

    def compute(self, statistics: LayerStatistics) -> np.ndarray:
        if statistics.bits != BIT_CHOICES:
            raise CompressError(f"Layer features need statistics of the widths {BIT_CHOICES}. Got {statistics.bits}.")
        blocks = [_structure(statistics), _weights(statistics), np.column_stack([
            statistics.input_mean_abs, statistics.input_rms, ratio(statistics.input_max, statistics.input_rms),
            statistics.output_rms,
        ])]  # fmt: skip
        curvature = 0.5 * statistics.second
        blocks += [log_size(statistics.weight_error), log_size(statistics.output_error)]
        blocks += [signed_log(statistics.first), signed_log(statistics.first + curvature)]
        blocks += [log_size(curvature), log_size(0.5 * statistics.fisher)]
        return np.concatenate(blocks, axis=1)


def _structure(statistics: LayerStatistics) -> np.ndarray:
    structure = statistics.structure
    layers = {layer.name: layer for layer in reversed(structure.traced.layers())}
    costs = unit_costs(structure)
    rows = {name: i for i, name in enumerate(costs.layer_names)}
    total = max(float(costs.layer_weights.sum()), 1.0)
    table = []
    for i, name in enumerate(statistics.names):
        layer, n = layers[name], len(statistics.names)
        shape = tuple(len(labels) for labels in structure.parameters[layer.weight])
        cost = rows.get(name)
        macs = costs.layer_macs[cost] if cost is not None else 0.0
        outputs = shape[1] if layer.kind in ("conv_transpose", "embedding") else shape[0]
        conv = layer.kind in ("conv", "conv_transpose")
        grouped = conv and len(layer.node.args) > 6 and layer.node.args[-1] not in (1, False)
        weights = float(np.prod(shape))
        table.append([
            i / max(n - 1, 1), i == 0, i == n - 1, conv, layer.kind == "embedding", grouped, log_size(macs, 1.0),
            ratio(macs, costs.dense_macs), log_size(weights, 1.0), weights / total, log_size(weights / outputs, 1.0),
            log_size(outputs, 1.0), np.prod(shape[2:]), log_size(statistics.positions[i], 1.0),
        ])  # fmt: skip
    return np.array(table, dtype=np.float64).reshape(len(statistics.names), 14)


def _weights(statistics: LayerStatistics) -> np.ndarray:
    module = statistics.structure.traced.module
    layers = {layer.name: layer for layer in reversed(statistics.structure.traced.layers())}
    table = []
    for name in statistics.names:
        layer = layers[name]
        values = value_of(module, layer.weight).detach().cpu().double()
        dim = 1 if layer.kind in ("conv_transpose", "embedding") else 0
        limits = values.movedim(dim, 0).flatten(1).abs().amax(1)
        limits = limits[limits > 0]
        spread = float((limits.max() / limits.min()).log10()) if len(limits) else 0.0
        rms = float(values.square().mean().sqrt())
        variance = float(values.var(correction=0))
        kurtosis = float((values - values.mean()).pow(4).mean()) / variance**2 - 3 if variance > 1e-30 else 0.0
        table.append([float(values.abs().mean()), rms, float(ratio(float(values.abs().max()), rms)), kurtosis,
                      float((values == 0).double().mean()), spread])  # fmt: skip
    return np.array(table, dtype=np.float64).reshape(len(statistics.names), 6)
