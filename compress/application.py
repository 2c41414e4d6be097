"""From a plan to a model: simulate it with masks, or apply it by slicing the traced graph."""

import contextlib
from typing import Any

import numpy as np
import torch
from torch import Tensor, fx, nn
from torch.utils import _pytree as pytree

from compress.attributes import copy_traced
from compress.dimensions import Value
from compress.errors import PlanError
from compress.gates import gated_module, gates_of
from compress.graph import flat_inputs, is_parameter, place
from compress.plan import CompressionPlan
from compress.rewriting import Kept, rewrite
from compress.structure import Structure, analyze

TOLERANCE = {torch.float64: 1e-9, torch.float32: 1e-5}


def simulate_plan(model: nn.Module | Structure, plan: CompressionPlan, example_inputs: Any = None) -> fx.GraphModule:
    """The model in its own shapes with the removed units silenced, as if they were absent. Parameters are shared.

    Raises:
        PlanError: if the plan is for another architecture, or empties a group.
    """
    structure = analyze(model, example_inputs)
    removed = plan.removed_mask(structure.units)[: structure.n_removable]
    parameter = next(structure.traced.module.parameters(), torch.zeros(()))
    return gated_module(structure, gates_of(removed, parameter.detach()))


def apply_plan(model: nn.Module | Structure, plan: CompressionPlan, example_inputs: Any = None) -> fx.GraphModule:
    """A new, physically smaller model; the original stays as it is.

    The result is a `GraphModule` with the original's parameter names: it trains, follows `train()` and `eval()`, saves
    and exports. Sizes that the original's `forward` had hard-coded are rewritten. Formats of the plan are not applied.
    The plan is noted in `meta["plan"]`, where `recover_` finds it.

    Args:
        model: the dense model, or its structure.
        plan: which units go.
        example_inputs: inputs of the forward; masked and sliced model are compared on them.

    Raises:
        PlanError: if the plan does not fit, or if the sliced model does not agree with the masked one to 1e-5 of the
            output's scale in float32 (1e-9 in float64); the first operation that differs is named.
    """
    structure = analyze(model, example_inputs)
    removed = plan.removed_mask(structure.units)
    small = slice_model(structure, removed)
    check_equal(structure, removed, small)
    small.meta["plan"] = plan
    return small


def slice_model(structure: Structure, removed: np.ndarray) -> fx.GraphModule:
    """The model without the units where `removed` (`(n_units,)` bool) is True."""
    source = structure.traced.module
    small = fx.GraphModule(source, copy_traced(structure.traced.graph))
    owned: dict[int, Tensor] = {}
    named = [*source.named_parameters(remove_duplicate=False), *source.named_buffers(remove_duplicate=False)]
    constants = [(n.target, n) for n in source.graph.nodes if is_parameter(n)]
    known = {name for name, _ in named}
    for target, _ in constants:
        if target not in known and isinstance(pick(source, target), Tensor):
            named.append((target, pick(source, target)))
    for name, value in named:
        if id(value) not in owned:
            owned[id(value)] = _sliced(value, structure.parameters.get(name), removed)
        owner, _, leaf = name.rpartition(".")
        holder = source.get_submodule(owner)
        persistent = leaf in holder._buffers and leaf not in holder._non_persistent_buffers_set
        place(small, name, owned[id(value)], persistent)
    kept = Kept(structure, removed)
    for node in list(small.graph.nodes):
        node.meta.pop("val", None)
        if node.op == "call_function":
            rewrite(node, kept)
    small.graph.lint()
    small.recompile()
    small.train(source.training)
    return small


def pick(module: nn.Module, name: str) -> Any:
    """The parameter, buffer or constant of this qualified name."""
    owner, _, leaf = name.rpartition(".")
    return getattr(module.get_submodule(owner), leaf)


def _sliced(value: Tensor, rows: tuple[np.ndarray, ...] | None, removed: np.ndarray) -> Tensor:
    """A copy of a parameter or buffer without the removed indices of each dimension."""
    data = value.detach().clone()
    last = np.append(removed, False)  # what the row -1 of a fixed index picks
    for dim, units in enumerate(rows or ()):
        gone = last[units]
        if gone.any():
            data = data.index_select(dim, torch.from_numpy(np.flatnonzero(~gone)).to(data.device))
    return nn.Parameter(data, requires_grad=value.requires_grad) if isinstance(value, nn.Parameter) else data


def check_equal(structure: Structure, removed: np.ndarray, small: fx.GraphModule) -> float:
    """The largest difference of masked and sliced outputs, relative to the output's scale, on the example inputs.

    Raises:
        PlanError: if it is above the tolerance, naming the first operation that differs.
    """
    masked = gated_module(structure, gates_of(removed[: structure.n_removable], _like(structure)))
    error, dtype = _difference(structure, masked, small)
    if error <= TOLERANCE.get(dtype, 1e-2):
        return error
    if dtype == torch.float32:
        # Rounding may pile up in a deep float32 model: the same comparison in float64 tells rounding from mistakes.
        with contextlib.suppress(PlanError):  # a constant of the graph may not follow the cast
            doubles = copy_traced(masked).double(), copy_traced(small).double()
            if _difference(structure, *doubles, torch.float64)[0] <= TOLERANCE[torch.float64]:
                return error
    place = _first_difference(structure, removed, masked, small)
    raise PlanError(
        f"The sliced model differs from the masked one by {error:.1e} of the output's scale, first at {place}. The "
        f"plan was not applied; pin the groups that meet there, and please report the model."
    )


def _like(structure: Structure) -> Tensor:
    return next(structure.traced.module.parameters(), torch.zeros(())).detach()


def _inputs(structure: Structure, dtype: torch.dtype | None) -> tuple[tuple, dict]:
    def cast(leaf: Any) -> Any:
        return leaf.to(dtype) if dtype and isinstance(leaf, Tensor) and leaf.is_floating_point() else leaf

    return pytree.tree_map(cast, (structure.traced.args, structure.traced.kwargs))


def _difference(
    structure: Structure, masked: nn.Module, small: nn.Module, dtype: torch.dtype | None = None
) -> tuple[float, torch.dtype]:
    args, kwargs = _inputs(structure, dtype)
    worst, found = 0.0, torch.float32
    modes = masked.training, small.training
    masked.eval()
    small.eval()
    try:
        with torch.no_grad(), torch.random.fork_rng(devices=range(torch.cuda.device_count())):
            try:
                outputs = []
                for module in (masked, small):
                    torch.manual_seed(0)  # a forward may draw random numbers
                    outputs.append(pytree.tree_leaves(module(*args, **kwargs)))
                pairs = zip(*outputs, strict=True)
            except RuntimeError as error:
                place = _failing_node(small, args, kwargs)
                raise PlanError(f"The sliced model does not run: {place}: {str(error).splitlines()[0]}") from error
            for a, b in pairs:
                if not isinstance(a, Tensor):
                    continue
                if a.shape != b.shape:
                    raise PlanError(
                        f"The sliced model returns shape {tuple(b.shape)}, the masked one {tuple(a.shape)}."
                    )
                found = a.dtype if a.is_floating_point() else found
                scale = a.double().abs().max().item() or 1.0
                gap = (a.double() - b.double()).abs().max().item() / scale
                worst = max(worst, gap if np.isfinite(gap) else float("inf"))
    finally:
        masked.train(modes[0])
        small.train(modes[1])
    return worst, found


class _Recorder(fx.Interpreter):
    def __init__(self, module: fx.GraphModule) -> None:
        super().__init__(module, garbage_collect_values=False)
        self.last = ""

    def run_node(self, node: fx.Node) -> Any:
        self.last = f"{node.name} ({node.target})"
        return super().run_node(node)


def _failing_node(module: fx.GraphModule, args: tuple, kwargs: dict) -> str:
    recorder = _Recorder(module)
    try:
        recorder.run(*flat_inputs(module, args, kwargs), enable_io_processing=False)
    except RuntimeError:
        return recorder.last
    return recorder.last


def _first_difference(structure: Structure, removed: np.ndarray, masked: fx.GraphModule, small: fx.GraphModule) -> str:
    """Name of the first node whose sliced value is not the masked value without the removed indices."""
    args, kwargs = structure.traced.args, structure.traced.kwargs
    recorders = []
    with torch.no_grad():
        for module in (masked, small):
            module.eval()
            recorder = _Recorder(module)
            recorder.run(*flat_inputs(module, args, kwargs), enable_io_processing=False)
            recorders.append({node.name: value for node, value in recorder.env.items()})
    for node in small.graph.nodes:
        value = structure.values.get(node.name)
        a, b = (found.get(node.name) for found in recorders)
        if not (isinstance(value, Value) and isinstance(a, Tensor) and isinstance(b, Tensor)):
            continue
        for dim, rows in enumerate(value.labels):
            if rows is not None and a.shape[dim] == len(rows):
                keep = np.flatnonzero((rows < 0) | ~removed[rows])
                a = a.index_select(dim, torch.from_numpy(keep).to(a.device))
        if a.shape != b.shape or not torch.allclose(a.double(), b.double(), rtol=1e-3, atol=1e-4, equal_nan=True):
            return f"'{node.name}' ({node.target})"
    return "the output"
