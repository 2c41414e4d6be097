"""Loaders read their publishers' formats, and say exactly what is missing or damaged."""

import gzip

import numpy as np
import pytest
import torch

from compress.errors import DataError
from experiments.data import data_root, load_cifar10, load_mnist, load_stsb, make_batches, require_files
from experiments.data.cifar10 import TEST_FILE, TRAIN_FILES
from experiments.data.mnist import FILES as MNIST_FILES
from experiments.data.stsb import read_pairs

PARTS = ("train", "calibration", "label", "validation", "test")
SMALL = {"calibration": 10, "label": 10, "validation": 10}


def write_idx(path, array):
    header = bytes([0, 0, 8, array.ndim]) + np.array(array.shape, ">i4").tobytes()
    path.write_bytes(gzip.compress(header + array.tobytes()))


def write_mnist(root, n_train=100, n_test=20):
    folder = root / "mnist"
    folder.mkdir()
    rng = np.random.default_rng(0)
    for start, n in ((0, n_train), (2, n_test)):
        write_idx(folder / MNIST_FILES[start], rng.integers(0, 256, (n, 28, 28), dtype=np.uint8))
        write_idx(folder / MNIST_FILES[start + 1], (np.arange(n) % 10).astype(np.uint8))
    return folder


def write_cifar10(root, n=20):
    folder = root / "cifar-10-batches-bin"
    folder.mkdir()
    for number, name in enumerate((*TRAIN_FILES, TEST_FILE)):
        rows = np.full((n, 3073), number, dtype=np.uint8)
        rows[:, 0] = np.arange(n) % 10
        rows[:, 1] = 255
        (folder / name).write_bytes(rows.tobytes())
    return folder


def test_the_root_is_the_argument_then_the_environment_then_the_cache(monkeypatch, tmp_path):
    monkeypatch.setenv("AUTOLABEL_DATA", str(tmp_path / "env"))
    assert data_root(tmp_path / "given") == tmp_path / "given"
    assert data_root() == tmp_path / "env"
    monkeypatch.delenv("AUTOLABEL_DATA")
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    assert data_root() == tmp_path / "cache" / "autolabel"


def test_missing_files_are_named_with_the_command_that_fetches_them(tmp_path):
    (tmp_path / "set").mkdir()
    (tmp_path / "set" / "a.bin").touch()
    with pytest.raises(DataError) as caught:
        require_files(tmp_path / "set", ["a.bin", "b.bin", "c.bin"], "name")
    message = str(caught.value)
    assert str(tmp_path / "set" / "b.bin") in message
    assert str(tmp_path / "set" / "c.bin") in message
    assert "a.bin" not in message
    assert "python -m experiments.fetching --only name" in message


@pytest.mark.parametrize(
    ("load", "file"),
    [
        (load_mnist, "mnist/train-images-idx3-ubyte.gz"),
        (load_cifar10, "cifar-10-batches-bin/data_batch_1.bin"),
        (load_stsb, "stsbenchmark/sts-train.csv"),
    ],
)
def test_every_loader_says_what_to_put_where(load, file, tmp_path):
    with pytest.raises(DataError) as caught:
        load(tmp_path)
    assert str(tmp_path / file) in str(caught.value)
    assert "experiments.fetching --only" in str(caught.value)


def test_mnist_is_read_from_idx_files(tmp_path):
    write_mnist(tmp_path)
    splits = load_mnist(tmp_path, **SMALL)
    assert [len(getattr(splits, part)) for part in PARTS] == [70, 10, 10, 10, 20]
    (images, labels), *_ = make_batches(splits.test, 20)
    assert images.shape == (20, 1, 28, 28)
    assert labels.tolist() == [*range(10), *range(10)]
    raw = torch.from_numpy(np.random.default_rng(0).integers(0, 256, (100, 28, 28), dtype=np.uint8))
    assert torch.equal(splits.train.images[:, 0], raw[splits.train.indices])


@pytest.mark.parametrize(
    ("damage", "message"),
    [
        (lambda content: content[: len(content) // 2], "is damaged"),
        (lambda content: b"plain text", "is damaged"),
        (lambda content: gzip.compress(b"plain text"), "is not an IDX file"),
        (lambda content: gzip.compress(gzip.decompress(content)[:-5]), "bytes, not the"),
    ],
)
def test_damaged_idx_files_are_named(tmp_path, damage, message):
    path = write_mnist(tmp_path) / MNIST_FILES[0]
    path.write_bytes(damage(path.read_bytes()))
    with pytest.raises(DataError, match=message) as caught:
        load_mnist(tmp_path, **SMALL)
    assert str(path) in str(caught.value)


def test_cifar10_is_read_from_rows_of_a_label_and_three_planes(tmp_path):
    write_cifar10(tmp_path)
    splits = load_cifar10(tmp_path, **SMALL)
    assert [len(getattr(splits, part)) for part in PARTS] == [70, 10, 10, 10, 20]
    assert splits.input_shape == (3, 32, 32)
    (images, labels), *_ = make_batches(splits.test, 20)
    assert labels.tolist() == [*range(10), *range(10)]
    # The first byte after the label is the top left pixel of the red plane.
    assert images[0, 0, 0, 0].item() == pytest.approx((1 - 0.485) / 0.229)
    assert images[0, 2, 31, 31].item() == pytest.approx((5 / 255 - 0.406) / 0.225)


@pytest.mark.parametrize("content", [b"", b"\0" * 3072, b"\x0a" + b"\0" * 3072])
def test_damaged_cifar10_files_are_named(tmp_path, content):
    path = write_cifar10(tmp_path) / TEST_FILE
    path.write_bytes(content)
    with pytest.raises(DataError, match=r"test_batch\.bin is damaged"):
        load_cifar10(tmp_path, **SMALL)


def sts_line(score, first, second, *extra):
    return "\t".join(["genre", "file", "year", "0001", score, first, second, *extra])


def test_pairs_are_read_with_their_scores(tmp_path):
    path = tmp_path / "sts.csv"
    # Quotes and trailing licence columns occur in the published files.
    path.write_text(sts_line("5.000", 'A "plane".', "An air plane.") + "\n" + sts_line("0.5", "a", "b ", "x") + "\n")
    assert read_pairs(path) == ([('A "plane".', "An air plane."), ("a", "b")], [5.0, 0.5])


@pytest.mark.parametrize(
    "line", ["", "a\tb", sts_line("high", "a", "b"), sts_line("5.1", "a", "b"), sts_line("nan", "a", "b")]
)
def test_damaged_pairs_are_named_by_line(tmp_path, line):
    path = tmp_path / "sts.csv"
    path.write_text(sts_line("1", "a", "b") + "\n" + line + "\n")
    with pytest.raises(DataError, match="line 2"):
        read_pairs(path)


def test_an_empty_file_of_pairs_is_refused(tmp_path):
    path = tmp_path / "sts.csv"
    path.touch()
    with pytest.raises(DataError, match="is empty"):
        read_pairs(path)
