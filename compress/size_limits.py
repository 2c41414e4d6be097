"""Sizes of inputs for which a traced graph answers as its model does, and the refusal of all others."""

import operator
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, fx, nn
from torch.utils import _pytree as pytree

from compress.errors import CompressError
from compress.normal_form import ATEN

# From here on a size is as good as free: torch.export writes infinity so.
_ENDLESS = 2**31
# A batch of one and of none are cases of their own for torch.export, which never takes them for a limit.
_FREE_LEAST = 2
_CLOSE = {"rtol": 1e-3, "atol": 1e-4}


@dataclass(frozen=True)
class SizeLimit:
    """What one size of one input may be.

    Attributes:
        position: of the input among all that the graph takes.
        dim: which of its dimensions.
        least, most: bounds; None for none.
    """

    position: int
    dim: int
    least: int | None
    most: int | None

    def __str__(self) -> str:
        if self.least == self.most:
            return f"of {self.least} alone"
        bounds = [f"of at least {self.least}"] if self.least is not None else []
        return " and ".join([*bounds, *([f"of at most {self.most}"] if self.most is not None else [])])


def exported_limits(program: torch.export.ExportedProgram, module: fx.GraphModule) -> list[SizeLimit]:
    """Limits of sizes that were left free: a forward that branches on one was captured on one side of the branch."""
    found = []
    for position, node in enumerate(n for n in module.graph.nodes if n.op == "placeholder"):
        value = node.meta.get("val")
        for dim, size in enumerate(value.shape if isinstance(value, Tensor) else ()):
            own = program.range_constraints.get(size.node.expr) if isinstance(size, torch.SymInt) else None
            if own is None:
                continue
            least, most = (int(bound) if bound < _ENDLESS else None for bound in (own.lower, own.upper))
            least = None if least is None or least <= _FREE_LEAST else least
            if (least, most) != (None, None):
                found.append(SizeLimit(position, dim, least, most))
    return found


def tried_limits(
    model: nn.Module, module: fx.GraphModule, args: tuple[Any, ...], kwargs: dict[str, Any], inputs: Sequence[Any],
    batch: int | None,
) -> list[SizeLimit]:  # fmt: skip
    """Limits of sizes with which the graph runs and answers otherwise than the model.

    A size that a forward makes a number of (a mean as a sum over a length) is in the graph as it was traced. A batch of
    one is tried, and twice each other size of each input of floats.

    Args:
        model, module: the model and what was traced of it, both in evaluation mode.
        args, kwargs: what it was traced with.
        inputs: the same in the order in which the graph takes them.
        batch: the only one that the graph takes, None if it is free.
    """
    given, spec = pytree.tree_flatten((args, kwargs))
    # Examples of zeros are made the same of by almost anything.
    random = torch.Generator().manual_seed(0)
    leaves = [leaf + torch.randn(leaf.shape, generator=random).to(leaf) if _is_float(leaf) else leaf for leaf in given]
    tensors = [i for i, leaf in enumerate(leaves) if isinstance(leaf, Tensor) and leaf.dim()]
    # A model that answers by chance is no measure.
    if not tensors or _disagree(model, module, leaves, spec):
        return []
    position = {i: next(k for k, value in enumerate(inputs) if value is given[i]) for i in tensors}
    found = []
    size = leaves[tensors[0]].shape[0]
    if batch is None and size > 1:
        single = [leaf[:1] if i in position and leaf.shape[0] == size else leaf for i, leaf in enumerate(leaves)]
        if _disagree(model, module, single, spec):
            found.append(SizeLimit(position[tensors[0]], 0, _FREE_LEAST, None))
    floats = [i for i in tensors if _is_float(leaves[i])]
    for i, dim in [(index, axis) for index in floats for axis in range(1, leaves[index].dim())]:
        own = leaves[i].shape[dim]
        twice = leaves[i].repeat([1 + (k == dim) for k in range(leaves[i].dim())])
        if _disagree(model, module, [*leaves[:i], twice, *leaves[i + 1 :]], spec):
            found.append(SizeLimit(position[i], dim, own, own))
    return found


def refuse_other_sizes(module: fx.GraphModule, limits: Sequence[SizeLimit]) -> None:
    """The graph says so wherever it is copied to."""
    graph = module.graph
    inputs = [node for node in graph.nodes if node.op == "placeholder"]
    last = inputs[-1]

    def add(target: Any, *args: Any) -> fx.Node:
        nonlocal last
        with graph.inserting_after(last):
            last = graph.call_function(target, args)
        return last

    for limit in limits:
        node = inputs[limit.position]
        size = add(ATEN.sym_size.int, node, limit.dim)
        which = "first dimension" if limit.dim == 0 else f"size in dimension {limit.dim} of {node.name}"
        message = f"This model takes a {which} {limit}: its forward makes a number of that size, or branches on it."
        tests = [(operator.ge, limit.least), (operator.le, limit.most)]
        for test, bound in [(operator.eq, limit.least)] if limit.least == limit.most else tests:
            if bound is not None:
                add(torch._assert, add(test, size, bound), message)


def _is_float(leaf: Any) -> bool:
    return isinstance(leaf, Tensor) and leaf.is_floating_point()


def _disagree(model: nn.Module, module: fx.GraphModule, leaves: list[Any], spec: pytree.TreeSpec) -> bool:
    """Whether the graph answers what the model does not."""
    inputs = pytree.tree_unflatten(leaves, spec)
    ours, theirs = _answers(module, *inputs), _answers(model, *inputs)
    if ours is None or theirs is None:
        return ours is not None
    return len(ours) != len(theirs) or any(
        a.shape != b.shape or not torch.allclose(a.double(), b.double(), equal_nan=True, **_CLOSE)
        for a, b in zip(ours, theirs, strict=True)
    )


def _answers(model: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> list[Tensor] | None:
    """The outputs; None where it does not run."""
    try:
        with torch.no_grad():
            return [leaf for leaf in pytree.tree_leaves(model(*args, **kwargs)) if isinstance(leaf, Tensor)]
    except (CompressError, RuntimeError, ValueError, TypeError, LookupError, AssertionError, AttributeError):
        return None
