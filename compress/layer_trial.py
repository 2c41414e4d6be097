"""A weight as one choice would store it, without any training: what is left of it, and how well that codes."""

import math
from collections.abc import Mapping, Sequence

import numpy as np
import torch
from torch import Tensor

from compress.attributes import value_of
from compress.entropy_coding import entropy_bits
from compress.factors import factor_weight
from compress.layer_choice import LayerChoice
from compress.quantizer import FLOAT_BITS, OUTPUT_AXIS, Quantizer, dequantize_weight, quantize_weight
from compress.structure import Structure


def try_choice(weight: Tensor, choice: LayerChoice, quantizer: Quantizer, axis: int) -> tuple[Tensor, float]:
    """`(values, bits)`: the weight in its shape as the choice leaves it, and bits of each stored weight as coded.

    The largest magnitudes are kept, over the whole weight; the others are zeros. Integers are coded at the entropy of
    how often each occurs, zeros included; floats take their bits and a mask. A rank replaces the weight by two factors
    of least squared error, and each of them is stored so.

    Args:
        weight: any float tensor of two dimensions or more.
        choice: bits 8, 6, 4, 3 or 2, or 16 or 32 for floats.
        quantizer: who chooses the scales.
        axis: the dimension with one scale per index (the outputs); 0 where there is a rank.
    """
    if choice.rank is not None:
        return _store_factors(weight, choice, quantizer)
    kept = keep_largest(weight, choice.density)
    if choice.bits >= 16:
        kept = kept.half().to(weight.dtype) if choice.bits == 16 else kept
        return kept, choice.bits_per_weight
    integers, scale = quantize_weight(kept, choice.bits, quantizer, axis)
    values = dequantize_weight(integers, scale, axis).to(weight.dtype)
    return values, entropy_bits(integers.cpu().numpy())


def _store_factors(weight: Tensor, choice: LayerChoice, quantizer: Quantizer) -> tuple[Tensor, float]:
    rank = choice.rank_of(weight.numel(), weight.shape[0])
    (factors,) = factor_weight(weight, range(weight.dim() - 2), [rank])
    plain = LayerChoice(choice.bits, choice.density)
    (first, first_bits), (second, second_bits) = (
        try_choice(part, plain, quantizer, 0) for part in (factors.reduce, factors.expand)
    )
    bits = first_bits * first.numel() + second_bits * second.numel()
    return (second.flatten(1) @ first.flatten(1)).reshape(weight.shape), bits / (first.numel() + second.numel())


def keep_largest(weight: Tensor, density: float) -> Tensor:
    """The weight with all but its largest magnitudes at zero; at least one stays."""
    if density >= 1:
        return weight.detach().clone()
    count = max(1, math.floor(density * weight.numel() + 0.5))
    order = torch.argsort(weight.detach().abs().flatten(), descending=True, stable=True)
    kept = torch.zeros(weight.numel(), dtype=weight.dtype, device=weight.device)
    kept[order[:count]] = weight.detach().flatten()[order[:count]]
    return kept.reshape(weight.shape)


def coded_bits(
    structure: Structure, choices: Sequence[LayerChoice], quantizer: Quantizer, layer_names: Sequence[str]
) -> Mapping[str, np.ndarray]:
    """Name of a choice -> `(n_layers,)` bits of each weight as coded, for `CostTable.coded_bits`.

    Args:
        layer_names: the layers of the cost table; those that store no weight get nominal bits.
    """
    layers = {layer.name: layer for layer in structure.traced.layers()}
    found = {}
    for choice in choices:
        bits = np.full(len(layer_names), choice.bits_per_weight)
        for row, name in enumerate(layer_names):
            if name not in layers or (choice.bits == FLOAT_BITS and choice.density == 1 and choice.rank is None):
                continue
            weight = value_of(structure.traced.module, layers[name].weight).detach()
            bits[row] = try_choice(weight, choice, quantizer, OUTPUT_AXIS[layers[name].kind])[1]
        found[choice.name] = bits
    return found
