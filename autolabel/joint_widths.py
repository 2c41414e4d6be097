"""What a network loses when all of its layers are stored in few bits at once, each in its own width."""

from collections.abc import Callable, Sequence
from dataclasses import replace

import numpy as np

from autolabel.choice_bench import DENSE, ChoiceBench
from autolabel.joint_damage import JointDamage
from autolabel.oracle import Moments
from autolabel.tables import LabelTable
from compress.errors import CompressError
from compress.layer_choice import LayerChoice
from compress.number_format import SYMMETRIC, NumberFormat
from compress.quantizer import FLOAT_BITS, WEIGHT_BITS, Quantizer
from compress.structure import Structure
from compress.task import Batch, Task


class WidthBench(ChoiceBench):
    """A copy of a network whose weights can be rounded to any widths; only weights are, activations stay float.

    Args:
        structure: the dense network; it stays as it is.
        task: reads batches.
        quantizer: who chooses the scales.
        bits: the widths that are offered.
        number_format: of widths of 8 bits or less.

    Attributes:
        bits: as given.
    """

    def __init__(
        self, structure: Structure, task: Task, quantizer: Quantizer, bits: Sequence[int] = WEIGHT_BITS,
        number_format: NumberFormat = SYMMETRIC,
    ) -> None:  # fmt: skip
        self.bits = tuple(bits)
        super().__init__(structure, task, quantizer, [LayerChoice(width) for width in self.bits], number_format)

    def evaluate(self, widths: Sequence[int], batches: Sequence[Batch]) -> tuple[float, float]:
        """`(metric, loss)` with layer i stored in `widths[i]` bits (32 leaves it as it is).

        Raises:
            CompressError: for a wrong number of widths or one that is not offered.
        """
        return super().evaluate(self._picks(widths), batches)

    def losses(self, widths: Sequence[int], batches: Sequence[Batch]) -> np.ndarray:
        """`(n_examples,)` float64 losses, see `evaluate`."""
        return super().losses(self._picks(widths), batches)

    def taken(self, widths: np.ndarray) -> np.ndarray:
        """`(n_plans, n_choices)` bool: which choice each plan takes, layer by layer, in the order of `bits`.

        Args:
            widths: `(n_plans, n_layers)` bits; a layer of 32 takes nothing.
        """
        return super().taken(np.array([self._picks(plan) for plan in np.asarray(widths)]))

    def draw(self, count: int, seed: int) -> np.ndarray:
        """`(count, n_layers)` widths, every layer's drawn uniformly."""
        return np.array(self.bits)[super().draw(count, seed)]

    def _picks(self, widths: Sequence[int]) -> list[int]:
        """What `ChoiceBench` calls these widths."""
        places = {FLOAT_BITS: DENSE, **{width: i for i, width in enumerate(self.bits)}}
        if len(widths) != len(self.layers) or not {int(width) for width in widths} <= set(places):
            raise CompressError(
                f"A plan of widths needs one of {sorted(places)} for each of {len(self.layers)} layers. "
                f"Got {[int(width) for width in widths]}."
            )
        return [places[int(width)] for width in widths]


def learn_joint_widths(
    bench: WidthBench, batches: Sequence[Batch], labels: LabelTable, plans: int, seed: int = 0,
    on_plan: Callable[[int, int], None] | None = None,
) -> JointDamage:  # fmt: skip
    """What widths do together, learned from random plans.

    Args:
        batches: examples to measure on, those of the labels.
        labels: of the layers alone, with the choices `"8bit"`, ....
        plans: how many random plans to measure.
        seed: of their drawing.

    Raises:
        CompressError: for labels of other layers or widths, or fewer than ten plans.
    """
    alone = _damages(labels, bench)
    dense = bench.losses([FLOAT_BITS] * len(bench.layers), batches)
    widths, measured, errors = bench.draw(plans, seed), [], []
    for plan in widths:
        moments = Moments()
        moments.add(bench.losses(plan, batches) - dense)
        measured.append(moments.mean)
        errors.append(moments.std_err)
        if on_plan is not None:
            on_plan(len(measured), plans)
    noise = float(np.median(errors)) if len(dense) > 1 else 0.0
    return JointDamage.fit(alone, bench.taken(widths), np.array(measured), noise=noise, seed=seed)


def joint_labels(labels: LabelTable, bench: WidthBench, joint: JointDamage, price: float) -> LabelTable:
    """The labels with `corrected` damages at a price in nats, so that they compete with damages of other kinds."""
    damage = labels.damage.copy()
    damage[_cells(labels, bench)] = price * joint.corrected
    return replace(labels, damage=damage)


def _damages(labels: LabelTable, bench: WidthBench) -> np.ndarray:
    return np.maximum(labels.damage[_cells(labels, bench)], 0)


def _cells(labels: LabelTable, bench: WidthBench) -> tuple[np.ndarray, np.ndarray]:
    """Where the damages of a bench's choices stand in a table."""
    rows = {unit: i for i, unit in enumerate(labels.unit_ids)}
    columns = {choice: i for i, choice in enumerate(labels.choices)}
    try:
        found = [(rows[layer], columns[f"{bits}bit"]) for layer in bench.layers for bits in bench.bits]
    except KeyError as error:
        raise CompressError(f"These labels know nothing of {error.args[0]!r}.") from None
    return tuple(np.array(found).T)
