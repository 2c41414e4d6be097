"""The small data sets of the zoo: parts that share nothing, the same every time, and no trace left behind."""

import random
import sys

import numpy as np
import pytest
import torch

from compress.errors import DataError
from experiments.data import data_root, load_mnist1d, load_shakespeare, load_small_mnist, make_batches
from experiments.data.mnist1d import _generate
from experiments.data.small_mnist import halve

PARTS = ("train", "calibration", "label", "validation", "test")
TEXT = data_root() / "tinyshakespeare" / "input.txt"
MNIST = data_root() / "mnist" / "train-images-idx3-ubyte.gz"
FEW = {"calibration": 20, "label": 20, "validation": 20}


@pytest.fixture(scope="module")
def signals():
    pytest.importorskip("mnist1d", reason="the extra 'zoo' is not installed")
    return load_mnist1d(examples=400, **FEW)


def write_text(root, n=20_000):
    folder = root / "tinyshakespeare"
    folder.mkdir()
    letters = np.random.default_rng(0).integers(0, 5, n)
    (folder / "input.txt").write_text("".join("abc\n "[letter] for letter in letters))
    return folder / "input.txt"


def assert_disjoint(splits):
    for source in ("train", "test"):
        parts = [getattr(splits, part) for part in PARTS if getattr(splits, part).source == source]
        indices = torch.cat([part.indices for part in parts])
        assert len(indices.unique()) == len(indices)
    assert {part: getattr(splits, part).source for part in PARTS} == dict.fromkeys(PARTS, "train") | {"test": "test"}


def assert_equal(first, second):
    for part in PARTS:
        (inputs, labels), (other_inputs, other_labels) = (
            make_batches(getattr(splits, part), 10_000)[0] for splits in (first, second)
        )
        assert torch.equal(inputs, other_inputs)
        assert torch.equal(labels, other_labels)


def test_signals_are_normalised_and_split(signals):
    assert [len(getattr(signals, part)) for part in PARTS] == [260, 20, 20, 20, 80]
    assert_disjoint(signals)
    inputs, labels = signals.train.batch(torch.arange(260))
    assert inputs.shape == (260, 1, 40)
    assert (inputs.dtype, labels.dtype) == (torch.float32, torch.int64)
    assert abs(inputs.mean().item()) < 0.1
    assert abs(inputs.std().item() - 1) < 0.1
    assert signals.example_inputs().shape == (1, 1, 40)
    assert labels.unique().tolist() == list(range(10))


def test_signals_are_always_the_same_and_leave_no_trace(signals, capfd, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    states = random.getstate(), np.random.get_state()[1].tolist(), torch.get_rng_state()  # noqa: NPY002
    _generate.cache_clear()
    assert_equal(signals, load_mnist1d(examples=400, **FEW))
    assert states[0] == random.getstate()
    assert states[1] == np.random.get_state()[1].tolist()  # noqa: NPY002
    assert torch.equal(states[2], torch.get_rng_state())
    assert capfd.readouterr() == ("", "")
    assert not list(tmp_path.iterdir())


def test_the_seed_chooses_parts_of_the_same_signals(signals):
    drawn = _generate.cache_info().misses
    other = load_mnist1d(seed=1, examples=400, **FEW)
    # They are generated once.
    assert _generate.cache_info().misses == drawn
    assert torch.equal(signals.test.inputs, other.test.inputs)
    assert not torch.equal(signals.label.indices, other.label.indices)


def test_without_its_package_the_extra_is_named(monkeypatch):
    _generate.cache_clear()
    monkeypatch.setitem(sys.modules, "mnist1d", None)
    monkeypatch.setitem(sys.modules, "mnist1d.data", None)
    with pytest.raises(DataError, match=r"autolabel-compress\[zoo\]"):
        load_mnist1d(examples=400, **FEW)


def test_pixels_are_averaged_and_rounded():
    images = torch.tensor([[[[0, 1, 255, 255], [1, 0, 255, 255]]]], dtype=torch.uint8)
    assert halve(images).tolist() == [[[[1, 255]]]]


@pytest.mark.skipif(not MNIST.is_file(), reason="the files of MNIST are not there")
def test_small_mnist_is_a_fixed_subset():
    splits = load_small_mnist(train=300, test=100, **FEW)
    assert [len(getattr(splits, part)) for part in PARTS] == [300, 20, 20, 20, 100]
    assert_disjoint(splits)
    assert_equal(splits, load_small_mnist(train=300, test=100, **FEW))
    images, labels = splits.train.batch(torch.arange(300))
    assert images.shape == (300, 1, 14, 14)
    assert abs(images.mean().item()) < 0.1
    assert abs(images.std().item() - 1) < 0.1
    assert labels.bincount().min() >= 20


def test_windows_of_text_share_no_character(tmp_path):
    text = write_text(tmp_path).read_text()
    splits = load_shakespeare(tmp_path, train=100, test=20, context=9, **FEW)
    assert [len(getattr(splits, part)) for part in PARTS] == [100, 20, 20, 20, 20]
    assert_disjoint(splits)
    border = len(text) - int(0.15 * len(text))
    used = torch.zeros(len(text), dtype=torch.int64)
    for part in (getattr(splits, name) for name in PARTS):
        starts = part.indices * 10 + (border if part.source == "test" else 0)
        for start, tokens, label in zip(starts.tolist(), part.inputs, part.labels, strict=True):
            window = "".join(splits.class_names[token] for token in [*tokens.tolist(), int(label)])
            assert window == text[start : start + 10]
            used[start : start + 10] += 1
    assert used.max() == 1
    assert not used[border - 10 : border].any()


def test_windows_are_always_the_same_and_the_test_windows_whatever_the_seed(tmp_path):
    write_text(tmp_path)
    arguments = {"train": 100, "test": 20, "context": 9, **FEW}
    first, other = load_shakespeare(tmp_path, **arguments), load_shakespeare(tmp_path, seed=1, **arguments)
    assert_equal(first, load_shakespeare(tmp_path, **arguments))
    assert torch.equal(first.test.inputs, other.test.inputs)
    assert not torch.equal(first.label.indices, other.label.indices)


def test_too_short_or_missing_or_damaged_texts_are_named(tmp_path):
    with pytest.raises(DataError, match="--only shakespeare"):
        load_shakespeare(tmp_path)
    path = write_text(tmp_path, 1000)
    with pytest.raises(DataError, match="windows of 25 characters"):
        load_shakespeare(tmp_path)
    path.write_bytes(b"\xff\xfe\xff")
    with pytest.raises(DataError, match="is damaged"):
        load_shakespeare(tmp_path)


@pytest.mark.skipif(not TEXT.is_file(), reason="the text is not there")
def test_the_real_text_has_65_characters():
    splits = load_shakespeare()
    assert [len(getattr(splits, part)) for part in PARTS] == [12_000, 512, 512, 1000, 3000]
    assert len(splits.class_names) == 65
    assert splits.train.inputs.shape == (12_000, 24)
    assert splits.train.inputs.dtype == torch.int64
