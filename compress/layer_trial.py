"""A weight as one choice would store it, without any training: what is left of it, and how well that codes."""

import math
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import replace

import numpy as np
import torch
from torch import Tensor

from compress.attributes import value_of
from compress.entropy_coding import entropy_bits
from compress.factors import Factors, compose, factor_weight, useful_rank
from compress.formatted_weight import FormattedWeight
from compress.layer_choice import LayerChoice
from compress.number_format import SYMMETRIC, NumberFormat
from compress.plan import LayerFormat
from compress.quantizer import OUTPUT_AXIS, Quantizer, dequantize_weight, quantize_weight
from compress.splitting import first_dims
from compress.structure import Structure


def try_choices(
    weight: Tensor,
    choices: Sequence[LayerChoice],
    quantizer: Quantizer,
    axis: int,
    second_moment: Tensor | None = None,
    number_format: NumberFormat = SYMMETRIC,
) -> Iterator[tuple[Tensor, float]]:
    """`(values, bits)` of each choice: the weight in its shape as it leaves it, bits of each stored weight as coded.

    The largest magnitudes are kept, over the whole weight; the others are zeros. Symbols are coded at the entropy of
    how often each occurs, zeros included; floats take their bits and a mask. What decoding needs beside them is not
    counted, see `LayerPrices`. A rank replaces the weight by two factors
    that come closest in outputs, or in weights without a second moment, and each of them is stored so.

    Args:
        weight: any float tensor of two dimensions or more.
        choices: of bits 1 to 8, or 16 or 32 for floats.
        quantizer: who chooses the scales.
        axis: the dimension with one scale per index (the outputs); 0 where there is a rank.
        second_moment: of the layer's inputs, see `collect_input_moments`.
        number_format: of choices of 8 bits or less.
    """
    dims = {choice.rank_scheme: first_dims(choice.rank_scheme, weight) for choice in choices if choice.rank is not None}
    useful = {scheme: useful_rank(weight.shape, own) for scheme, own in dims.items()}
    factors: dict[tuple[str, int | None], Factors] = {}
    for scheme, own in dims.items():
        ranks = sorted({c.rank_of(useful[scheme]) for c in choices if c.rank is not None and c.rank_scheme == scheme})
        found = factor_weight(weight, own, ranks, second_moment)
        factors |= {(scheme, rank): factor for rank, factor in zip(ranks, found, strict=True)}
    for choice in choices:
        if choice.rank is None:
            yield _store(weight, choice, quantizer, axis, number_format)
        else:
            scheme = choice.rank_scheme
            found = factors[scheme, choice.rank_of(useful[scheme])]
            yield _store_factors(found, choice, quantizer, dims[scheme], number_format)


def _store(
    weight: Tensor, choice: LayerChoice, quantizer: Quantizer, axis: int, number_format: NumberFormat
) -> tuple[Tensor, float]:
    kept = keep_largest(weight, choice.density)
    if choice.bits >= 16:
        kept = kept.half().to(weight.dtype) if choice.bits == 16 else kept
        return kept, choice.bits_per_weight
    layer_format = number_format.of(choice).applied(LayerFormat(choice.bits))
    if not layer_format.on_integers:
        formatted = FormattedWeight(layer_format, kept, axis, quantizer, kept != 0 if choice.density < 1 else None)
        if layer_format.bits > 8:
            return formatted(kept), replace(choice, bits=layer_format.bits).bits_per_weight
        return formatted(kept), entropy_bits(formatted.symbols(kept).cpu().numpy())
    integers, scale = quantize_weight(kept, choice.bits, quantizer, axis)
    values = dequantize_weight(integers, scale, axis).to(weight.dtype)
    return values, entropy_bits(integers.cpu().numpy())


def _store_factors(
    factors: Factors, choice: LayerChoice, quantizer: Quantizer, dims: Sequence[int], number_format: NumberFormat
) -> tuple[Tensor, float]:
    (first, first_bits), (second, second_bits) = (
        _store(part, choice, quantizer, 0, number_format) for part in (factors.reduce, factors.expand)
    )
    bits = first_bits * first.numel() + second_bits * second.numel()
    return compose(first, second, dims), bits / (first.numel() + second.numel())


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
    structure: Structure,
    choices: Sequence[LayerChoice],
    quantizer: Quantizer,
    layer_names: Sequence[str],
    second_moments: Mapping[str, Tensor] | None = None,
    number_format: NumberFormat = SYMMETRIC,
) -> Mapping[str, np.ndarray]:
    """Name of a choice -> `(n_layers,)` bits of each weight as coded, for `CostTable.coded_bits`.

    Args:
        layer_names: the layers of the cost table; those that store no weight get nominal bits.
        second_moments: layer name -> of its inputs, for ranks; see `collect_input_moments`.
        number_format: of choices of 8 bits or less.
    """
    layers = {layer.name: layer for layer in structure.traced.layers()}
    given = second_moments or {}
    choices = [choice for choice in choices if choice != LayerChoice()]
    found = {choice.name: np.full(len(layer_names), choice.bits_per_weight) for choice in choices}
    for row, name in enumerate(layer_names):
        if name in layers:
            weight = value_of(structure.traced.module, layers[name].weight).detach()
            axis = OUTPUT_AXIS[layers[name].kind]
            tried = try_choices(weight, choices, quantizer, axis, given.get(name), number_format)
            for choice, (_, bits) in zip(choices, tried, strict=True):
                found[choice.name][row] = bits
    return found
