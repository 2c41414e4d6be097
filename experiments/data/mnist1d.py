"""MNIST-1D: ten one-dimensional shapes, moved, stretched and made noisy, as its own package generates them."""

import random
from collections.abc import Iterator
from contextlib import contextmanager
from functools import lru_cache
from typing import Any

import numpy as np
import torch

from compress.errors import DataError
from experiments.data.splits import DataSplits
from experiments.data.tensor_part import TensorPart, tensor_splits


def load_mnist1d(
    seed: int = 0, calibration: int = 512, label: int = 512, validation: int = 1000, examples: int = 10_000
) -> DataSplits:
    """MNIST-1D (Greydanus 2020) as `(1, 40)` signals in 10 classes; needs no file, takes about two seconds.

    The signals are always the same: the package draws them with its own seed. Four in five belong to the training set.

    Args:
        seed: chooses calibration, label and validation examples among the training set.
        calibration, label, validation: number of examples of each part.
        examples: number of examples that are generated, training and test together.

    Raises:
        DataError: if the package of the extra `zoo` is not installed, or the parts take too much.
    """
    arrays = _generate(examples)
    train, test = (
        TensorPart(
            inputs=torch.from_numpy(arrays[f"x{suffix}"].astype(np.float32)[:, None]),
            labels=torch.from_numpy(arrays[f"y{suffix}"].astype(np.int64)),
            indices=torch.arange(len(arrays[f"y{suffix}"])),
            source=source,
        )
        for source, suffix in (("train", ""), ("test", "_test"))
    )
    sizes = {"calibration": calibration, "label": label, "validation": validation}
    return tensor_splits("mnist1d", train, test, sizes, seed, "NCL", [str(digit) for digit in range(10)])


# Whoever trains or judges many networks asks for the same signals each time.
@lru_cache(maxsize=1)
def _generate(examples: int) -> dict[str, Any]:
    """Signals `x`, `x_test` of mean 0 and variance 1, and classes `y`, `y_test`."""
    with _untouched_randomness():
        try:
            from mnist1d.data import get_dataset_args, make_dataset
        except ModuleNotFoundError as error:
            raise DataError(
                f"Data set 'mnist1d' needs the package {error.name!r}. Install the optional extra: "
                "pip install 'autolabel-compress[zoo]'."
            ) from error
        arguments = get_dataset_args()
        arguments.num_samples = examples
        return make_dataset(arguments)


@contextmanager
def _untouched_randomness() -> Iterator[None]:
    """Global randomness is afterwards as before: the package seeds Python's and numpy's."""
    python, numpy = random.getstate(), np.random.get_state()  # noqa: NPY002
    try:
        yield
    finally:
        random.setstate(python)
        np.random.set_state(numpy)  # noqa: NPY002
