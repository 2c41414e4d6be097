"""Symbols drawn to those that occur often, so that a model codes into fewer bytes."""

import math
from typing import Any

import torch
from torch import Tensor, nn

from compress.attributes import value_of
from compress.errors import CompressError
from compress.formatted_weight import FormattedEntry, formatted_weights
from compress.weight_format import nonzero

_PRICE, _FIRST, _LAST = "coded_bytes_price", "coded_bytes_first", "coded_bytes_last"
# Steps between two looks at the size, each of which changes the price by at most this factor.
_EVERY, _MOST = 100, 1.35
# Steps ahead: weights follow a price late, so that one which rises until they have come goes far too high. In a short
# training, a part of it.
_AHEAD, _AHEAD_SHARE = 500, 0.05
# Of a symbol to the next one outwards: as many, at the least and the most, so that no price is without a slope.
_RATIOS = (0.05, 0.8)
# Bits that a zero is cheaper by than what comes next, at the least.
_ZERO_BONUS = 0.5


class CodedBytesPenalty:
    """A price on the expected bits of all weights in symmetric stored formats, raised while they take too many bytes.

    A weight between two symbols costs what lies on the line between their bits, and the bits are those of how often
    symbols occur in the layer now: zero as often as it does, the others by a geometric distribution of their mean
    magnitude. As they are counted they would not rise from one symbol to the next, and weights be stuck in between.

    The gradient draws weights to cheaper symbols, zero above all. It leaves the scales to the loss, and these carry
    their weights with them: what multiplies a scale multiplies the weights. A price on scales makes those of large
    layers grow and those of small ones shrink by the same factor, until a step of the optimizer is many of their
    symbols. Weights beyond the outer symbol are brought back to it.

    (An entropy penalty on weights: Wiedemann et al. 2019, "Entropy-Constrained Training of Deep Neural Networks",
    arXiv:1812.07520; Oktay et al. 2020, "Scalable Model Compression by Entropy Penalized Reparameterization",
    arXiv:1906.06624.)

    Args:
        target_bytes: what the weights are to take, at the entropy of their symbols: without scales, biases and header.
        price: nats for each bit, to begin with.
        until: fraction of the training after which the price stays as it is.
        ramp: fraction of the training over which the bytes that are asked for fall from those at its beginning, each
            step by the same factor. A price that rises faster than weights follow comes too high, and kills layers.

    Raises:
        CompressError: for a setting out of range; and when a training begins whose model has no such weight.
    """

    name = "coded_bytes"
    needs_formats = True

    def __init__(self, target_bytes: int = 1000, price: float = 1e-6, until: float = 0.8, ramp: float = 0.0) -> None:
        for name, value, met in (("target_bytes", target_bytes, target_bytes >= 1), ("price", price, price > 0),
                                 ("until", until, 0 < until <= 1), ("ramp", ramp, 0 <= ramp <= 1)):  # fmt: skip
            if not met:
                raise CompressError(f"The '{name}' parameter of CodedBytesPenalty is out of range. Got {value!r}.")
        self.target_bytes, self.price, self.until, self.ramp = target_bytes, price, until, ramp
        self._total_steps = 0
        self._scales: list[Tensor] = []

    def settings(self) -> dict[str, Any]:
        return {"target_bytes": self.target_bytes, "price": self.price, "until": self.until, "ramp": self.ramp}

    def prepare(self, model: nn.Module) -> None:
        """Put the price into the model, where a checkpoint finds it."""
        if not _entries(model):
            raise CompressError(
                "CodedBytesPenalty needs weights in symmetric stored formats. Set 'trained_ranges' of "
                "prepare_quantized."
            )
        size = max(coded_size(model), 1.0)
        for name, value in ((_PRICE, self.price), (_FIRST, size), (_LAST, size)):
            model.register_buffer(name, torch.tensor(math.log(value), dtype=torch.float64), persistent=False)
        for entry in _entries(model):
            entry.module.format.carries = True

    def release(self, model: nn.Module) -> None:
        """Take the price away."""
        for entry in _entries(model):
            entry.module.format.carries = False
        for name in (_PRICE, _FIRST, _LAST):
            if hasattr(model, name):
                delattr(model, name)

    def attach(self, model: nn.Module, step: int, total_steps: int) -> None:
        self._total_steps = total_steps
        self._scales = [entry.module.fitted()["scale"].clone() for entry in _entries(model)]

    def penalty(self, model: nn.Module) -> Tensor | None:
        bits = [_expected_bits(model, entry) for entry in _entries(model)]
        return torch.stack(bits).sum() * math.exp(float(getattr(model, _PRICE)))

    def after_step(self, model: nn.Module, step: int) -> None:
        for entry, before in zip(_entries(model), self._scales, strict=True):
            _carry_(model, entry, before)
        if step % _EVERY or step > self.until * self._total_steps:
            return
        size, last = math.log(max(coded_size(model), 1.0)), getattr(model, _LAST)
        ahead = min(_AHEAD, _AHEAD_SHARE * self._total_steps)
        coming = size + ahead / _EVERY * (size - float(last))
        excess = coming - math.log(self.bytes_at(model, step + ahead))
        getattr(model, _PRICE).add_(max(-math.log(_MOST), min(math.log(_MOST), excess)))
        last.fill_(size)

    def bytes_at(self, model: nn.Module, step: float) -> float:
        """The bytes that are asked for after this step."""
        left = max(0.0, 1 - step / (self.ramp * self._total_steps)) if self.ramp else 0.0
        return self.target_bytes * max(1.0, math.exp(float(getattr(model, _FIRST))) / self.target_bytes) ** left

    def settled(self, step: int) -> bool:
        """Only while the price stays: before, a better validation may be a larger model."""
        return step >= self.until * self._total_steps


@torch.no_grad()
def coded_size(model: nn.Module) -> float:
    """Bytes that the symmetric stored weights of a model take at the entropy of their symbols."""
    bits = 0.0
    for entry in _entries(model):
        _, counts = torch.unique(entry.module.symbols(value_of(model, entry.parameter)), return_counts=True)
        share = counts.double() / counts.sum()
        bits -= float((counts * share.log2()).sum())
    return bits / 8


def _entries(model: nn.Module) -> list[FormattedEntry]:
    return [
        entry
        for entry in formatted_weights(model)
        if entry.module.format.name == "symmetric" and entry.module.format.signed
    ]


def _carry_(model: nn.Module, entry: FormattedEntry, before: Tensor) -> None:
    """Multiply the weights by what their scales were multiplied by, and keep them within the outer symbols."""
    module, weight = entry.module, value_of(model, entry.parameter)
    scale = module.fitted()["scale"]
    edge = (scale.abs() * module.format.largest)[:, None]
    rows = module.layout.rows(weight) * (scale / nonzero(before))[:, None]
    weight.copy_(module.layout.tensor(rows.clamp(-edge, edge)).to(weight.dtype))
    before.copy_(scale)


def _expected_bits(model: nn.Module, entry: FormattedEntry) -> Tensor:
    module, weight = entry.module, value_of(model, entry.parameter)
    largest = int(module.format.largest)
    rows = module.layout.rows(weight).float()
    kept = module.layout.real(weight.device) if module.kept is None else module.layout.rows(module.kept)
    place = (rows / nonzero(module.fitted()["scale"].detach())[:, None]).abs()[kept]
    with torch.no_grad():
        cost = symbol_bits(torch.bincount(place.round().clamp(max=largest).long(), minlength=largest + 1))
        below = place.floor().clamp(max=largest - 1)
        index = below.long()
    share = place - below
    return ((1 - share) * cost[index] + share * cost[index + 1]).sum()


def symbol_bits(counts: Tensor) -> Tensor:
    """`(n,)` float32 rising bits of a symbol of each magnitude from 0, signs included.

    Args:
        counts: `(n,)` how often each magnitude occurs; half a time is added to each.
    """
    counts = counts.double() + 0.5
    magnitude = torch.arange(len(counts), dtype=torch.float64, device=counts.device)
    others = counts[1:].sum()
    ratio = (1 - others / (counts * magnitude).sum()).clamp(*_RATIOS)
    bits = (counts.sum() / others).log2() + 1 - (1 - ratio).log2() - (magnitude - 1) * ratio.log2()
    bits[0] = torch.minimum((counts.sum() / counts[0]).log2(), bits[1] - _ZERO_BONUS)
    return bits.float()
