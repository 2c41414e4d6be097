"""Least-squares refit: the weights of a small model solved so that its layers give what the dense model's gave."""

import logging
import math
from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import torch
from torch import Tensor, fx

from compress.attributes import only_user, parameter_uses, value_of
from compress.errors import CompressError
from compress.graph import ATEN, Layer, argument, is_parameter, layers_of
from compress.layer_repair import LayerRepair, Rows
from compress.least_squares import Change, solve_change
from compress.lockstep import Lockstep, first_parts
from compress.patches import LinearMap, linear_map
from compress.shared_refit import refit_shared_, shared_layers
from compress.structure import Structure

_log = logging.getLogger(__name__)
LAYER_CHOICES = ("consumers", "changed")
_PASSED = (ATEN.dropout.default, ATEN.feature_dropout.default, ATEN.alpha_dropout.default)
_ADDS = (ATEN.add.Tensor, ATEN.add_.Tensor)
_RELUS = (ATEN.relu.default, ATEN.relu_.default)
_CLAMPS = (ATEN.hardtanh.default, ATEN.hardtanh_.default)
_RELU6 = (ATEN.relu6.default, ATEN.relu6_.default)
_NEGLIGIBLE_SCALE = 1e-4


@dataclass(frozen=True, eq=False)
class Place:
    """One layer of the small graph and the node where its error is looked at.

    Attributes:
        layer: the layer.
        map: how it multiplies its weight.
        at: the node: the layer itself, the batch norm behind it, or the addition behind that.
        norm: the batch norm between the layer and `at`, or None.
        shift: name of the parameter that adds a constant to each output channel, or None.
        limits: between which the values of `at` matter afterwards (ReLU), or None.
    """

    layer: Layer
    map: LinearMap
    at: fx.Node
    norm: fx.Node | None
    shift: str | None
    limits: tuple[float, float] | None


def refit_(
    small: fx.GraphModule,
    structure: Structure,
    removed: np.ndarray,
    batches: Sequence[tuple[Any, ...]],
    *,
    layers: str = "changed",
    through_sums: bool = True,
    relu_steps: int = 4,
    ridge: float | None = None,
    max_rows: int = 100_000,
    seed: int = 0,
) -> list[LayerRepair]:
    """Refit the layers of `small`, in place, so that they reproduce the dense model's values on unlabelled inputs.

    In execution order, each layer is solved for its weight (and bias, or the shift of its batch norm) from the inputs
    that it gets in the small model *after* the refits before it, so that errors do not pile up. The weight's change
    is penalised, not the weight. (Consumers only, without sums and limits, is the reconstruction of He et al. 2017,
    "Channel pruning for accelerating very deep neural networks".)

    Args:
        small: sliced from `structure`, and perhaps divided: of two layers in the place of one the second is refitted.
            Batch-norm statistics stay as they are.
        structure: the dense model.
        removed: `(n_units,)` bool, the units that `small` lacks.
        batches: flat inputs of the forward, for each batch. Values of all of them are in memory together.
        layers: `"changed"`: every layer whose inputs differ from the dense model's; `"consumers"`: those only that
            read a removed channel themselves, and the second of two layers in the place of one.
        through_sums: a layer that is added to a residual stream is fitted to the dense sum, and so corrects what the
            stream got wrong before.
        relu_steps: solves of a layer in front of a ReLU, whose negative values need not agree; 0 ignores the ReLU.
        ridge: penalty relative to the mean square of the layer's inputs; None for the one that cross-validation chooses
            for each layer, see `solve_change`.
        max_rows: rows (examples x positions) of each least-squares problem; positions are drawn at random above it.
        seed: of that drawing.

    Returns:
        Errors of every layer refitted: those used once in execution order, then those used several times, each of which
        is solved for all its uses together. Transposed convs and embeddings are left as they are.
    """
    if layers not in LAYER_CHOICES:
        raise CompressError(f"The 'layers' parameter of a refit must be one of {LAYER_CHOICES}. Got {layers!r}.")
    generator = torch.Generator().manual_seed(seed)
    wanted = readers(small, structure, removed) if layers == "consumers" else changed_values(small, structure, removed)
    places = find_places(small, wanted, through_sums)
    groups, others = shared_layers(small, wanted)
    if others:
        _log.warning("The refit leaves layers alone whose weights are read in other ways too: %s.", ", ".join(others))

    def once() -> list[LayerRepair]:
        run = Lockstep(structure, removed, small, batches)
        return _refit_places(run, places, relu_steps, ridge, max_rows, generator)

    repairs = once()
    if groups:
        options = {"ridge": ridge, "max_rows": max_rows, "generator": generator}
        repairs += [refit_shared_(small, structure, removed, batches, group, **options) for group in groups]
        # What comes after them was fitted to what they gave before.
        repairs = _joined(repairs, once())
    return repairs


def _joined(first: list[LayerRepair], second: list[LayerRepair]) -> list[LayerRepair]:
    """Every layer once, from its error before all repairs to that after the last."""
    last = {repair.layer: repair for repair in second}
    return [replace(last.get(repair.layer, repair), error_before=repair.error_before) for repair in first]


def _refit_places(
    run: Lockstep, places: Sequence[Place], relu_steps: int, ridge: float | None, max_rows: int,
    generator: torch.Generator,
) -> list[LayerRepair]:  # fmt: skip
    """One walk through both models, on which each layer is solved when the place of its error is reached."""
    at: dict[str, list[Place]] = {}
    for place in places:
        at.setdefault(place.at.name, []).append(place)
    own = {place.layer.node.name: place for place in places}
    inputs: dict[str, list[Tensor]] = {}
    outputs: dict[str, list[torch.Size]] = {}
    repairs = []
    with torch.no_grad():
        for node in run.nodes():
            place = own.get(node.name)
            if place is not None:
                copied = _overwritten(place)
                found = [values[node.args[0].name] for values in run.small.values]
                inputs[node.name] = [x.clone() for x in found] if copied else found
                outputs[node.name] = [values[node.name].shape for values in run.small.values]
            for place in at.get(node.name, ()):
                name = place.layer.node.name
                rows = Rows(place.map, inputs.pop(name), outputs.pop(name), max_rows, generator)
                change = _solve(run, place, rows, relu_steps, ridge)
                _apply(run, place, change, rows.inputs)
                repairs.append(LayerRepair(place.layer.name, change.error_before, change.error_after, change.ridge))
    return repairs


def find_places(small: fx.GraphModule, wanted: set[str], through_sums: bool) -> list[Place]:
    """The layers to refit that are used once, and where; `wanted` holds the names of their nodes."""
    uses, found = parameter_uses(small), []
    for layer in layers_of(small):
        weight = value_of(small, layer.weight)
        how = linear_map(layer.node, weight)
        if how is not None and layer.node.name in wanted and uses[id(weight)] == 1:
            found.append(locate(small, layer, how, through_sums, uses))
    return found


def locate(small: fx.GraphModule, layer: Layer, how: LinearMap, through_sums: bool, uses: dict[int, int]) -> Place:
    """Where the error of this layer is looked at: as far behind it as it still acts linearly, channel by channel."""
    at, norm = layer.node, None
    while (user := only_user(at)) is not None:
        if user.target is ATEN.batch_norm.default and norm is None and user.args[3] is not None and user.args[0] is at:
            at = norm = user
        elif user.target in _PASSED:
            at = user
        else:
            if through_sums and _is_stream(user):
                at = user
            break
    # A constant can be added in one place: the batch norm's shift where there is one.
    shift = (
        norm.args[2].target if norm is not None and is_parameter(norm.args[2]) else layer.bias if norm is None else None
    )
    if shift is not None and uses[id(value_of(small, shift))] > 1:
        shift = None
    return Place(layer, how, at, norm, shift, _limits(at))


def readers(small: fx.GraphModule, structure: Structure, removed: np.ndarray) -> set[str]:
    """Names of the nodes that sum or normalise over a removed unit, or are the second of two in the place of one."""
    found = {site.node.name for site in structure.sites if removed[site.rows[site.rows >= 0]].any()}
    first = first_parts(small, structure)
    return found | {only_user(node).name for node in small.graph.nodes if node.name in first}


def changed_values(small: fx.GraphModule, structure: Structure, removed: np.ndarray) -> set[str]:
    """Names of the nodes whose remaining values differ from the dense model's."""
    changed = readers(small, structure, removed)
    for node in small.graph.nodes:
        if any(source.name in changed for source in node.all_input_nodes):
            changed.add(node.name)
    # Which the dense model does not have.
    return changed - first_parts(small, structure)


def _is_stream(node: fx.Node) -> bool:
    """Whether `node` adds two computed values."""
    if node.target not in _ADDS or node.kwargs:
        return False
    both = all(isinstance(a, fx.Node) and a.op != "get_attr" for a in node.args)
    return both and node.args[0] is not node.args[1]


def _limits(at: fx.Node) -> tuple[float, float] | None:
    """What all users of `at` clip it to."""
    found = set()
    for user in at.users:
        if user.target in _RELUS:
            found.add((0.0, math.inf))
        elif user.target in _RELU6:
            found.add((0.0, 6.0))
        elif user.target in _CLAMPS:
            found.add((float(argument(user, 1, "min_val", -1.0)), float(argument(user, 2, "max_val", 1.0))))
        else:
            return None
    return found.pop() if len(found) == 1 else None


def _overwritten(place: Place) -> bool:
    """Whether the layer's input might be written over between the layer and the place."""
    node = place.layer.node
    while node is not place.at:
        node = node.next
        if node.op == "call_function" and getattr(getattr(node.target, "_schema", None), "is_mutable", False):
            return True
    return False


def _solve(run: Lockstep, place: Place, rows: Rows, relu_steps: int, ridge: float | None) -> Change:
    name = place.at.name
    return solve_change(
        rows.of_inputs(),
        rows.of_outputs(values[name] for values in run.small.values),
        rows.of_outputs(run.target(name, number) for number in range(len(run.small.values))),
        ridge=ridge,
        offset=place.shift is not None,
        limits=place.limits if relu_steps else None,
        steps=relu_steps,
        second_half=rows.second_half(),
    )


def _apply(run: Lockstep, place: Place, change: Change, inputs: list[Tensor]) -> None:
    """Add the change to the parameters, and to the values of this node that were computed without it."""
    module, how = run.small.module, place.map
    weight = value_of(module, place.layer.weight)
    matrix = change.matrix
    if place.norm is not None:
        scale = norm_scale(module, place.norm).reshape(how.groups, 1, -1)
        usable = scale.abs() > _NEGLIGIBLE_SCALE * scale.abs().max()
        matrix = torch.where(usable, matrix, 0)
        weight += how.weight(matrix / torch.where(usable, scale, 1), weight.shape).to(weight.dtype)
    else:
        weight += how.weight(matrix, weight.shape).to(weight.dtype)
    offset = change.offset.reshape(-1).to(weight.dtype)
    if place.shift is not None:
        shift = value_of(module, place.shift)
        shift += offset.to(shift.dtype)
    node, kernel = place.layer.node, how.weight(matrix, weight.shape).to(weight.dtype)
    rest = list(node.args[3:])
    for values, x in zip(run.small.values, inputs, strict=True):
        values[place.at.name] = values[place.at.name] + node.target(
            x, kernel, offset, *rest, **_without_bias(node.kwargs)
        )


def _without_bias(kwargs: dict[str, Any]) -> dict[str, Any]:
    return {name: value for name, value in kwargs.items() if name != "bias"}


def norm_scale(module: fx.GraphModule, norm: fx.Node) -> Tensor:
    """`(channels,)` float64: what a batch norm in evaluation mode multiplies each channel with."""
    _, weight, _, _, variance, _, _, eps, *_ = norm.args
    scale = torch.rsqrt(value_of(module, variance.target).double() + eps)
    return scale if weight is None else scale * value_of(module, weight.target).double()
