"""Damage of storing one layer's weight in fewer bits, with fewer weights or at a lower rank, looked at at once."""

import itertools
from collections.abc import Collection, Iterator, MutableMapping, Sequence
from dataclasses import replace

import numpy as np
from torch import Tensor

from autolabel.oracle import Measurement, Moments
from compress.attributes import value_of
from compress.errors import CompressError
from compress.factorizer import Factorizer
from compress.factorizers import ChannelFactorizer
from compress.input_moments import collect_input_moments
from compress.layer_choice import LayerChoice
from compress.layer_trial import try_choices
from compress.number_format import NumberFormat
from compress.quantizer import OUTPUT_AXIS, WEIGHT_BITS, Quantizer
from compress.quantizers.mse import MseQuantizer
from compress.replay import Replay
from compress.splitting import find_splits
from compress.structure import Structure


class LayerChoiceOracle:
    """Stores the weight of one layer otherwise and measures the increase of the loss (sensitivity, but measured).

    Choices are all bits x densities (the largest magnitudes stay) x ranks (two factors, or none, so one more than are
    named), in each scheme that competes, so many measurements for each layer; names as in `compress.layer_choice`.

    What is measured is what is stored where the number format is the one that layers get in the end. (Bits for each
    layer: Wang et al. 2019, "HAQ", arXiv:1811.08886; bits and densities in one knapsack: Yang et al. 2020, "Automatic
    Neural Network Compression by Sparsity-Quantization Joint Learning", arXiv:1910.05897.)

    Args:
        bits: the widths to measure; 32 is float32, which makes sense with a density or a rank. Of those that the scheme
            stores alike, one is measured.
        quantizer: who chooses the scales; the one that will quantise the model.
        densities: fractions of the weights that stay, of each factor where there are two, in (0, 1].
        ranks: fractions of the useful rank, in (0, 1), for layers whose weight two factors can replace.
        factorizer: how the two share the kernel of a convolution; None leaves it to the first.
        scheme, granularity, group_size: number format of all layers in 8 bits or less, see `LayerFormat`.
        schemes: others that layers may have in its place, each for itself.
        activation_aware: the factors come closest in outputs on the replay's examples, not in weights.

    Raises:
        CompressError: for a number out of range, or schemes that cannot be told apart.
    """

    name = "layer_choice"
    kind = "layer"
    least_batches = 1

    def __init__(
        self,
        bits: Sequence[int] = WEIGHT_BITS,
        quantizer: Quantizer | None = None,
        densities: Sequence[float] = (1.0,),
        ranks: Sequence[float] = (),
        activation_aware: bool = True,
        factorizer: Factorizer | None = None,
        scheme: str = "symmetric",
        granularity: str = "channel",
        group_size: int | None = None,
        schemes: Sequence[str] = (),
    ) -> None:
        self.number_format = NumberFormat(scheme, granularity, group_size)
        self.bits, self.densities, self.ranks = self.number_format.distinct(tuple(bits)), tuple(densities), tuple(ranks)
        for name, values, top in (("densities", self.densities, 1.0), ("ranks", self.ranks, 0.999)):
            if not all(0 < value <= top for value in values):
                raise CompressError(
                    f"The '{name}' parameter of LayerChoiceOracle must hold fractions above 0. Got {values}."
                )
        self.rank_scheme = (factorizer or ChannelFactorizer()).name
        if {scheme, "symmetric"} & set(schemes) or len(set(schemes)) < len(schemes):
            raise CompressError(
                f"The 'schemes' parameter of LayerChoiceOracle must hold others than the 'scheme' {scheme!r}, each "
                f"once, and not 'symmetric', which only that can be. Got {tuple(schemes)}."
            )
        found = self._choices(self.bits)
        for own in schemes:
            few = replace(self.number_format, scheme=own).distinct(tuple(b for b in bits if b <= 8))
            found += [replace(choice, scheme=own) for choice in self._choices(few)]
        self.layer_choices = tuple(choice for choice in found if choice != LayerChoice())
        self.choices = tuple(choice.name for choice in self.layer_choices)
        self.quantizer = quantizer or MseQuantizer()
        self.activation_aware = activation_aware

    def _choices(self, bits: Sequence[int]) -> list[LayerChoice]:
        whole = [LayerChoice(b, d) for b in bits for d in self.densities]
        kinds = itertools.product(bits, self.ranks, self.densities)
        return [*whole, *(LayerChoice(b, d, r, self.rank_scheme) for b, r, d in kinds)]

    def measure(
        self, structure: Structure, replay: Replay, rows: np.ndarray, done: Collection[tuple[str, str]] = (),
        notes: MutableMapping[str, list[float]] | None = None,
    ) -> Iterator[Measurement]:  # fmt: skip
        """One measurement per row and choice."""
        layers = {layer.name: layer for layer in structure.traced.layers()}
        left = {
            name: [choice for choice in self.layer_choices if (name, choice.name) not in done]
            for name in (structure.units.ids[row] for row in rows)
        }
        names = [name for name, choices in left.items() if choices]
        able, second = self._prepare_ranks(structure, replay, names)
        for name in names:
            if name not in able and all(choice.rank for choice in left[name]):
                continue
            layer, suffix = layers[name], replay.layer_suffix(name)
            replay.forget()
            replay.keep([suffix])
            weight = value_of(structure.traced.module, layer.weight).detach()
            choices = [choice for choice in left[name] if choice.rank is None or name in able]
            axis = OUTPUT_AXIS[layer.kind]
            tried = try_choices(weight, choices, self.quantizer, axis, second.get(name), self.number_format)
            for choice, (stored, _) in zip(choices, tried, strict=True):
                moments = Moments()
                for number in range(len(replay.batches)):
                    moments.add(replay.layer_losses(suffix, stored, number) - replay.dense[number])
                yield Measurement(name, choice.name, moments.mean, moments.std_err, moments.n,
                                  suffix.macs * moments.n, replay.full_macs * replay.n_examples)  # fmt: skip

    def _prepare_ranks(
        self, structure: Structure, replay: Replay, names: Sequence[str]
    ) -> tuple[set[str], dict[str, Tensor]]:
        """`(layers that some rank makes smaller, second moments of their inputs)`."""
        if not self.ranks:
            return set(), {}
        module = structure.traced.module
        splits, _ = find_splits(module, self.rank_scheme)
        able = {name for name in names if name in splits and splits[name].useful_rank}
        if not able or not self.activation_aware:
            return able, {}
        replay.forward_macs += replay.full_macs * replay.n_examples
        return able, collect_input_moments(module, [replay.task.inputs(batch) for batch in replay.batches], able)
