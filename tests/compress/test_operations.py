"""One operation at a time between a convolution of eight channels and a linear layer over what comes out."""

from collections.abc import Callable

import numpy as np
import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional as F

import compress


class Between(nn.Module):
    def __init__(self, function: Callable[[Tensor], Tensor]) -> None:
        super().__init__()
        self.conv, self.function = nn.Conv2d(3, 8, 1), function
        with torch.no_grad():
            channels = function(torch.zeros(2, 8, 4, 4)).shape[1]
        self.out = nn.Linear(channels, 2)

    def forward(self, x: Tensor) -> Tensor:
        return self.out(self.function(self.conv(x)).movedim(1, -1))


def _space_to_depth(y: Tensor) -> Tensor:
    b = y.shape[0]
    return y.view(b, 8, 2, 2, 2, 2).permute(0, 3, 5, 1, 2, 4).reshape(b, 32, 2, 2)


def _depth_to_space(y: Tensor) -> Tensor:
    b = y.shape[0]
    return y.view(b, 2, 2, 2, 4, 4).permute(0, 3, 4, 1, 5, 2).reshape(b, 2, 8, 8)


def _top_positions(y: Tensor) -> Tensor:
    y = y.flatten(2)
    return y.gather(2, y.topk(3, dim=2).indices)


REMOVABLE = {
    "roll": (8, lambda y: y.roll((1, 1), (2, 3))),
    "flip of space": (8, lambda y: y.flip(2)),
    "repeat of space": (8, lambda y: y.tile(1, 1, 2, 2).repeat_interleave(2, dim=3)),
    "softmax over space": (8, lambda y: y.flatten(2).softmax(-1)),
    "softmax over channels": (8, lambda y: y.softmax(1)),
    "maximum over space": (8, lambda y: y.flatten(2).max(2, keepdim=True)[0]),
    "standard deviation over space": (8, lambda y: y - y.std((2, 3), keepdim=True)),
    "windows": (8, lambda y: y.unfold(2, 2, 1).flatten(3)),
    "patches": (8, lambda y: F.unfold(y, 2)),
    "cumulative sum over space": (8, lambda y: y.cumsum(2)),
    "best positions": (8, _top_positions),
    "normalize over channels": (8, lambda y: F.normalize(y, dim=1)),
    "norm over channels": (8, lambda y: y / torch.linalg.norm(y, dim=1, keepdim=True)),
    "absolute norm": (8, lambda y: F.normalize(y, p=1, dim=1)),
    "einsum that keeps channels": (8, lambda y: torch.einsum("bchw,bchw->bc", y, y)[:, :, None]),
    "einsum that sums over channels": (8, lambda y: y * torch.einsum("bchw,bchv->bwv", y, y)[:, None]),
    "resampling": (8, lambda y: F.grid_sample(y, torch.zeros(y.shape[0], 2, 2, 2), align_corners=False)),
    "gated by halves": (4, lambda y: F.glu(y, 1)),
    "maximum of pairs": (4, lambda y: y.view(y.shape[0], 4, 2, 4, 4).max(2).values),
    "both signs": (8, lambda y: torch.cat([y.relu(), (-y).relu()], 1)),
    "stack and sum": (8, lambda y: torch.stack([y, y.exp()], 2).sum(2)),
    "constants": (8, lambda y: torch.where(y > 0, y, y.new_tensor(0.1)) + torch.ones(8, 1, 1)),
    "columns by number": (8, lambda y: y[:, :, [0, 2]]),
    "second of two pieces": (8, lambda y: torch.split(y, [3, 5], 1)[1]),
    "halves": (8, lambda y: y.tensor_split(2, dim=1)[0]),
    "padded channels": (8, lambda y: F.pad(y, (0, 0, 0, 0, 1, 2))),
    "circular padding": (8, lambda y: F.pad(y, (1, 1, 1, 1), mode="circular")),
    "mean of all": (8, lambda y: y - y.mean()),
    "largest channel": (8, lambda y: y - y.amax(1, keepdim=True)),
    "share of the sum": (8, lambda y: y / (y.abs().sum(1, keepdim=True) + 1)),
    "layer norm by hand": (8, lambda y: (y - y.mean(1, keepdim=True)) / (y.var(1, keepdim=True, unbiased=False) + 0.1)),
    "deviation of channels": (8, lambda y: y / (torch.std(y, 1, keepdim=True, correction=0) + y.std((1, 2)).mean())),
    "variance of channels": (8, lambda y: y * y.var(1)[:, None]),
    "space to depth": (8, _space_to_depth),
    "depth to space": (2, _depth_to_space),
    "product with a vector": (8, lambda y: y.flatten(2) @ torch.ones(16, 1)),
    "weighed by a vector": (8, lambda y: y * (y.movedim(1, -1) @ y.new_ones(8))[:, None]),
    "random leak": (8, lambda y: F.rrelu(y, training=False)),
    "expanded mean": (8, lambda y: y * y.mean(1, keepdim=True).expand(-1, 8, -1, -1)),
    "picks made in forward": (8, lambda y: y.gather(2, torch.zeros(y.shape[0], 8, 1, 4, dtype=torch.long))),
    "maximum over channels": (8, lambda y: y * torch.max(y, 1, keepdim=True)[0]),
    "least over channels": (8, lambda y: y * torch.min(y, 1)[0][:, None]),
    "cosine over channels": (8, lambda y: F.cosine_similarity(y, y.exp())[:, None] * y),
    "one map repeated over channels": (8, lambda y: y * y.mean(1, keepdim=True).repeat(1, 8, 1, 1)),
    "one map behind itself": (8, lambda y: y * torch.cat([y.mean(1, keepdim=True)] * 8, 1)),
    "outer product of sizes": (8, lambda y: y * torch.outer(torch.arange(4.0), torch.ones(4))),
    "mask of space": (8, lambda y: y.masked_fill(torch.ones(4, 4).tril() == 0, -1.0)),
}  # fmt: skip

BLOCKED = {
    "flip of channels": ("flip", lambda y: y.flip(1)),
    "every second channel": ("every 2th", lambda y: y[:, ::2]),
    "channels by number": ("computed numbers", lambda y: y[:, [0, 2, 4, 6]]),
    "logarithm of a sum": ("reduces over", lambda y: y + y.logsumexp(1, keepdim=True)),
    "norm of another order": ("not understood", lambda y: F.normalize(y, p=0.5, dim=1)),
    "Fourier": ("not understood", lambda y: torch.fft.rfft2(y).abs()),
    "scatter": ("not understood",
                lambda y: torch.zeros_like(y).scatter(2, torch.zeros(y.shape[0], 8, 1, 4, dtype=torch.long), y)),
    "negative padding of channels": ("padded", lambda y: F.pad(y, (0, 0, 0, 0, -1, -1))),
}  # fmt: skip


@pytest.mark.parametrize("name", list(REMOVABLE))
def test_channels_pass_through(name: str) -> None:
    expected, function = REMOVABLE[name]
    structure = compress.analyze(Between(function).eval(), torch.randn(2, 3, 4, 4))
    units = structure.units
    assert structure.n_removable == expected, units.blocked
    assert all(site.batch is not None for site in structure.sites)
    for seed in range(2):
        rng = np.random.default_rng(seed)
        rows = [rng.choice(np.flatnonzero(units.group == group)) for group in units.groups]
        # apply_plan compares masked and sliced model.
        compress.apply_plan(structure, compress.CompressionPlan.removing(units, [units.ids[row] for row in rows]))


@pytest.mark.parametrize("name", list(BLOCKED))
def test_channels_stay_with_a_reason(name: str) -> None:
    reason, function = BLOCKED[name]
    units = compress.find_units(Between(function).eval(), torch.randn(2, 3, 4, 4))
    assert units.groups == ()
    assert reason in dict(units.blocked)["conv"]
