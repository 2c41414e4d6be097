"""Group lasso: norms of output channels, which drives whole channels to zero."""

from collections.abc import Iterator
from dataclasses import dataclass
from functools import cached_property
from typing import Any, ClassVar

import numpy as np
import torch
from torch import Tensor, nn

from compress.attributes import value_of
from compress.errors import CompressError
from compress.layer_weights import layer_weights
from compress.penalty import WeightPenalty
from compress.structure import FIXED, Structure

_KINDS = ("channel", "unit")


@dataclass
class GroupLassoPenalty(WeightPenalty):
    """`strength` times the sum over groups of `sqrt(number of weights) * Euclidean norm of the weights`.

    Yuan, Lin 2006, "Model Selection and Estimation in Regression with Grouped Variables" (J. R. Stat. Soc. B 68); of
    networks: Wen, Wu, Wang, Chen, Li 2016, "Learning Structured Sparsity in Deep Neural Networks" (NIPS,
    arXiv:1608.03665). A group is an output channel of a layer; or, per unit, all that makes a removable unit, in every
    layer of the coupled group.

    Attributes:
        strength: nats per unit of the weighted norm, at least 0.
        layers: names of the layers; None for all. The outputs of the last layer, which cannot be removed, count too
            unless they are left out.
        per: `"channel"` or `"unit"`; of units `layers` must be None.
        structure: of the trained model (`analyze`), whose units are the groups; needed per unit, and only there. Runs
            of an experiment give it themselves, see `of_structure`.
    """

    name: ClassVar[str] = "group_lasso"

    per: str = "channel"
    structure: Structure | None = None

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.per not in _KINDS:
            raise CompressError(f"The 'per' parameter of GroupLassoPenalty must be one of {_KINDS}. Got {self.per!r}.")
        if self.per == "unit" and self.layers is not None:
            raise CompressError("The 'layers' parameter of GroupLassoPenalty must be None where 'per' is 'unit'.")
        if self.per == "channel" and self.structure is not None:
            raise CompressError("The 'structure' parameter of GroupLassoPenalty needs per='unit'.")

    @property
    def needs_structure(self) -> bool:
        """Whether it cannot be attached before `of_structure`."""
        return self.per == "unit" and self.structure is None

    def of_structure(self, structure: Structure) -> "GroupLassoPenalty":
        """The same, per unit of this structure."""
        return GroupLassoPenalty(self.strength, None, "unit", structure)

    def settings(self) -> dict[str, Any]:
        units = None if self.structure is None else self.structure.units.fingerprint
        return {**super().settings(), "structure": units}

    def attach(self, model: nn.Module, step: int, total_steps: int) -> None:
        """Raises CompressError for an unknown layer, without a structure of units, or for that of another model."""
        if self.needs_structure:
            raise CompressError("GroupLassoPenalty(per='unit') needs structure=analyze(model, inputs).")
        super().attach(model, step, total_steps)
        shapes = {name: tuple(value.shape) for name, value in model.named_parameters(remove_duplicate=False)}
        for name, dim, rows in self._places:
            if shapes.get(name, ())[dim : dim + 1] != (len(rows),):
                raise CompressError(
                    f"The 'structure' parameter of GroupLassoPenalty belongs to another model: {name!r} has shape "
                    f"{shapes.get(name)} here. Analyze the model that is trained."
                )

    def penalty(self, model: nn.Module) -> Tensor | None:
        norms = [n for n in (self._units(model) if self.per == "unit" else self._channels(model)) if len(n)]
        return self.strength * torch.cat(norms).sum() if norms else None

    def _channels(self, model: nn.Module) -> Iterator[Tensor]:
        for weight in layer_weights(model, self.layers):
            rows = weight.rows(model)
            yield _norm(rows.square().sum(1, dtype=torch.float64), torch.tensor(rows.shape[1]))

    def _units(self, model: nn.Module) -> Iterator[Tensor]:
        squares, counts = 0.0, 0.0
        for name, dim, rows in self._places:
            values = value_of(model, name).movedim(dim, 0).flatten(1)
            index = torch.as_tensor(np.flatnonzero(rows != FIXED), device=values.device)
            unit = torch.as_tensor(rows[rows != FIXED], device=values.device)
            zeros = torch.zeros(self.structure.n_removable, dtype=torch.float64, device=values.device)
            squares = squares + zeros.index_add(0, unit, values[index].square().sum(1, dtype=torch.float64))
            counts = counts + zeros.index_add(0, unit, torch.full_like(zeros[unit], values.shape[1]))
        if self._places:
            yield _norm(squares, counts)

    @cached_property
    def _places(self) -> tuple[tuple[str, int, np.ndarray], ...]:
        """(parameter, dimension, unit row of each index) of all that makes units."""
        if self.structure is None:
            return ()
        places = dict.fromkeys((producer.parameter, producer.dim) for producer in self.structure.producers)
        found = ((name, dim, self.structure.parameters[name][dim]) for name, dim in places)
        return tuple(place for place in found if (place[2] != FIXED).any())


def _norm(squares: Tensor, counts: Tensor) -> Tensor:
    """sqrt(count x square) of each group; a group of zeros has no gradient."""
    alive = squares > 0
    return torch.where(alive, (torch.where(alive, squares, 1.0) * counts).sqrt(), 0.0)
