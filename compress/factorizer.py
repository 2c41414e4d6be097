"""The seam of factorizers: they say how one layer becomes two."""

from typing import Protocol, runtime_checkable

from compress.patches import LinearMap


@runtime_checkable
class Factorizer(Protocol):
    """Divides the kernel of a conv between the two layers that take its place.

    The first layer reduces the input channels to `rank` channels, the second one expands these to the output channels.
    Each spatial dimension, with its kernel, stride, padding and dilation, belongs to one of the two; a linear layer has
    none.

    Attributes:
        name: file name, config name and the `scheme` of a `Factorization`.
    """

    name: str

    def first_dims(self, how: LinearMap) -> tuple[int, ...]:
        """The spatial dimensions that belong to the first layer, ascending."""
