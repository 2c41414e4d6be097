"""Capturing a model's forward as a graph of ATen operations, and saying where that is impossible."""

import contextlib
import inspect
import io
import logging
import traceback
import warnings
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, fx, nn
from torch.export import Dim
from torch.utils import _pytree as pytree

from compress.errors import TraceError, first_line
from compress.size_limits import SizeLimit, exported_limits

# What a forward, or the capture of it, may raise: everything but errors of this process (memory, interrupts).
FAILURES = (RuntimeError, ValueError, TypeError, AttributeError, LookupError, AssertionError, ArithmeticError)
_TORCH = str(Path(torch.__file__).parent)


def capture(model: nn.Module, args: tuple, kwargs: dict) -> tuple[fx.GraphModule, tuple, dict, list[SizeLimit]]:
    """The exported module of a model in evaluation mode, the inputs it was traced with, and limits of their sizes.

    The batch is left free if that is possible, else it is fixed. A batch of one is repeated where it is free.

    Raises:
        TraceError: if the model does not run on these inputs, or cannot be captured, with the place in its source; if
            torch.fx keeps the name of one of its parts for itself.
    """
    _check_names(model)
    _check_runs(model, args, kwargs)
    doubled = pytree.tree_map(at_least_two, (args, kwargs))
    failure: Exception | None = None
    for (some_args, some_kwargs), free in ((doubled, True), ((args, kwargs), False)):
        try:
            shapes = _sizes_by_name(model, some_args, some_kwargs) if free else None
            with _quiet(), _masks_as_given():
                program = torch.export.export(model, some_args, some_kwargs, dynamic_shapes=shapes, strict=False)
            module = program.module(check_guards=False)
            if not free or fixed_batch(module) is None or not _grew(args, kwargs, some_args, some_kwargs):
                return module, some_args, some_kwargs, exported_limits(program, module)
        except FAILURES as error:
            failure = error
    raise TraceError(
        f"{type(model).__name__} could not be traced by torch.export{_place(failure)}: {first_line(failure)} Rewrite "
        f"that line so that it does not depend on the values of tensors."
    ) from failure


def fixed_batch(module: fx.GraphModule) -> int | None:
    """The only batch that a captured module can take, or None if its batch is free or it has no inputs.

    torch.export fixes a size without a word where the forward makes a number of it: a loop over the examples,
    `int(x.shape[0] / 2)`.
    """
    values = [node.meta.get("val") for node in module.graph.nodes if node.op == "placeholder"]
    # A free size that came to be fixed is still a symbol, which reads as a number.
    sizes = [str(value.shape[0]) for value in values if isinstance(value, Tensor) and value.dim()]
    return int(sizes[0]) if sizes and all(map(str.isdigit, sizes)) else None


def _grew(args: tuple, kwargs: dict, others: tuple, other_kwargs: dict) -> bool:
    """Whether a batch of one was repeated."""
    leaves = zip(pytree.tree_leaves((args, kwargs)), pytree.tree_leaves((others, other_kwargs)), strict=True)
    return any(isinstance(a, Tensor) and a.shape != b.shape for a, b in leaves)


def _check_names(model: nn.Module) -> None:
    """A traced module has a `graph`, `code` and `meta` of its own, which parts of the model cannot be called too."""
    if isinstance(model, fx.GraphModule):
        return
    kept = fx.GraphModule(nn.Module(), fx.Graph())
    own = (*model.named_children(), *model.named_parameters(recurse=False), *model.named_buffers(recurse=False))
    taken = [name for name, _ in own if hasattr(kept, name)]
    if taken:
        raise TraceError(
            f"A part of {type(model).__name__} is called {taken[0]!r}, a name that torch.fx keeps for itself. Give "
            f"that attribute another name."
        )


def _check_runs(model: nn.Module, args: tuple, kwargs: dict) -> None:
    try:
        with torch.no_grad():
            out = model(*args, **kwargs)
    except FAILURES as error:
        raise TraceError(
            f"{type(model).__name__} does not run on the example inputs{_place(error)}: {first_line(error)} Check the "
            f"shapes, the dtypes and the names of the inputs."
        ) from error
    if not any(isinstance(leaf, Tensor) for leaf in pytree.tree_leaves(out)):
        raise TraceError(f"{type(model).__name__} returns no tensor on the example inputs. Got {type(out).__name__}.")


def at_least_two(leaf: Any) -> Any:
    """A batch of one is repeated: torch.export would otherwise fix the batch to 1."""
    single = isinstance(leaf, Tensor) and leaf.dim() > 0 and leaf.shape[0] == 1
    return leaf.repeat(2, *[1] * (leaf.dim() - 1)) if single else leaf


def free_sizes(leaf: Any) -> Any:
    """Which sizes of an input may change: the batch, and the length of token sequences."""
    if not isinstance(leaf, Tensor) or leaf.dim() == 0:
        return None
    tokens = not leaf.is_floating_point() and leaf.dim() == 2 and leaf.shape[1] > 1
    return {0: Dim.AUTO, 1: Dim.AUTO} if tokens else {0: Dim.AUTO}


def _sizes_by_name(model: nn.Module, args: tuple, kwargs: dict) -> dict[str, Any]:
    """Name of each input of the forward -> its free sizes."""
    bound = inspect.signature(model.forward).bind(*args, **kwargs)
    return {name: pytree.tree_map(free_sizes, value) for name, value in bound.arguments.items()}


def _place(error: BaseException | None) -> str:
    """` at FILE:LINE (CODE)` of the last line outside torch and this package, or nothing."""
    frames = traceback.extract_tb(error.__traceback__) if error is not None else []
    own = [f for f in frames if f.line and not f.filename.startswith(_TORCH) and f.filename != __file__]
    return f" at {Path(own[-1].filename).name}:{own[-1].lineno} ({own[-1].line})" if own else ""


@contextlib.contextmanager
def _masks_as_given() -> Iterator[None]:
    """torch's transformers look at the values of a mask for a hint that only speeds them up: it is not taken."""
    name, holder = "_detect_is_causal_mask", nn.modules.transformer
    known = getattr(holder, name, None)
    if known is None:
        yield
        return
    setattr(holder, name, lambda mask, is_causal=None, size=None: is_causal is True)
    try:
        yield
    finally:
        setattr(holder, name, known)


@contextlib.contextmanager
def _quiet() -> Iterator[None]:
    """Silence torch's own account of a failed capture, which the error that follows tells better."""
    level = logging.root.manager.disable
    logging.disable(logging.CRITICAL)
    try:
        with warnings.catch_warnings(), contextlib.redirect_stderr(io.StringIO()):
            warnings.simplefilter("ignore")
            yield
    finally:
        logging.disable(level)
