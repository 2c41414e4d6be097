"""Symbols drawn to those that occur often, so that a model codes into fewer bytes."""

import math
from typing import Any

import torch
from torch import Tensor, nn

from compress.attributes import value_of
from compress.errors import CompressError
from compress.formatted_weight import FormattedEntry, formatted_weights
from compress.weight_format import scaled_gradient

_PRICE, _FIRST = "coded_bytes_price", "coded_bytes_first"
# Steps between two looks at the size, each of which changes the price by at most this factor.
_EVERY, _MOST = 100, 1.35
_LEAST_RANGE = 2.0


class CodedBytesPenalty:
    """A price on the expected bits of all weights in symmetric stored formats, raised while they take too many bytes.

    A weight between two symbols costs what lies on the line between their bits, and the bits of a symbol are those of
    how often it occurs in its layer now; so the gradient draws weights and trained scales to cheaper symbols, zero
    above all. (An entropy penalty on weights: Wiedemann et al. 2019, "Entropy-Constrained Training of Deep Neural
    Networks", arXiv:1812.07520; Oktay et al. 2020, "Scalable Model Compression by Entropy Penalized
    Reparameterization", arXiv:1906.06624.)

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

    def settings(self) -> dict[str, Any]:
        return {"target_bytes": self.target_bytes, "price": self.price, "until": self.until, "ramp": self.ramp}

    def prepare(self, model: nn.Module) -> None:
        """Put the price into the model, where a checkpoint finds it."""
        if not _entries(model):
            raise CompressError(
                "CodedBytesPenalty needs weights in symmetric stored formats. Set 'trained_ranges' of "
                "prepare_quantized."
            )
        for name, value in ((_PRICE, self.price), (_FIRST, max(coded_size(model), 1.0))):
            model.register_buffer(name, torch.tensor(math.log(value), dtype=torch.float64), persistent=False)

    def release(self, model: nn.Module) -> None:
        """Take the price away."""
        for name in (_PRICE, _FIRST):
            if hasattr(model, name):
                delattr(model, name)

    def attach(self, model: nn.Module, step: int, total_steps: int) -> None:
        self._total_steps = total_steps

    def penalty(self, model: nn.Module) -> Tensor | None:
        bits = [_expected_bits(model, entry) for entry in _entries(model)]
        return torch.stack(bits).sum() * math.exp(float(getattr(model, _PRICE)))

    def after_step(self, model: nn.Module, step: int) -> None:
        for entry in _entries(model):
            _hold_range_(model, entry)
        if step % _EVERY or step > self.until * self._total_steps:
            return
        excess = coded_size(model) / self.bytes_at(model, step) - 1
        getattr(model, _PRICE).add_(max(-math.log(_MOST), min(math.log(_MOST), excess)))

    def bytes_at(self, model: nn.Module, step: int) -> float:
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
    return [entry for entry in formatted_weights(model) if getattr(entry.module.format, "largest", 0) >= 1]


def _hold_range_(model: nn.Module, entry: FormattedEntry) -> None:
    """Keep the outer symbols at two root mean squares of the weights or more, and the weights within.

    Large layers are cheaper with larger scales; then others take theirs back, and came to have all weights at the edge.
    """
    module, weight = entry.module, value_of(model, entry.parameter)
    rows, scale, largest = module.layout.rows(weight), module.fitted()["scale"], module.format.largest
    kept = module.layout.real(weight.device) if module.kept is None else module.layout.rows(module.kept)
    squares = rows.square().masked_fill(~kept, 0.0).sum(1) / kept.sum(1).clamp(min=1)
    scale.copy_(torch.maximum(scale, _LEAST_RANGE * squares.sqrt() / largest))
    edge = (scale * largest)[:, None]
    weight.copy_(module.layout.tensor(rows.clamp(-edge, edge)).to(weight.dtype))


def _expected_bits(model: nn.Module, entry: FormattedEntry) -> Tensor:
    module, weight = entry.module, value_of(model, entry.parameter)
    largest = int(module.format.largest)
    rows = module.layout.rows(weight).float()
    kept = module.layout.real(weight.device) if module.kept is None else module.layout.rows(module.kept)
    # The loss divides the gradient of a scale; were that of the price whole, it alone would decide the scales.
    place = (rows / scaled_gradient(module.fitted()["scale"], kept, largest)).clamp(-largest, largest)[kept]
    with torch.no_grad():
        counts = torch.bincount((place.round() + largest).long(), minlength=2 * largest + 1).double() + 0.5
        cost = (counts.sum() / counts).log2().float()
        below = place.floor().clamp(max=largest - 1)
        index = (below + largest).long()
    share = place - below
    return ((1 - share) * cost[index] + share * cost[index + 1]).sum()
