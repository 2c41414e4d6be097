"""Example inputs as they stand in a file: shapes and dtypes alone."""

from collections.abc import Mapping
from typing import Any

import numpy as np
import torch
from torch import Tensor
from torch.utils import _pytree as pytree

from compress.graph import as_inputs


def describe_inputs(example_inputs: Any) -> dict[str, Any]:
    """Plain JSON: `args` and `kwargs` with the shape and dtype of every tensor; other values as they are."""
    args, kwargs = as_inputs(example_inputs)
    return {
        "args": [_describe(leaf) for leaf in args],
        "kwargs": [[name, _describe(value)] for name, value in kwargs.items()],
    }


def _describe(leaf: Any) -> Any:
    if isinstance(leaf, Tensor):
        return {"shape": list(leaf.shape), "dtype": str(leaf.dtype).removeprefix("torch.")}
    if leaf is None or isinstance(leaf, (bool, int, float, str)):
        return {"value": leaf}
    if isinstance(leaf, Mapping) and all(isinstance(name, str) for name in leaf):
        return {"entries": {name: _describe(value) for name, value in leaf.items()}}
    items = leaf if isinstance(leaf, (list, tuple)) else pytree.tree_leaves(leaf)
    return {"list" if isinstance(leaf, list) else "items": [_describe(item) for item in items]}


def rebuild_inputs(example: Mapping[str, Any]) -> Any:
    """Inputs of these shapes: ramps of floats, ones of integers (a token that exists, a mask that shows all)."""
    args = tuple(_rebuild(leaf) for leaf in example["args"])
    kwargs = {name: _rebuild(leaf) for name, leaf in example["kwargs"]}
    return kwargs or args


def _rebuild(leaf: Mapping[str, Any]) -> Any:
    if "value" in leaf:
        return leaf["value"]
    if "items" in leaf:
        return tuple(_rebuild(item) for item in leaf["items"])
    if "list" in leaf:
        return [_rebuild(item) for item in leaf["list"]]
    if "entries" in leaf:
        return {name: _rebuild(item) for name, item in leaf["entries"].items()}
    dtype = getattr(torch, leaf["dtype"])
    if dtype.is_floating_point:
        return torch.linspace(-1.0, 1.0, int(np.prod(leaf["shape"], dtype=np.int64)), dtype=dtype).reshape(
            leaf["shape"]
        )
    return torch.ones(leaf["shape"], dtype=dtype)
