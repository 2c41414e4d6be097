"""A recipe: everything that one network of the zoo follows from."""

from dataclasses import asdict, dataclass, fields
from typing import Any, Self

from compress.errors import CompressError


@dataclass(frozen=True)
class Recipe:
    """One network: what it is, what it learns, and how it is trained.

    Attributes:
        name: unique and readable, `residual-mnist1d-017`: family, task, number in the zoo.
        family: a key of `experiments.zoo.families.FAMILIES`.
        task: a key of `experiments.zoo.tasks.TASKS`.
        seed: of the initial weights and the order of the examples.
        width: channels of the first layers, a multiple of 4.
        depth: layers or blocks, as the family counts them.
        activation: a key of `experiments.zoo.layers.ACTIVATIONS`.
        norm: one of `experiments.zoo.layers.NORMS`.
        optimizer: `"sgd"` or `"adamw"`.
        lr: peak learning rate.
        weight_decay: of the optimizer.
        epochs: passes over the training examples.
        batch_size: of training.
        train_fraction: of the training examples that are used, in (0, 1].
        kernel: of convolutions; of attention the side of a patch, of recurrent networks the rows or samples of a step.
        heads: of attention.
        expansion: a ratio of widths, as the family says.
        pooling: what the classifier sees: `"mean"`, `"flatten"` or `"last"`.
    """

    name: str
    family: str
    task: str
    seed: int
    width: int
    depth: int
    activation: str
    norm: str
    optimizer: str
    lr: float
    weight_decay: float
    epochs: int
    batch_size: int
    train_fraction: float
    kernel: int = 3
    heads: int = 1
    expansion: float = 1.0
    pooling: str = "mean"

    def to_json(self) -> dict[str, Any]:
        """The fields as plain JSON types."""
        return asdict(self)

    @classmethod
    def from_json(cls, value: Any) -> Self:
        """The recipe whose fields are in `value`; other keys, such as results in a row, are left aside.

        Raises:
            CompressError: if a field is missing.
        """
        names = [field.name for field in fields(cls)]
        missing = [name for name in names if not isinstance(value, dict) or name not in value]
        if missing:
            raise CompressError(f"A recipe needs {missing}. Got {value!r:.200}.")
        return cls(**{name: value[name] for name in names})
