"""Damage of storing one layer's weight in fewer bits, looked at at once."""

from collections.abc import Iterator, Sequence

import numpy as np
from torch import Tensor

from autolabel.oracle import Measurement, Moments
from compress.attributes import value_of
from compress.quantizer import OUTPUT_AXIS, WEIGHT_BITS, Quantizer, dequantize_weight, quantize_weight
from compress.quantizers.mse import MseQuantizer
from compress.replay import Replay
from compress.structure import Structure


class LayerChoiceOracle:
    """Rounds the weight of one layer and measures the increase of the loss (as HAWQ-style sensitivity, but measured).

    Args:
        bits: the formats to measure.
        quantizer: who chooses the scales; the one that will quantise the model.
    """

    name = "layer_choice"
    kind = "layer"

    def __init__(self, bits: Sequence[int] = WEIGHT_BITS, quantizer: Quantizer | None = None) -> None:
        self.bits = tuple(bits)
        self.choices = tuple(f"{b}bit" for b in self.bits)
        self.quantizer = quantizer or MseQuantizer()

    def measure(self, structure: Structure, replay: Replay, rows: np.ndarray) -> Iterator[Measurement]:
        """One measurement per row and format."""
        layers = {layer.name: layer for layer in structure.traced.layers()}
        for row in rows:
            layer = layers[structure.units.ids[row]]
            suffix = replay.layer_suffix(layer.name)
            replay.forget()
            replay.keep([suffix])
            weight = value_of(structure.traced.module, layer.weight).detach()
            for bits in self.bits:
                rounded = self._rounded(weight, bits, OUTPUT_AXIS[layer.kind])
                moments = Moments()
                for number in range(len(replay.batches)):
                    moments.add(replay.layer_losses(suffix, rounded, number)[0] - replay.dense[number])
                yield Measurement(layer.name, f"{bits}bit", moments.mean, moments.std_err, moments.n,
                                  suffix.macs * moments.n, replay.full_macs * replay.n_examples)  # fmt: skip

    def _rounded(self, weight: Tensor, bits: int, axis: int) -> Tensor:
        return dequantize_weight(*quantize_weight(weight, bits, self.quantizer, axis), axis).to(weight.dtype)
