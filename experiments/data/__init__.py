"""Data sets in their publishers' formats, split once into parts that never overlap."""

from experiments.data.cifar10 import load_cifar10
from experiments.data.digits import load_digits
from experiments.data.mnist import load_mnist
from experiments.data.mnist1d import load_mnist1d
from experiments.data.root import data_root, require_files
from experiments.data.shakespeare import load_shakespeare
from experiments.data.small_mnist import load_small_mnist
from experiments.data.splits import DataSplits, ImagePart, Part, ShuffledBatches, make_batches
from experiments.data.stsb import load_stsb
from experiments.data.tensor_part import TensorPart, tensor_splits

__all__ = [
    "DataSplits",
    "ImagePart",
    "Part",
    "ShuffledBatches",
    "TensorPart",
    "data_root",
    "load_cifar10",
    "load_digits",
    "load_mnist",
    "load_mnist1d",
    "load_shakespeare",
    "load_small_mnist",
    "load_stsb",
    "make_batches",
    "require_files",
    "tensor_splits",
]
