"""One hash of tensors and plain values: whether stored work was done on the same weights, data and settings."""

import hashlib
from typing import Any

import numpy as np
import torch
from torch import Tensor
from torch.utils import _pytree as pytree


def hash_values(*values: Any) -> str:
    """SHA-256 of tensors (type, shape and bytes), arrays and plain values, and of their places in lists, tuples, dicts.

    Of any other object the type counts alone: what of it matters is given as plain values.
    """
    digest = hashlib.sha256()
    for place, leaf in pytree.tree_leaves_with_path(values):
        digest.update(pytree.keystr(place).encode())
        if isinstance(leaf, Tensor):
            flat = leaf.detach().cpu().contiguous()
            digest.update(f"{leaf.dtype} {tuple(leaf.shape)}".encode())
            digest.update(flat.reshape(-1).view(torch.uint8).numpy().tobytes())
        elif isinstance(leaf, np.ndarray):
            digest.update(f"{leaf.dtype} {leaf.shape}".encode())
            digest.update(leaf.tobytes())
        else:
            plain = leaf is None or isinstance(leaf, (bool, int, float, str, bytes))
            digest.update((repr(leaf) if plain else type(leaf).__name__).encode() + b"\0")
    return digest.hexdigest()


def hash_state(module: torch.nn.Module) -> str:
    """SHA-256 of the names and values of a module's parameters and buffers."""
    return hash_values(dict(module.state_dict()))
