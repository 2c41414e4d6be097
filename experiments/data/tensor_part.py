"""Examples that lie in memory just as a network takes them: normalised floats, or tokens."""

from collections.abc import Sequence
from dataclasses import dataclass, replace

import torch
from torch import Tensor

from experiments.data.splits import DataSplits, carve


@dataclass(frozen=True, eq=False)
class TensorPart:
    """Inputs with their labels; a batch is `(inputs, labels)`. There is no augmentation.

    Attributes:
        inputs: float32, or int64 tokens, `(n, ...)`.
        labels: int64, `(n,)`.
    """

    inputs: Tensor
    labels: Tensor
    indices: Tensor
    source: str

    def __len__(self) -> int:
        return len(self.labels)

    def batch(self, positions: Tensor, generator: torch.Generator | None = None) -> tuple[Tensor, Tensor]:
        return self.inputs[positions], self.labels[positions]

    def ordered(self) -> Tensor:
        return torch.arange(len(self))

    def take(self, n: int) -> "TensorPart":
        return self.select(torch.arange(min(n, len(self))))

    def select(self, positions: Tensor) -> "TensorPart":
        """The part that holds only the examples at these positions."""
        return replace(
            self, inputs=self.inputs[positions], labels=self.labels[positions], indices=self.indices[positions]
        )


def tensor_splits(
    name: str,
    train: TensorPart,
    test: TensorPart,
    sizes: dict[str, int],
    seed: int,
    layout: str,
    class_names: Sequence[str] = (),
) -> DataSplits:
    """`DataSplits` of examples in memory: `carve` applied to the whole training set, the test set as it is."""
    parts = carve(train.labels.numpy(), sizes, seed)
    chosen = {part: train.select(torch.from_numpy(positions)) for part, positions in parts.items()}
    shape = tuple(train.inputs.shape[1:])
    return DataSplits(name=name, **chosen, test=test, input_shape=shape, layout=layout, class_names=tuple(class_names))
