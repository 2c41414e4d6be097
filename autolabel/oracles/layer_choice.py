"""Damage of storing one layer's weight in fewer bits, with fewer weights or at a lower rank, looked at at once."""

from collections.abc import Iterator, Sequence

import numpy as np

from autolabel.oracle import Measurement, Moments
from compress.attributes import value_of
from compress.errors import CompressError
from compress.layer_choice import LayerChoice, useful_rank
from compress.layer_trial import try_choice
from compress.quantizer import OUTPUT_AXIS, WEIGHT_BITS, Quantizer
from compress.quantizers.mse import MseQuantizer
from compress.replay import Replay
from compress.splitting import find_splits
from compress.structure import Structure


class LayerChoiceOracle:
    """Stores the weight of one layer otherwise and measures the increase of the loss (sensitivity, but measured).

    Choices are every width alone, with every density (the largest magnitudes stay) and with every rank (a truncated
    singular value decomposition); names as in `compress.layer_choice`.

    Args:
        bits: the widths to measure; 32 is float32, which makes sense with a density or a rank.
        quantizer: who chooses the scales; the one that will quantise the model.
        densities: fractions of the weights that stay, in (0, 1].
        ranks: fractions of the useful rank, in (0, 1), for layers whose weight two factors can replace.

    Raises:
        CompressError: for a number out of range.
    """

    name = "layer_choice"
    kind = "layer"

    def __init__(
        self,
        bits: Sequence[int] = WEIGHT_BITS,
        quantizer: Quantizer | None = None,
        densities: Sequence[float] = (1.0,),
        ranks: Sequence[float] = (),
    ) -> None:
        self.bits, self.densities, self.ranks = tuple(bits), tuple(densities), tuple(ranks)
        for name, values, top in (("densities", self.densities, 1.0), ("ranks", self.ranks, 0.999)):
            if not all(0 < value <= top for value in values):
                raise CompressError(
                    f"The '{name}' parameter of LayerChoiceOracle must hold fractions above 0. Got {values}."
                )
        found = [LayerChoice(b, density=d) for b in self.bits for d in self.densities]
        found += [LayerChoice(b, rank=r) for b in self.bits for r in self.ranks]
        self.layer_choices = tuple(choice for choice in found if choice != LayerChoice())
        self.choices = tuple(choice.name for choice in self.layer_choices)
        self.quantizer = quantizer or MseQuantizer()

    def measure(self, structure: Structure, replay: Replay, rows: np.ndarray) -> Iterator[Measurement]:
        """One measurement per row and choice."""
        layers = {layer.name: layer for layer in structure.traced.layers()}
        able, _ = find_splits(structure.traced.module, "channel") if self.ranks else ({}, ())
        for row in rows:
            layer = layers[structure.units.ids[row]]
            suffix = replay.layer_suffix(layer.name)
            replay.forget()
            replay.keep([suffix])
            weight = value_of(structure.traced.module, layer.weight).detach()
            for choice in self.layer_choices:
                if choice.rank and not (layer.name in able and useful_rank(weight.numel(), len(weight))):
                    continue
                stored, _ = try_choice(weight, choice, self.quantizer, OUTPUT_AXIS[layer.kind])
                moments = Moments()
                for number in range(len(replay.batches)):
                    moments.add(replay.layer_losses(suffix, stored, number)[0] - replay.dense[number])
                yield Measurement(layer.name, choice.name, moments.mean, moments.std_err, moments.n,
                                  suffix.macs * moments.n, replay.full_macs * replay.n_examples)  # fmt: skip
