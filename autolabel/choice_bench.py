"""What a network loses when all of its layers are stored otherwise at once, each in its own way."""

from collections.abc import Sequence

import numpy as np
import torch
from torch import Tensor

from compress.attributes import copy_traced, value_of
from compress.errors import CompressError
from compress.layer_choice import LayerChoice
from compress.layer_trial import try_choices
from compress.number_format import SYMMETRIC, NumberFormat
from compress.quantizer import OUTPUT_AXIS, Quantizer
from compress.structure import Structure
from compress.task import Batch, Task, evaluate

# In the place of a choice: the layer stays as it is.
DENSE = -1


class ChoiceBench:
    """A copy of a network whose layers can be stored in any of some choices; only weights are, activations stay float.

    Args:
        structure: the dense network; it stays as it is.
        task: reads batches.
        quantizer: who chooses the scales.
        choices: bits and densities that are offered to every layer; no ranks.
        number_format: of choices of 8 bits or less.

    Attributes:
        layers: `n_layers` ids of the layer units that take a choice.
        choices: as given.

    Raises:
        CompressError: for a choice of low rank.
    """

    def __init__(
        self, structure: Structure, task: Task, quantizer: Quantizer, choices: Sequence[LayerChoice],
        number_format: NumberFormat = SYMMETRIC,
    ) -> None:  # fmt: skip
        self.task, self.choices = task, tuple(choices)
        if any(choice.rank is not None for choice in self.choices):
            raise CompressError("The 'choices' of ChoiceBench must be bits and densities. Got one of low rank.")
        self._module = copy_traced(structure.traced.module).eval()
        found = {layer.name: layer for layer in structure.traced.layers()}
        self.layers = tuple(str(i) for i in np.array(structure.units.ids)[structure.units.kind == "layer"])
        self._weights: dict[str, Tensor] = {}
        self._stored: dict[tuple[str, int], Tensor] = {}
        for name in self.layers:
            weight = value_of(self._module, found[name].weight)
            dense = weight.detach().clone()
            self._weights[name], self._stored[name, DENSE] = weight, dense
            axis = OUTPUT_AXIS[found[name].kind]
            tried = try_choices(dense, self.choices, quantizer, axis, number_format=number_format)
            for pick, (values, _) in enumerate(tried):
                self._stored[name, pick] = values.to(dense.dtype)

    @property
    def sizes(self) -> list[int]:
        """Weights of every layer."""
        return [self._weights[name].numel() for name in self.layers]

    @property
    def n_choices(self) -> int:
        """Layers times choices."""
        return len(self.layers) * len(self.choices)

    def evaluate(self, picks: Sequence[int], batches: Sequence[Batch]) -> tuple[float, float]:
        """`(metric, loss)` with layer i stored in `choices[picks[i]]` (`DENSE` leaves it as it is).

        Raises:
            CompressError: for a wrong number of picks or one that is not offered.
        """
        self._store(picks)
        return evaluate(self._module, self.task, batches)

    def losses(self, picks: Sequence[int], batches: Sequence[Batch]) -> np.ndarray:
        """`(n_examples,)` float64 losses, see `evaluate`."""
        self._store(picks)
        with torch.no_grad():
            found = [self.task.loss(self._module(*self.task.inputs(batch)), batch).double() for batch in batches]
        return torch.cat(found).numpy()

    def outputs(self, picks: Sequence[int], batches: Sequence[Batch]) -> Tensor:
        """`(n_examples, ...)` outputs of the network, see `evaluate`."""
        self._store(picks)
        with torch.no_grad():
            return torch.cat([self._module(*self.task.inputs(batch)) for batch in batches])

    def taken(self, picks: np.ndarray) -> np.ndarray:
        """`(n_plans, n_choices)` bool: which choice each of `(n_plans, n_layers)` picks takes, layer by layer."""
        found = np.asarray(picks)[:, :, None] == np.arange(len(self.choices))
        return found.reshape(len(found), -1)

    def draw(self, count: int, seed: int) -> np.ndarray:
        """`(count, n_layers)` picks, every layer's drawn uniformly."""
        return np.random.default_rng(seed).choice(len(self.choices), (count, len(self.layers)))

    def storing_error(self, importance: dict[str, Tensor] | None = None) -> np.ndarray:
        """`(n_choices,)` squared error that storing leaves in each layer's weight.

        Args:
            importance: layer -> what each weight's error is multiplied by; by default one over the layer's energy.
        """
        found = []
        for name in self.layers:
            energy = self.dense_weight(name).square().sum().clamp_min(1e-30)
            scale = 1 / energy if importance is None else importance[name].double()
            found += [float((self.squared_error(name, pick) * scale).sum()) for pick in range(len(self.choices))]
        return np.array(found)

    def squared_error(self, layer: str, pick: int) -> Tensor:
        """What `choices[pick]` leaves of a layer's weight, in its shape, float64, each squared."""
        return (self._stored[layer, pick].double() - self._stored[layer, DENSE].double()).square()

    def dense_weight(self, layer: str) -> Tensor:
        """The weight of a layer as it is, float64."""
        return self._stored[layer, DENSE].double()

    def fisher(self, batches: Sequence[Batch]) -> dict[str, Tensor]:
        """Layer -> half the diagonal of the empirical Fisher matrix of its weight, from single examples.

        It is the second-order sensitivity of HAWQ-style methods with the Fisher matrix in the place of the Hessian.
        """
        self._store([DENSE] * len(self.layers))
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

    def _store(self, picks: Sequence[int]) -> None:
        if len(picks) != len(self.layers) or not all(DENSE <= int(pick) < len(self.choices) for pick in picks):
            raise CompressError(
                f"{len(self.layers)} layers need a pick each, below {len(self.choices)}. Got {[int(p) for p in picks]}."
            )
        with torch.no_grad():
            for name, pick in zip(self.layers, picks, strict=True):
                self._weights[name].copy_(self._stored[name, int(pick)])
