"""A distillation at work between two models: which of their layers are compared, and what is trained beside them."""

from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor, nn

from compress.distillation import Distillation, Pairs, Said
from compress.errors import CompressError, suggestion
from compress.layer_values import LayerValues, ValuePoint, value_points


class Distiller:
    """Asks a student and its teacher the same and compares what they say.

    Args:
        distillation: what is compared.
        student: the model that is trained.
        teacher: the dense model. A wrapper that may answer from memory names the model it asks by `source_model`: that
            one runs where values of layers are compared.
        inputs: of a first batch, on which the layers are found.
        seed: of the first weights of the regressors.

    Attributes:
        student, teacher: called with inputs, they give what `loss` compares; the first item is the model's outputs.
        pairs: the compared layers.
        regressors: trained beside the student, on the devices of its values.

    Raises:
        CompressError: for a layer that does not exist, or that cannot be compared.
    """

    def __init__(
        self, distillation: Distillation, student: nn.Module, teacher: nn.Module, inputs: tuple[Any, ...], seed: int
    ) -> None:
        self.distillation = distillation
        self.pairs: Pairs = ()
        self.regressors = nn.ModuleList()
        self.student, self.teacher = LayerValues(student, {}), LayerValues(teacher, {})
        if distillation.reads != "outputs":
            self._meet(student, getattr(teacher, "source_model", teacher), inputs, seed)

    def _meet(self, student: nn.Module, teacher: nn.Module, inputs: tuple[Any, ...], seed: int) -> None:
        """Choose the layers, and make the regressors from their values."""
        points = value_points(student, inputs), value_points(teacher, inputs)
        maps = self.distillation.reads == "maps"
        self.pairs = self.distillation.pairs or common_pairs(*points, maps)
        for side, found in enumerate(points):
            for name in dict.fromkeys(pair[side] for pair in self.pairs):
                _check_point(name, found, ("student", "teacher")[side], maps)
        dims = [{pair[side]: found[pair[side]].channel_dim for pair in self.pairs} for side, found in enumerate(points)]
        self.student, self.teacher = LayerValues(student, dims[0]), LayerValues(teacher, dims[1])
        first = [
            Said(None, tuple(_blank(found[pair[side]]) for pair in self.pairs)) for side, found in enumerate(points)
        ]
        with torch.random.fork_rng():
            torch.manual_seed(seed)
            self.regressors = self.distillation.regressors(*first)
        weight = next(student.parameters())
        self.regressors.to(device=weight.device, dtype=weight.dtype)

    def loss(self, student: tuple[Any, Mapping[str, Tensor]], teacher: tuple[Any, Mapping[str, Tensor]]) -> Tensor:
        """The distillation's loss of one batch, from what the attributes `student` and `teacher` gave."""
        said = [
            Said(outputs, tuple(values[pair[side]] for pair in self.pairs))
            for side, (outputs, values) in enumerate((student, teacher))
        ]
        return self.distillation.loss(*said, self.regressors)


def common_pairs(student: Mapping[str, ValuePoint], teacher: Mapping[str, ValuePoint], maps: bool = False) -> Pairs:
    """Layers that both have: the last before each change of the student's positions, or all layers if none changes.

    The outputs themselves are left out.

    Args:
        maps: only values with positions.

    Raises:
        CompressError: if there are none.
    """
    both = [
        name
        for name, point in student.items()
        if name in teacher and len(teacher[name].shape) == len(point.shape) and not point.is_output
        if not maps or point.positions
    ]
    last = {student[name].positions: name for name in both}
    chosen = list(last.values()) if len(last) > 1 else [name for name in both if student[name].is_layer]
    if not chosen:
        raise CompressError(
            f"The student and the teacher have no layer in common that could be compared. Give 'pairs' of names, such "
            f"as {next(reversed(student), None)!r} of the student and {next(reversed(teacher), None)!r} of the teacher."
        )
    return tuple((name, name) for name in chosen)


def _check_point(name: str, points: Mapping[str, ValuePoint], who: str, maps: bool) -> None:
    if name not in points:
        raise CompressError(
            f"The 'pairs' parameter names {name!r}, which is no layer of the {who} that gives a tensor of values, "
            f"batch first. {suggestion(name, points)}"
        )
    if maps and not points[name].positions:
        raise CompressError(
            f"Layer {name!r} of the {who} has no positions to attend to: its values have shape {points[name].shape}. "
            f"Choose a layer before the pooling."
        )


def _blank(point: ValuePoint) -> Tensor:
    """A value of this shape, channels second; only the shape tells."""
    return torch.empty(point.shape, device="meta").movedim(point.channel_dim, 1)
