"""Randomness and threads of a run: every source is derived by name from one seed."""

import hashlib
import os
import random
from collections.abc import Iterator
from contextlib import contextmanager

import numpy as np
import torch

from compress.errors import CompressError


def derive_seed(name: str, seed: int) -> int:
    """A seed in [0, 2^63) for the part of the run called `name`; other names give independent seeds."""
    digest = hashlib.sha256(f"{seed}/{name}".encode()).digest()
    return int.from_bytes(digest[:8], "big") >> 1


def generator(name: str, seed: int, device: str = "cpu") -> torch.Generator:
    """A torch generator for the part called `name` (`"finetune"`), independent of the order in which parts run."""
    return torch.Generator(device=device).manual_seed(derive_seed(name, seed))


def numpy_generator(name: str, seed: int) -> np.random.Generator:
    """A numpy generator for the part called `name`."""
    return np.random.default_rng(derive_seed(name, seed))


@contextmanager
def seeded(name: str, seed: int) -> Iterator[None]:
    """Within it, torch's and Python's global randomness is that of `name`; afterwards it is as before.

    For code that takes no generator, such as the initialisation of `torch.nn` layers.
    """
    state = random.getstate()
    with torch.random.fork_rng():
        torch.manual_seed(derive_seed(name, seed))
        random.seed(derive_seed(name, seed))
        try:
            yield
        finally:
            random.setstate(state)


def set_threads(threads: int) -> int:
    """Set the number of torch's threads and return it. Results repeat bit for bit only at the same number.

    Raises:
        CompressError: if `threads` is below 1.
    """
    if threads < 1:
        raise CompressError(f"The 'threads' setting must be an int of at least 1. Got {threads}.")
    torch.set_num_threads(threads)
    return torch.get_num_threads()


def seed_run(seed: int, device: str = "cpu") -> None:
    """Seed the global sources once, as a net below the named generators, and ask the GPU for repeatable kernels."""
    random.seed(seed)
    np.random.seed(seed % 2**32)  # noqa: NPY002 - libraries that still read numpy's global source
    torch.manual_seed(seed)
    if device != "cpu":
        os.environ.setdefault("CUBLAS_WORKSPACE_CONFIG", ":4096:8")
        torch.backends.cudnn.benchmark = False
        torch.use_deterministic_algorithms(True, warn_only=True)
