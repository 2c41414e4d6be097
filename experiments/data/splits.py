"""Parts of a data set that never overlap, and the batches made of them."""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field, replace
from typing import Any, Protocol

import numpy as np
import torch
from torch import Tensor
from torch.nn import functional as F

from compress.errors import DataError

TRAIN_PARTS = ("train", "calibration", "label", "validation")


class Part(Protocol):
    """One part of a data set.

    Attributes:
        source: `"train"` or `"test"`: the publisher's own part that the examples come from.
        indices: positions of the examples in that source, int64, `(n,)`.
    """

    source: str
    indices: Tensor

    def __len__(self) -> int: ...

    def batch(self, positions: Tensor, generator: torch.Generator | None = None) -> Any:
        """The examples at these positions of the part; augmented if a generator is given."""

    def ordered(self) -> Tensor:
        """Positions in the order in which `batches` takes them."""

    def take(self, n: int) -> "Part":
        """The first `n` examples."""


@dataclass(frozen=True, eq=False)
class DataSplits:
    """A data set in five parts that share no example.

    `train`, `calibration` (features, recovery, activation ranges), `label` (the oracle measures on it) and `validation`
    (early stopping, choosing) are carved from the publisher's training set; `test` is the publisher's test set and
    decides nothing.

    Attributes:
        input_shape: shape of one example without the batch dimension; for tokens `(sequence,)`.
        mean, std: per channel, on data scaled to [0, 1]; empty for tokens.
        layout: `"NCHW"`, or `"tokens"`.
        class_names: in the order of the labels; empty where there are no classes.

    Raises:
        DataError: if two parts share an example, or a part is empty.
    """

    name: str
    train: Part
    calibration: Part
    label: Part
    validation: Part
    test: Part
    input_shape: tuple[int, ...]
    mean: tuple[float, ...] = ()
    std: tuple[float, ...] = ()
    layout: str = "NCHW"
    class_names: tuple[str, ...] = field(default=())

    def __post_init__(self) -> None:
        seen: dict[tuple[str, int], str] = {}
        for name in (*TRAIN_PARTS, "test"):
            part = getattr(self, name)
            if not len(part):
                raise DataError(f"Part '{name}' of data set '{self.name}' is empty. Ask for at least one example.")
            for index in part.indices.tolist():
                other = seen.setdefault((part.source, index), name)
                if other != name:
                    raise DataError(f"Parts '{other}' and '{name}' of data set '{self.name}' share example {index}.")

    def example_inputs(self) -> Tensor:
        """One input of zeros in the shape of a batch of one, for tracing."""
        if self.layout == "tokens":
            raise DataError(f"Data set '{self.name}' holds tokens: take the first batch as example inputs instead.")
        return torch.zeros(1, *self.input_shape)


@dataclass(frozen=True, eq=False)
class ImagePart:
    """Images as bytes with their labels; batches are `(normalised float32 images, labels)`.

    Attributes:
        images: uint8, `(n, channels, height, width)`.
        labels: int64, `(n,)`.
        scale: the byte value that stands for 1.0 (255, or 16 for digits).
        mean, std: per channel, on data scaled to [0, 1].
        padding: augmentation shifts each image by up to this many pixels.
        flip: augmentation mirrors every second image on average.
        affine: augmentation turns, scales, shears and shifts each image at random: with 1 by up to 11 degrees, 12 %,
            .2 and 2 pixels of 28, with less by as much less.
        channels_last: the channels of a pixel lie side by side in memory: a ResNet-20 trains 1.4 times as fast on a
            CPU. A model that flattens images by `view` refuses such batches.
    """

    images: Tensor
    labels: Tensor
    indices: Tensor
    source: str
    mean: tuple[float, ...]
    std: tuple[float, ...]
    scale: float = 255.0
    padding: int = 0
    flip: bool = False
    affine: float = 0.0
    channels_last: bool = False

    def __len__(self) -> int:
        return len(self.labels)

    def batch(self, positions: Tensor, generator: torch.Generator | None = None) -> tuple[Tensor, Tensor]:
        images = self.images[positions]
        if generator is not None:
            images = shift_and_flip(images, self.padding, self.flip, generator)
            images = distort(images, self.affine, generator) if self.affine else images
        mean = torch.tensor(self.mean).view(1, -1, 1, 1)
        std = torch.tensor(self.std).view(1, -1, 1, 1)
        images = (images.float() / self.scale - mean) / std
        form = torch.channels_last if self.channels_last else torch.contiguous_format
        return images.contiguous(memory_format=form), self.labels[positions]

    def ordered(self) -> Tensor:
        return torch.arange(len(self))

    def take(self, n: int) -> "ImagePart":
        return self.select(torch.arange(min(n, len(self))))

    def select(self, positions: Tensor) -> "ImagePart":
        """The part that holds only the examples at these positions."""
        return replace(
            self, images=self.images[positions], labels=self.labels[positions], indices=self.indices[positions]
        )


def make_batches(part: Part, batch_size: int, limit: int | None = None) -> list[Any]:
    """All examples of `part` (or the first `limit`) as a list of batches, never shuffled or augmented.

    Raises:
        DataError: if the batch size or limit is not positive.
    """
    if batch_size < 1 or (limit is not None and limit < 1):
        raise DataError(
            f"The 'batch_size' and 'limit' parameters of make_batches must be at least 1. Got {batch_size}, {limit}."
        )
    part = part if limit is None else part.take(limit)
    return [part.batch(positions) for positions in part.ordered().split(batch_size)]


class ShuffledBatches:
    """Training batches in a fresh order every time they are iterated, repeatable from the seed and the epoch's number.

    Args:
        part: what to draw from.
        batch_size: examples of a batch; a last batch smaller than half of it is left out of that epoch, because batch
            norm would follow too few examples.
        seed: order and augmentation of epoch `k` depend on `(seed, k)` only.
        augment: whether the part's augmentation is applied.
        views: epochs after which orders and augmentation repeat, so that a teacher who remembers has nothing new to
            compute; None for never.
    """

    def __init__(
        self, part: Part, batch_size: int, seed: int = 0, augment: bool = True, views: int | None = None
    ) -> None:
        for name, value in (("batch_size", batch_size), ("views", 1 if views is None else views)):
            if value < 1:
                raise DataError(f"The '{name}' parameter of ShuffledBatches must be at least 1. Got {value}.")
        self.views = views
        self.part = part
        self.batch_size = batch_size
        self.seed = seed
        self.augment = augment
        self._epoch = 0

    def __len__(self) -> int:
        whole, rest = divmod(len(self.part), self.batch_size)
        return max(1, whole + (2 * rest >= self.batch_size))

    def __iter__(self) -> Iterator[Any]:
        epoch, self._epoch = self._epoch, self._epoch + 1
        generator = epoch_generator(self.seed, epoch if self.views is None else epoch % self.views)
        order = torch.randperm(len(self.part), generator=generator)
        for positions in order.split(self.batch_size)[: len(self)]:
            yield self.part.batch(positions, generator if self.augment else None)

    def set_epoch(self, epoch: int) -> None:
        """The next iteration is that of epoch `epoch`, from 0: a resumed training goes on as if never stopped."""
        self._epoch = epoch


def epoch_generator(seed: int, epoch: int) -> torch.Generator:
    """A generator that depends on `(seed, epoch)` alone, with no overlap between neighbouring pairs."""
    state = np.random.SeedSequence([seed, epoch]).generate_state(1, np.uint64)[0]
    return torch.Generator().manual_seed(int(state) >> 1)


def shift_and_flip(images: Tensor, padding: int, flip: bool, generator: torch.Generator) -> Tensor:
    """Each image padded with zeros, cropped back at a random place, and mirrored with probability one half.

    Args:
        images: `(batch, channels, height, width)`.
        padding: largest shift in pixels.
    """
    batch, channels, height, width = images.shape
    if padding:
        padded = images.new_zeros(batch, channels, height + 2 * padding, width + 2 * padding)
        padded[:, :, padding : padding + height, padding : padding + width] = images
        top, left = torch.randint(0, 2 * padding + 1, (2, batch), generator=generator)
        rows = (top[:, None] + torch.arange(height))[:, None, :, None]
        columns = (left[:, None] + torch.arange(width))[:, None, None, :]
        images = padded[torch.arange(batch)[:, None, None, None], torch.arange(channels)[:, None, None], rows, columns]
    if flip:
        mirrored = torch.rand(batch, generator=generator) < 0.5
        images = torch.where(mirrored[:, None, None, None], images.flip(3), images)
    return images


def distort(images: Tensor, strength: float, generator: torch.Generator) -> Tensor:
    """Float32 images, each turned, scaled, sheared and shifted at random; see `ImagePart`. What comes in is zero."""
    n = len(images)
    angle, scale, shear, *shift = (torch.rand(5, n, generator=generator) * 2 - 1) * strength
    cos, sin = torch.cos(0.2 * angle), torch.sin(0.2 * angle)
    scale = 1 + 0.12 * scale
    rows = (torch.stack([cos * scale, -sin * scale + 0.2 * shear, 0.14 * shift[0]], 1),
            torch.stack([sin * scale, cos * scale, 0.14 * shift[1]], 1))  # fmt: skip
    grid = F.affine_grid(torch.stack(rows, 1), list(images.shape), align_corners=False)
    return F.grid_sample(images.float(), grid, align_corners=False)


def carve(labels: np.ndarray, sizes: dict[str, int], seed: int) -> dict[str, np.ndarray]:
    """Positions of each part: `sizes` examples drawn by `seed`, classes in equal shares; the rest, sorted, is `train`.

    The first examples of a part are nearly balanced too, so that `take(n)` is a fair sample.

    Args:
        labels: class (or bin) of every example of the source.
        sizes: part -> number of examples.

    Raises:
        DataError: if the parts together take more than half of what there is, or one is empty.
    """
    wanted = sum(sizes.values())
    if min(sizes.values(), default=1) < 1 or 2 * wanted > len(labels):
        raise DataError(
            f"The sizes of the parts must be at least 1 and together at most half of {len(labels)} examples: the rest "
            f"is for training. Got {sizes}."
        )
    rng = np.random.default_rng(seed)
    # Dealing the classes round robin from shuffled piles makes every prefix of the order nearly balanced.
    order = rng.permutation(len(labels))
    rank = np.empty(len(labels), dtype=np.int64)
    for value in np.unique(labels):
        members = order[labels[order] == value]
        rank[members] = (np.arange(len(members)) + 0.5) / len(members) * len(labels)
    order = order[np.argsort(rank[order], kind="stable")]
    parts, start = {}, 0
    for name, size in sizes.items():
        parts[name] = order[start : start + size].copy()
        start += size
    parts["train"] = np.sort(order[start:])
    return parts


def image_splits(
    name: str, train: ImagePart, test: ImagePart, sizes: dict[str, int], seed: int, class_names: Sequence[str]
) -> DataSplits:
    """`DataSplits` of an image set: `carve` applied to its whole training set, the test set as it is."""
    parts = carve(train.labels.numpy(), sizes, seed)
    chosen = {part: train.select(torch.from_numpy(positions)) for part, positions in parts.items()}
    return DataSplits(
        name=name,
        **chosen,
        test=test,
        input_shape=tuple(train.images.shape[1:]),
        mean=train.mean,
        std=train.std,
        class_names=tuple(class_names),
    )
