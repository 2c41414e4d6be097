"""CIFAR-10 from its publisher's six binary files."""

from pathlib import Path

import numpy as np
import torch

from compress.errors import DataError
from experiments.data.root import data_root, require_files
from experiments.data.splits import DataSplits, ImagePart, image_splits

TRAIN_FILES = tuple(f"data_batch_{number}.bin" for number in range(1, 6))
TEST_FILE = "test_batch.bin"
CLASS_NAMES = ("airplane", "automobile", "bird", "cat", "deer", "dog", "frog", "horse", "ship", "truck")
_ROW = 1 + 3 * 32 * 32


def load_cifar10(
    root: str | Path | None = None,
    seed: int = 0,
    calibration: int = 1000,
    label: int = 512,
    validation: int = 2000,
    padding: int = 4,
    flip: bool = True,
    channels_last: bool = False,
) -> DataSplits:
    """CIFAR-10 as `(3, 32, 32)` images in 10 classes, from `<data root>/cifar-10-batches-bin`.

    Args:
        root: the data root, see `experiments.data.data_root`.
        seed: chooses calibration, label and validation examples among the 50,000 training images.
        calibration, label, validation: number of examples of each part.
        padding, flip: augmentation of the training images: random crops after padding, mirroring.
        channels_last: see `ImagePart`.

    Raises:
        DataError: if a file is missing or damaged, with what to put where.
    """
    paths = require_files(data_root(root) / "cifar-10-batches-bin", (*TRAIN_FILES, TEST_FILE), "cifar10")
    parts = []
    for source, files in (("train", paths[:5]), ("test", paths[5:])):
        rows = np.concatenate([_read_rows(path) for path in files])
        parts.append(
            ImagePart(
                images=torch.from_numpy(rows[:, 1:].reshape(-1, 3, 32, 32)),
                labels=torch.from_numpy(rows[:, 0].astype(np.int64)),
                indices=torch.arange(len(rows)),
                source=source,
                # ImageNet's statistics: the published ResNets were trained with them.
                mean=(0.485, 0.456, 0.406),
                std=(0.229, 0.224, 0.225),
                padding=padding,
                flip=flip,
                channels_last=channels_last,
            )
        )
    sizes = {"calibration": calibration, "label": label, "validation": validation}
    return image_splits("cifar10", *parts, sizes, seed, CLASS_NAMES)


def _read_rows(path: Path) -> np.ndarray:
    """Rows of a label byte and 3072 pixel bytes (red, green, blue planes)."""
    content = np.fromfile(path, dtype=np.uint8)
    if not len(content) or len(content) % _ROW or content[::_ROW].max() > 9:
        raise DataError(
            f"{path} is damaged: it must hold rows of {_ROW} bytes that start with a label 0 to 9. Fetch it again."
        )
    return content.reshape(-1, _ROW)
