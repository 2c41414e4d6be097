"""The 1,797 handwritten digits (8 x 8) that come with scikit-learn."""

import numpy as np
import torch
from sklearn.datasets import load_digits as read_digits

from experiments.data.splits import DataSplits, ImagePart, carve, image_splits

# The package has no test set of its own: this many images, the same for every seed, serve as one.
TEST_SIZE = 400
_TEST_SEED = 20260101


def load_digits(seed: int = 0, calibration: int = 160, label: int = 160, validation: int = 150) -> DataSplits:
    """scikit-learn's digits as `(1, 8, 8)` images in 10 classes; needs no file.

    Args:
        seed: chooses calibration, label and validation examples; the test images never change.
        calibration, label, validation: number of examples of each part.
    """
    images, labels = read_digits(return_X_y=True)
    images = images.reshape(-1, 1, 8, 8).astype(np.uint8)
    fixed = carve(labels, {"test": TEST_SIZE}, _TEST_SEED)
    whole = ImagePart(
        images=torch.from_numpy(images),
        labels=torch.from_numpy(labels.astype(np.int64)),
        indices=torch.arange(len(labels)),
        source="train",
        mean=(0.3053,),
        std=(0.3760,),
        scale=16.0,
        padding=1,
    )
    sizes = {"calibration": calibration, "label": label, "validation": validation}
    train, test = (whole.select(torch.from_numpy(np.sort(fixed[part]))) for part in ("train", "test"))
    return image_splits("digits", train, test, sizes, seed, [str(digit) for digit in range(10)])
