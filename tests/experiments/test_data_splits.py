"""Parts never overlap, batches are repeatable, augmentation moves pixels and nothing else."""

import dataclasses

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from compress.errors import DataError
from experiments.data import ImagePart, ShuffledBatches, load_digits, make_batches
from experiments.data.digits import TEST_SIZE
from experiments.data.splits import carve, shift_and_flip

PARTS = ("train", "calibration", "label", "validation", "test")


def tiny_part(n: int = 10, padding: int = 0, flip: bool = False) -> ImagePart:
    images = torch.arange(n * 4, dtype=torch.uint8).view(n, 1, 2, 2)
    labels = torch.arange(n) % 2
    return ImagePart(images, labels, torch.arange(n), "train", (0.5,), (0.25,), padding=padding, flip=flip)


def test_batches_are_normalised_by_hand():
    part = ImagePart(
        torch.tensor([[[[0, 8], [16, 4]]]], dtype=torch.uint8),
        torch.tensor([3]),
        torch.tensor([7]),
        "train",
        mean=(0.5,),
        std=(0.25,),
        scale=16.0,
    )
    ((images, labels),) = make_batches(part, 5)
    assert torch.equal(images, torch.tensor([[[[-2.0, 0.0], [2.0, -1.0]]]]))
    assert labels.tolist() == [3]


@pytest.mark.parametrize("augmented", [False, True])
def test_channels_last_is_the_same_batch_in_another_order_of_memory(augmented):
    images = torch.arange(10 * 48, dtype=torch.int64).remainder(251).to(torch.uint8).view(10, 3, 4, 4)
    part = ImagePart(images, torch.arange(10), torch.arange(10), "train", (0.5,) * 3, (0.25,) * 3, padding=1, flip=True)
    found = [
        p.batch(torch.arange(10), torch.Generator().manual_seed(0) if augmented else None)[0]
        for p in (part, dataclasses.replace(part, channels_last=True))
    ]
    assert torch.equal(*found)
    assert [x.is_contiguous() for x in found] == [True, False]
    assert found[1].is_contiguous(memory_format=torch.channels_last)


@pytest.mark.parametrize("seed", [0, 1, 2])
def test_digits_parts_share_no_image_and_cover_all(seed):
    splits = load_digits(seed=seed)
    everything = torch.cat([getattr(splits, part).indices for part in PARTS])
    assert sorted(everything.tolist()) == list(range(1797))
    for part in PARTS:
        counts = getattr(splits, part).labels.bincount(minlength=10)
        assert counts.max() - counts.min() <= max(3, len(getattr(splits, part)) // 20)


def test_digits_test_images_do_not_depend_on_the_seed():
    first, second = load_digits(seed=0), load_digits(seed=1)
    assert torch.equal(first.test.indices, second.test.indices)
    assert len(first.test) == TEST_SIZE
    assert not torch.equal(first.label.indices, second.label.indices)


def test_digits_shapes_and_statistics():
    splits = load_digits()
    images, labels = splits.train.batch(torch.arange(len(splits.train)))
    assert images.shape == (len(splits.train), 1, 8, 8)
    assert images.dtype == torch.float32
    assert labels.dtype == torch.int64
    assert abs(images.mean().item()) < 0.05
    assert abs(images.std().item() - 1) < 0.05
    assert splits.input_shape == (1, 8, 8)
    assert splits.example_inputs().shape == (1, 1, 8, 8)
    assert splits.class_names == tuple("0123456789")


def test_overlapping_parts_are_refused_with_the_example_named():
    splits = load_digits()
    shared = int(splits.label.indices[0])
    with pytest.raises(DataError, match=f"'calibration' and 'label' of data set 'digits' share example {shared}"):
        dataclasses.replace(splits, calibration=splits.label)


def test_an_empty_part_is_refused():
    splits = load_digits()
    with pytest.raises(DataError, match="Part 'label' of data set 'digits' is empty"):
        dataclasses.replace(splits, label=splits.label.take(0))


@pytest.mark.parametrize("sizes", [{"label": 0}, {"label": 6}, {"label": 3, "validation": 3}])
def test_sizes_that_leave_too_little_are_refused(sizes):
    with pytest.raises(DataError, match="at most half of 10 examples"):
        carve(np.zeros(10, dtype=int), sizes, seed=0)


@settings(max_examples=30, derandomize=True, deadline=None)
@given(
    labels=st.lists(st.integers(0, 4), min_size=12, max_size=80),
    first=st.integers(1, 3),
    second=st.integers(1, 3),
    seed=st.integers(0, 5),
)
def test_carve_partitions_any_labels(labels, first, second, seed):
    parts = carve(np.array(labels), {"a": first, "b": second}, seed)
    assert (len(parts["a"]), len(parts["b"])) == (first, second)
    assert sorted(np.concatenate(list(parts.values())).tolist()) == list(range(len(labels)))
    again = carve(np.array(labels), {"a": first, "b": second}, seed)
    assert all(np.array_equal(parts[name], again[name]) for name in parts)


def test_make_batches_keeps_the_order_and_the_rest():
    batches = make_batches(tiny_part(10), 4)
    assert [len(labels) for _, labels in batches] == [4, 4, 2]
    assert len(make_batches(tiny_part(10), 4, limit=5)[1][1]) == 1


@pytest.mark.parametrize(("size", "limit"), [(0, None), (4, 0)])
def test_make_batches_refuses_nothing(size, limit):
    with pytest.raises(DataError, match="at least 1"):
        make_batches(tiny_part(), size, limit)


def test_shuffled_batches_repeat_by_seed_and_epoch_and_differ_between_epochs():
    part = tiny_part(40, padding=1, flip=True)
    first, second = ShuffledBatches(part, 8, seed=3), ShuffledBatches(part, 8, seed=3)
    epochs = [[images for images, _ in first] for _ in range(2)]
    again = [[images for images, _ in second] for _ in range(2)]
    assert all(torch.equal(a, b) for x, y in zip(epochs, again, strict=True) for a, b in zip(x, y, strict=True))
    assert not torch.equal(epochs[0][0], epochs[1][0])
    resumed = ShuffledBatches(part, 8, seed=3)
    resumed.set_epoch(1)
    assert all(torch.equal(a, b) for a, (b, _) in zip(epochs[1], resumed, strict=True))
    other = ShuffledBatches(part, 8, seed=4)
    assert not torch.equal(next(iter(other))[0], epochs[0][0])


def test_views_come_again():
    batches = ShuffledBatches(tiny_part(40, padding=1, flip=True), 8, seed=3, views=2)
    epochs = [[images for images, _ in batches] for _ in range(3)]
    assert all(torch.equal(a, b) for a, b in zip(epochs[0], epochs[2], strict=True))
    assert not torch.equal(epochs[0][0], epochs[1][0])
    with pytest.raises(DataError, match="'views' parameter of ShuffledBatches must be at least 1"):
        ShuffledBatches(tiny_part(), 8, views=0)


@pytest.mark.parametrize(("n", "size", "expected"), [(10, 5, 2), (11, 5, 2), (13, 5, 3), (3, 8, 1)])
def test_a_small_last_batch_is_left_out(n, size, expected):
    batches = ShuffledBatches(tiny_part(n), size)
    assert len(batches) == len(list(batches)) == expected


def test_shuffling_leaves_the_global_generator_alone():
    before = torch.get_rng_state()
    list(ShuffledBatches(tiny_part(20, padding=1, flip=True), 4))
    assert torch.equal(torch.get_rng_state(), before)


def test_shifts_are_crops_of_the_padded_image():
    image = torch.arange(1, 10, dtype=torch.uint8).view(1, 1, 3, 3)
    padded = torch.zeros(1, 1, 5, 5, dtype=torch.uint8)
    padded[:, :, 1:4, 1:4] = image
    crops = [padded[0, 0, top : top + 3, left : left + 3] for top in range(3) for left in range(3)]
    shifted = shift_and_flip(image.expand(200, 1, 3, 3), 1, False, torch.Generator().manual_seed(0))
    seen = set()
    for one in shifted[:, 0]:
        matches = [index for index, crop in enumerate(crops) if torch.equal(one, crop)]
        assert len(matches) == 1
        seen.update(matches)
    assert seen == set(range(9))


def test_flips_mirror_about_half_of_the_images():
    image = torch.tensor([[[[1, 2]]]], dtype=torch.uint8).expand(1000, 1, 1, 2)
    flipped = shift_and_flip(image, 0, True, torch.Generator().manual_seed(0))
    rows = {tuple(row) for row in flipped[:, 0, 0].tolist()}
    assert rows == {(1, 2), (2, 1)}
    assert 400 < int((flipped[:, 0, 0, 0] == 2).sum()) < 600
