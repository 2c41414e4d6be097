"""MNIST from its publisher's four IDX files."""

import gzip
import zlib
from pathlib import Path

import numpy as np
import torch

from compress.errors import DataError
from experiments.data.root import data_root, require_files
from experiments.data.splits import DataSplits, ImagePart, image_splits

FILES = (
    "train-images-idx3-ubyte.gz",
    "train-labels-idx1-ubyte.gz",
    "t10k-images-idx3-ubyte.gz",
    "t10k-labels-idx1-ubyte.gz",
)


def load_mnist(
    root: str | Path | None = None,
    seed: int = 0,
    calibration: int = 1000,
    label: int = 1000,
    validation: int = 3000,
    padding: int = 2,
    affine: float = 0.0,
) -> DataSplits:
    """MNIST as `(1, 28, 28)` images in 10 classes, from `<data root>/mnist`.

    Args:
        root: the data root, see `experiments.data.data_root`.
        seed: chooses calibration, label and validation examples among the 60,000 training images.
        calibration, label, validation: number of examples of each part.
        padding: augmentation shifts training images by up to this many pixels.
        affine: strength of distortions, see `ImagePart`.

    Raises:
        DataError: if a file is missing or damaged, with what to put where.
    """
    paths = require_files(data_root(root) / "mnist", FILES, "mnist")
    arrays = [read_idx(path) for path in paths]
    parts = [
        ImagePart(
            images=torch.from_numpy(images[:, None]),
            labels=torch.from_numpy(labels.astype(np.int64)),
            indices=torch.arange(len(labels)),
            source=source,
            mean=(0.1307,),
            std=(0.3081,),
            padding=padding,
            affine=affine,
        )
        for source, images, labels in (("train", *arrays[:2]), ("test", *arrays[2:]))
    ]
    sizes = {"calibration": calibration, "label": label, "validation": validation}
    return image_splits("mnist", *parts, sizes, seed, [str(digit) for digit in range(10)])


def read_idx(path: Path) -> np.ndarray:
    """The uint8 array of a gzipped IDX file. Raises DataError naming the file if it is damaged."""
    try:
        with gzip.open(path, "rb") as file:
            content = file.read()
    except (OSError, EOFError, zlib.error) as error:
        raise DataError(f"{path} is damaged ({error}). Delete it and fetch it again.") from error
    dims = content[3] if len(content) > 3 else 0
    header = 4 + 4 * dims
    # Two zero bytes, type 8 (unsigned byte), number of dimensions, then each size as a big-endian int.
    if content[:3] != b"\0\0\x08" or len(content) < header:
        raise DataError(f"{path} is not an IDX file of bytes. Delete it and fetch it again.")
    shape = tuple(np.frombuffer(content, ">i4", count=dims, offset=4).tolist())
    if len(content) - header != int(np.prod(shape)):
        raise DataError(f"{path} holds {len(content) - header} bytes, not the {shape} of its header. Fetch it again.")
    return np.frombuffer(content, np.uint8, offset=header).reshape(shape).copy()
