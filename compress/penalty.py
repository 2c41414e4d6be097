"""What the penalties share: a hook of training that acts on the loss alone, with a strength."""

from collections.abc import Sequence
from dataclasses import dataclass, field, fields
from typing import Any

from torch import nn

from compress.errors import CompressError
from compress.layer_weights import layer_weights


@dataclass
class Penalty:
    """A penalty. The result is the model of the last step: a better validation before it had less of the penalty.

    Attributes:
        strength: factor of the penalty, at least 0.
    """

    strength: float = 1e-5
    _last_step: int = field(default=0, init=False, repr=False, compare=False)

    def __post_init__(self) -> None:
        if not 0 <= self.strength < float("inf"):
            raise CompressError(
                f"The 'strength' parameter of {type(self).__name__} must be a finite number of at least 0. "
                f"Got {self.strength!r}."
            )

    def settings(self) -> dict[str, Any]:
        return {entry.name: getattr(self, entry.name) for entry in fields(self) if entry.init}

    def attach(self, model: nn.Module, step: int, total_steps: int) -> None:
        self._last_step = total_steps

    def after_step(self, model: nn.Module, step: int) -> None:
        """Nothing to do."""

    def settled(self, step: int) -> bool:
        return step >= self._last_step


@dataclass
class WeightPenalty(Penalty):
    """A penalty on the weights of conv and linear layers, biases left out.

    Attributes:
        layers: names of the layers; None for all.
    """

    layers: Sequence[str] | None = None

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.layers is None:
            return
        if not (isinstance(self.layers, (list, tuple)) and self.layers and all(type(n) is str for n in self.layers)):
            raise CompressError(
                f"The 'layers' parameter of {type(self).__name__} must be None or a list of layer names. "
                f"Got {self.layers!r}."
            )
        self.layers = tuple(self.layers)

    def attach(self, model: nn.Module, step: int, total_steps: int) -> None:
        """Raises CompressError for a layer that the model does not have."""
        super().attach(model, step, total_steps)
        layer_weights(model, self.layers)
