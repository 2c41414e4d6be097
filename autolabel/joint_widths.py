"""What a network loses when all of its layers are stored in few bits at once, each in its own width."""

import copy
from collections.abc import Callable, Sequence
from dataclasses import replace

import numpy as np
import torch
from torch import Tensor

from autolabel.joint_damage import JointDamage
from autolabel.oracle import Moments
from autolabel.tables import LabelTable
from compress.attributes import value_of
from compress.errors import CompressError
from compress.quantizer import FLOAT_BITS, OUTPUT_AXIS, WEIGHT_BITS, Quantizer, dequantize_weight, quantize_weight
from compress.structure import Structure
from compress.task import Batch, Task, evaluate


class WidthBench:
    """A copy of a network whose weights can be rounded to any widths; only weights are, activations stay float.

    Args:
        structure: the dense network; it stays as it is.
        task: reads batches.
        quantizer: who chooses the scales.
        bits: the widths that are offered.

    Attributes:
        layers: `n_layers` ids of the layer units that take a width.
        bits: as given.
    """

    def __init__(
        self, structure: Structure, task: Task, quantizer: Quantizer, bits: Sequence[int] = WEIGHT_BITS
    ) -> None:
        self.task, self.bits = task, tuple(bits)
        self._module = copy.deepcopy(structure.traced.module).eval()
        found = {layer.name: layer for layer in structure.traced.layers()}
        self.layers = tuple(str(i) for i in np.array(structure.units.ids)[structure.units.kind == "layer"])
        self._weights: dict[str, Tensor] = {}
        self._rounded: dict[tuple[str, int], Tensor] = {}
        for name in self.layers:
            weight = value_of(self._module, found[name].weight)
            self._weights[name] = weight
            axis, dense = OUTPUT_AXIS[found[name].kind], weight.detach().clone()
            self._rounded[name, FLOAT_BITS] = dense
            for width in self.bits:
                rounded = dequantize_weight(*quantize_weight(dense, width, quantizer, axis), axis)
                self._rounded[name, width] = rounded.to(dense.dtype)

    @property
    def n_choices(self) -> int:
        """Layers times widths."""
        return len(self.layers) * len(self.bits)

    def evaluate(self, widths: Sequence[int], batches: Sequence[Batch]) -> tuple[float, float]:
        """`(metric, loss)` with layer i stored in `widths[i]` bits (32 leaves it as it is).

        Raises:
            CompressError: for a wrong number of widths or one that is not offered.
        """
        self._round(widths)
        return evaluate(self._module, self.task, batches)

    def losses(self, widths: Sequence[int], batches: Sequence[Batch]) -> np.ndarray:
        """`(n_examples,)` float64 losses, see `evaluate`."""
        self._round(widths)
        with torch.no_grad():
            found = [self.task.loss(self._module(*self.task.inputs(batch)), batch).double() for batch in batches]
        return torch.cat(found).numpy()

    def _round(self, widths: Sequence[int]) -> None:
        self._check(widths)
        with torch.no_grad():
            for name, width in zip(self.layers, widths, strict=True):
                self._weights[name].copy_(self._rounded[name, int(width)])

    def taken(self, widths: np.ndarray) -> np.ndarray:
        """`(n_plans, n_choices)` bool: which choice each plan takes, layer by layer, in the order of `bits`.

        Args:
            widths: `(n_plans, n_layers)` bits; a layer of 32 takes nothing.
        """
        widths = np.asarray(widths)
        for plan in widths:
            self._check(plan)
        found = widths[:, :, None] == np.array(self.bits)
        return found.reshape(len(widths), -1)

    def draw(self, count: int, seed: int) -> np.ndarray:
        """`(count, n_layers)` widths, every layer's drawn uniformly."""
        return np.random.default_rng(seed).choice(self.bits, (count, len(self.layers)))

    def rounding_error(self, importance: dict[str, Tensor] | None = None) -> np.ndarray:
        """`(n_choices,)` squared error that rounding leaves in each layer's weight.

        Args:
            importance: layer -> what each weight's error is multiplied by; by default one over the layer's energy.
        """
        found = []
        for name in self.layers:
            dense = self._rounded[name, FLOAT_BITS].double()
            scale = 1 / dense.square().sum().clamp_min(1e-30) if importance is None else importance[name].double()
            found += [
                float(((self._rounded[name, width].double() - dense).square() * scale).sum()) for width in self.bits
            ]
        return np.array(found)

    def fisher(self, batches: Sequence[Batch]) -> dict[str, Tensor]:
        """Layer -> half the diagonal of the empirical Fisher matrix of its weight, from single examples.

        It is the second-order sensitivity of HAWQ-style methods with the Fisher matrix in the place of the Hessian.
        """
        self.evaluate([FLOAT_BITS] * len(self.layers), batches[:1])
        weights = [self._weights[name] for name in self.layers]
        sums, n = [torch.zeros_like(weight, dtype=torch.float64) for weight in weights], 0
        for batch in batches:
            for i in range(len(self.task.inputs(batch)[0])):
                single = tuple(column[i : i + 1] for column in batch)
                loss = self.task.loss(self._module(*self.task.inputs(single)), single).sum()
                for total, gradient in zip(sums, torch.autograd.grad(loss, weights), strict=True):
                    total += gradient.double().square()
                n += 1
        return {name: total / (2 * n) for name, total in zip(self.layers, sums, strict=True)}

    def _check(self, widths: Sequence[int]) -> None:
        allowed = {*self.bits, FLOAT_BITS}
        if len(widths) != len(self.layers) or not {int(width) for width in widths} <= allowed:
            raise CompressError(
                f"A plan of widths needs one of {sorted(allowed)} for each of {len(self.layers)} layers. "
                f"Got {[int(width) for width in widths]}."
            )


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
