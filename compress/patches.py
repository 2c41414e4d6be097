"""What a conv or linear layer multiplies its weight with, as rows of a matrix: the view in which it is a linear map."""

import math
from dataclasses import dataclass

import torch
from torch import Tensor, fx
from torch.nn import functional as F

from compress.graph import ATEN, argument

_DIMS = {ATEN.conv1d.default: 1, ATEN.conv2d.default: 2, ATEN.conv3d.default: 3,
         ATEN.conv1d.padding: 1, ATEN.conv2d.padding: 2, ATEN.conv3d.padding: 3}  # fmt: skip


@dataclass(frozen=True)
class LinearMap:
    """A conv or linear layer as `rows @ matrix`, for each group of channels.

    Attributes:
        dims: number of spatial dimensions, 0 for a linear layer.
        kernel, stride, dilation: of each spatial dimension.
        padding: `(before, after)` of each spatial dimension.
        groups: independent groups of channels; a depthwise conv has one for each channel.
    """

    dims: int
    kernel: tuple[int, ...] = ()
    stride: tuple[int, ...] = ()
    padding: tuple[tuple[int, int], ...] = ()
    dilation: tuple[int, ...] = ()
    groups: int = 1

    @property
    def channel_dim(self) -> int:
        """Where the output channels lie in the layer's output."""
        return 1 if self.dims else -1

    def positions(self, shape: torch.Size) -> int:
        """How many rows each example has."""
        return math.prod(shape[2:] if self.dims else shape[1:-1])

    def input_rows(self, x: Tensor, shape: torch.Size, chosen: Tensor | None = None) -> Tensor:
        """`(groups, n_rows, in_ch / groups * kernel)`: what each output value is a weighted sum of.

        Args:
            x: input of the layer, batch first.
            shape: of its output.
            chosen: flat positions (space, time) to take; None for all.
        """
        if not self.dims:
            rows = x.reshape(x.shape[0], -1, x.shape[-1])
            rows = rows if chosen is None else rows[:, chosen]
            return rows.reshape(1, -1, x.shape[-1])
        padded = F.pad(x, [amount for pair in reversed(self.padding) for amount in pair])
        sizes, steps = shape[2:], padded.stride()
        view = padded.as_strided(
            (*padded.shape[:2], *self.kernel, *sizes),
            (*steps[:2], *(s * d for s, d in zip(steps[2:], self.dilation, strict=True)),
             *(s * step for s, step in zip(steps[2:], self.stride, strict=True))))  # fmt: skip
        flat = torch.arange(math.prod(sizes), device=x.device) if chosen is None else chosen
        # Indexing the strided view copies the chosen positions only: (batch, in_ch, *kernel, n_chosen).
        taken = view[(..., *torch.unravel_index(flat, sizes))]
        taken = taken.reshape(x.shape[0], self.groups, -1, len(flat))
        return taken.permute(1, 0, 3, 2).reshape(self.groups, -1, taken.shape[2])

    def output_rows(self, y: Tensor, chosen: Tensor | None = None) -> Tensor:
        """`(groups, n_rows, out_ch / groups)`: values shaped like the layer's output, in the order of `input_rows`."""
        rows = y.movedim(1, -1) if self.dims else y
        rows = rows.reshape(y.shape[0], -1, rows.shape[-1])
        rows = rows if chosen is None else rows[:, chosen]
        return rows.reshape(-1, self.groups, rows.shape[-1] // self.groups).movedim(1, 0)

    def matrix(self, weight: Tensor) -> Tensor:
        """`(groups, in_ch / groups * kernel, out_ch / groups)`: the weight as a matrix."""
        return weight.reshape(self.groups, weight.shape[0] // self.groups, -1).transpose(1, 2)

    def weight(self, matrix: Tensor, shape: torch.Size) -> Tensor:
        """The weight of this shape, from its matrix."""
        return matrix.transpose(1, 2).reshape(shape)


def linear_map(node: fx.Node, weight: Tensor) -> LinearMap | None:
    """How the call `node` multiplies `weight`; None if it is neither a conv nor a linear layer."""
    if node.target is ATEN.linear.default:
        return LinearMap(0)
    dims = _DIMS.get(node.target)
    if dims is None:
        return None
    kernel = tuple(weight.shape[2:])
    stride, dilation = (_each(argument(node, i, name, 1), dims) for i, name in ((3, "stride"), (5, "dilation")))
    padding = argument(node, 4, "padding", 0)
    if padding == "valid":
        padding = 0
    if padding == "same":
        totals = [d * (k - 1) for d, k in zip(dilation, kernel, strict=True)]
        pairs = tuple((total // 2, total - total // 2) for total in totals)
    else:
        pairs = tuple((p, p) for p in _each(padding, dims))
    return LinearMap(dims, kernel, stride, pairs, dilation, argument(node, 6, "groups", 1))


def _each(value: int | list[int], dims: int) -> tuple[int, ...]:
    values = [value] if isinstance(value, int) else list(value)
    return tuple(values * dims if len(values) == 1 else values)
