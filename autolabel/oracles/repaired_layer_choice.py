"""Damage of storing one layer otherwise after the weights made up for it, alone or beside choices of other layers."""

import math
from collections.abc import Collection, Iterator, Mapping, MutableMapping, Sequence

import numpy as np
import torch
from torch import fx

from autolabel.after_repair import halves, is_taught, train_briefly_, trained_examples
from autolabel.marginal_effects import marginal_effects
from autolabel.oracle import Measurement, Moments
from compress.attributes import copy_traced, value_of
from compress.errors import CompressError, DataError
from compress.layer_choice import LayerChoice
from compress.layer_moments import weight_readers
from compress.layer_trial import keep_largest
from compress.number_format import NumberFormat
from compress.plan import CompressionPlan
from compress.prunable_weights import prunable_weights
from compress.quantization import prepare_quantized
from compress.quantizer import FLOAT_BITS, WEIGHT_BITS, Quantizer
from compress.quantizers.mse import MseQuantizer
from compress.replay import Replay
from compress.roundings import GptqRounding
from compress.second_order_pruning import prune_weights_
from compress.sparsifier import Sparsifier
from compress.spending import format_of
from compress.structure import Structure
from compress.task import Batch
from compress.weight_rounding import round_weights_

# Plans that are drawn of each layer and choice, and how often each choice is taken at least.
_BY_CHOICE, _OFTEN = 3, 4
_UNTOUCHED = "losses of the untouched network after training"


class RepairedLayerChoiceOracle:
    """What a layer's bits and density do to the loss after the repair, and after a training if asked.

    The repair is what needs no labels: weights that stay make up for those that go (SparseGPT's sweep) and for their
    rounding (GPTQ). Half of the batches repairs each network and the other half, which the repair has not seen, tells
    its loss; then the halves change places. What no repair reaches (embeddings, shared weights) keeps its largest
    magnitudes and is rounded to nearest, as are formats that are not of integers times a scale of each output.

    With `company` 0 each layer takes each choice alone. Otherwise every layer takes one of its choices in this part of
    the plans, each as often, and what a choice adds to the loss beside what the others do is solved for together.

    With `training_steps` damage is what a choice loses against the untouched network after the same training: what
    training alone gains is no merit of a choice.

    Args:
        bits: the widths to measure, see `LayerChoiceOracle`.
        quantizer: who chooses the scales.
        densities: fractions of the weights that stay, in (0, 1].
        scheme, granularity, group_size: number format of layers in 8 bits or less, see `LayerFormat`.
        company: part of the plans, in [0, 1), in which a layer takes a choice, or 0 for one layer at a time.
        plans: how many are drawn with `company`; None for three of each layer and choice, or what lets every layer take
            each choice, and stay as it is, four times.
        training_steps: optimizer steps after each repair, in the formats and with the zeros held, by `finetune_` (from
            the dense model's logits too where the task is a `ClassificationTask`).
        lr: of the training, by AdamW, the same in every step.
        max_rows: of inputs that the repair of a layer looks at.
        reduce_range: of weights in 8 bits, see `prepare_quantized`.
        seed: of plans, repair and training.
        ranks, schemes: none; who names some is refused.

    Raises:
        CompressError: for a number out of range, or for ranks or schemes.
    """

    name = "repaired_layer_choice"
    kind = "layer"
    least_batches = 2

    def __init__(
        self, bits: Sequence[int] = WEIGHT_BITS, quantizer: Quantizer | None = None,
        densities: Sequence[float] = (1.0,), scheme: str = "symmetric", granularity: str = "channel",
        group_size: int | None = None, company: float = 0.0, plans: int | None = None, training_steps: int = 0,
        lr: float = 1e-3, max_rows: int = 10_000, reduce_range: bool = True, seed: int = 0,
        ranks: Sequence[float] = (), schemes: Sequence[str] = (),
    ) -> None:  # fmt: skip
        for name, value, fits, must in (
            ("densities", densities, all(0 < density <= 1 for density in densities), "hold fractions in (0, 1]"),
            ("company", company, 0 <= company < 1, "be in [0, 1)"),
            ("plans", plans, plans is None or plans >= 1, "be at least 1, or None"),
            ("training_steps", training_steps, training_steps >= 0, "be at least 0"),
            ("lr", lr, lr > 0, "be above 0"),
            ("ranks", ranks, not len(ranks), "be empty: only bits and densities are repaired"),
            ("schemes", schemes, not len(schemes), "be empty: one number format is measured"),
        ):
            if not fits:
                raise CompressError(f"The '{name}' parameter of {type(self).__name__} must {must}. Got {value!r}.")
        self.number_format = NumberFormat(scheme, granularity, group_size)
        self.bits, self.densities = self.number_format.distinct(tuple(bits)), tuple(densities)
        offered = [LayerChoice(width, density) for width in self.bits for density in self.densities]
        self.layer_choices = tuple(choice for choice in offered if choice != LayerChoice())
        self.choices = tuple(choice.name for choice in self.layer_choices)
        self.quantizer = quantizer or MseQuantizer()
        self.company, self.plans = company, plans
        self.training_steps, self.lr, self.max_rows, self.seed = training_steps, lr, max_rows, seed
        self.reduce_range = reduce_range

    def measure(
        self, structure: Structure, replay: Replay, rows: np.ndarray, done: Collection[tuple[str, str]] = (),
        notes: MutableMapping[str, list[float]] | None = None,
    ) -> Iterator[Measurement]:  # fmt: skip
        """One measurement per row and choice.

        Raises:
            CompressError: for a single batch, which cannot be halved, or too few plans to tell choices apart.
            DataError: if a repaired network has a loss that is not finite.
        """
        left = [
            (structure.units.ids[row], choice)
            for row in rows
            for choice in self.layer_choices
            if (structure.units.ids[row], choice.name) not in done
        ]
        if not left:
            return
        if len(replay.batches) < 2:
            raise CompressError(
                f"{type(self).__name__} needs at least two batches: one half repairs, the other one judges."
            )
        notes = {} if notes is None else notes
        if self.company:
            yield from self._together(structure, replay, left, notes)
            return
        dense, before = np.concatenate(replay.dense), 0.0
        if self.training_steps:
            if _UNTOUCHED not in notes:
                notes[_UNTOUCHED] = self._losses(structure, replay, {})[0].tolist()
            # Its cost is everyone's, whoever is measured first.
            dense = np.array(notes[_UNTOUCHED])
            before = self._macs(replay, 0) / (len(rows) * len(self.layer_choices))
        for name, choice in left:
            losses, macs = self._losses(structure, replay, {name: choice})
            found = Moments()
            found.add(losses - dense)
            yield Measurement(name, choice.name, found.mean, found.std_err, found.n, before + macs, before + macs)

    def _together(
        self, structure: Structure, replay: Replay, left: Sequence[tuple[str, LayerChoice]],
        notes: MutableMapping[str, list[float]],
    ) -> Iterator[Measurement]:  # fmt: skip
        units = structure.units
        layers = [str(units.ids[row]) for row in np.flatnonzero(units.kind == "layer")]
        columns = [(name, choice) for name in layers for choice in self.layer_choices]
        losses, macs, taken = [], 0.0, self._draw(len(layers))
        for number, plan in enumerate(taken):
            note = f"plan {number}"
            if note not in notes:
                found, spent = self._losses(structure, replay, dict(columns[i] for i in np.flatnonzero(plan)))
                notes[note] = [float(found.mean()), spent]
            losses.append(notes[note][0])
            macs += notes[note][1]
        effect, std_err = marginal_effects(taken, np.array(losses))
        places = {(name, choice.name): i for i, (name, choice) in enumerate(columns)}
        each = macs / len(columns)
        for name, choice in left:
            i = places[name, choice.name]
            yield Measurement(name, choice.name, float(effect[i]), float(std_err[i]), replay.n_examples, each, each)

    def _draw(self, n_layers: int) -> np.ndarray:
        """`(plans, layers x choices)` bool: every layer takes each choice in as many plans, whatever the others take.

        Raises:
            CompressError: for plans that do not tell the choices apart.
        """
        n_choices = len(self.layer_choices)
        most = (2 * n_layers * n_choices + 2, _OFTEN * n_choices / self.company, _OFTEN / (1 - self.company))
        least = math.ceil(max(most))
        plans = max(_BY_CHOICE * n_layers * n_choices, least) if self.plans is None else self.plans
        if plans < least:
            raise CompressError(
                f"{plans} plans do not tell {n_choices} choices of each of {n_layers} layers apart. Set 'plans' of "
                f"{type(self).__name__} to {least} or more, or 'company' to 0."
            )
        rng = np.random.default_rng([self.seed, 17])
        deck = np.full(plans, -1)
        often = int(plans * self.company / n_choices + 1e-9)
        deck[: often * n_choices] = np.repeat(np.arange(n_choices), often)
        picks = np.stack([rng.permutation(deck) for _ in range(n_layers)], axis=1)
        return (picks[:, :, None] == np.arange(n_choices)).reshape(plans, -1)

    def _losses(
        self, structure: Structure, replay: Replay, taken: Mapping[str, LayerChoice]
    ) -> tuple[np.ndarray, float]:
        """`(n_examples,)` losses in the order of the batches, each of a network repaired on others; MACs spent."""
        parts, passes = halves(replay), 0
        losses: dict[int, np.ndarray] = {}
        for repairing, judging in (parts, parts[::-1]):
            small, passes = self._repaired(structure, replay, taken, [replay.batches[i] for i in repairing])
            with torch.no_grad():
                for number in judging:
                    batch = replay.batches[number]
                    found = replay.task.loss(small(*replay.task.inputs(batch)), batch)
                    losses[number] = found.double().cpu().numpy()
        every = np.concatenate([losses[number] for number in range(len(replay.batches))])
        if not np.isfinite(every).all():
            raise DataError(
                f"A repaired network has a loss that is not finite. Lower the 'lr' of {type(self).__name__}, or leave "
                "its fewest bits out."
            )
        return every, self._macs(replay, passes)

    def _macs(self, replay: Replay, passes: int) -> float:
        """MACs of one network: repairs pass over all examples once more each, the judgement once; a step counts three
        passes over its batch and one of the teacher."""
        trained = sum(trained_examples(replay, half, self.training_steps) for half in halves(replay))
        return ((passes + 1) * replay.n_examples + (3 + is_taught(replay)) * trained) * replay.full_macs

    def _repaired(
        self, structure: Structure, replay: Replay, taken: Mapping[str, LayerChoice], batches: Sequence[Batch]
    ) -> tuple[fx.GraphModule, int]:
        """The network with these choices, repaired on the batches, and how often the repair passed over them."""
        small, passes = copy_traced(structure.traced.module).eval(), 0
        inputs = [tuple(replay.task.inputs(batch)) for batch in batches]
        own = {name: choice.density for name, choice in taken.items() if choice.density < 1}
        updated = {reader.layer for reader in weight_readers(small)}
        if swept := {name: density for name, density in own.items() if name in updated}:
            prune_weights_(small, swept, inputs, max_rows=self.max_rows, seed=self.seed)
            passes += 1
        weights = {layer.name: layer.weight for layer in structure.traced.layers()}
        with torch.no_grad():
            for name in own.keys() - updated:
                weight = value_of(small, weights[name])
                weight.copy_(keep_largest(weight, own[name]))
        formats = {
            name: self.number_format.applied(format_of(choice, None, self.number_format))
            for name, choice in taken.items()
            if choice.bits < FLOAT_BITS
        }
        if formats:
            plan = CompressionPlan.removing(structure.units, [], layer_formats=formats)
            small = prepare_quantized(small, plan, [], self.quantizer, reduce_range=self.reduce_range).eval()
            if any(name in updated and found.bits <= 8 and found.on_integers for name, found in formats.items()):
                round_weights_(small, GptqRounding(), inputs, max_rows=self.max_rows, seed=self.seed)
                passes += 1
        if self.training_steps:
            # Layers in formats have their zeros in the graph.
            masked = own.keys() - formats.keys()
            others = [name for name in prunable_weights(small) if name not in masked]
            train_briefly_(
                structure, replay, small, batches, steps=self.training_steps, lr=self.lr, seed=self.seed,
                hooks=[Sparsifier(1.0, skip=others)] if masked else [],
            )  # fmt: skip
        return small, passes
