"""MNIST at a quarter of its pixels and a seventh of its images, for networks that train in seconds."""

from dataclasses import replace
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from experiments.data.mnist import load_mnist
from experiments.data.splits import DataSplits, ImagePart, carve, image_splits

# The images of the subset are the same for every seed.
_SUBSET_SEED = 20260102
# Of the images after pooling, on data scaled to [0, 1].
MEAN, STD = (0.1312,), (0.2808,)


def load_small_mnist(
    root: str | Path | None = None,
    seed: int = 0,
    calibration: int = 512,
    label: int = 512,
    validation: int = 1000,
    train: int = 6000,
    test: int = 2000,
    padding: int = 1,
) -> DataSplits:
    """A subset of MNIST as `(1, 14, 14)` images in 10 classes: means of 2 x 2 pixels.

    Args:
        root: the data root, see `experiments.data.data_root`.
        seed: chooses calibration, label and validation examples; the images of the subset never change.
        calibration, label, validation, train, test: number of examples of each part.
        padding: augmentation shifts training images by up to this many pixels.

    Raises:
        DataError: if a file is missing or damaged, with what to put where, or if the parts take too much.
    """
    whole = load_mnist(root, seed=0, calibration=1, label=1, validation=1, padding=padding)
    sizes = {"calibration": calibration, "label": label, "validation": validation}
    wanted = {"train": train + sum(sizes.values()), "test": test}
    subset = [_reduced(getattr(whole, part), size) for part, size in wanted.items()]
    return image_splits("small_mnist", *subset, sizes, seed, whole.class_names)


def _reduced(part: ImagePart, size: int) -> ImagePart:
    """`size` images of a part, all classes alike, pooled."""
    chosen = carve(part.labels.numpy(), {"subset": size}, _SUBSET_SEED)["subset"]
    part = part.select(torch.from_numpy(np.sort(chosen)))
    return replace(part, images=halve(part.images), mean=MEAN, std=STD)


def halve(images: Tensor) -> Tensor:
    """Bytes of images at half the resolution: the rounded mean of each 2 x 2 pixels.

    Args:
        images: uint8, `(n, channels, height, width)`, both even.
    """
    n, channels, height, width = images.shape
    blocks = images.view(n, channels, height // 2, 2, width // 2, 2)
    return ((blocks.sum(dim=(3, 5), dtype=torch.int16) + 2) // 4).to(torch.uint8)
