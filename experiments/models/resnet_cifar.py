"""ResNet-20/32/44/56 for CIFAR-10, and the loader of their published weights."""

import hashlib
import pickle
from pathlib import Path

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from compress.errors import DataError
from experiments.data.root import data_root, require_files

# akamaster/pytorch_resnet_cifar10: the name of each file carries the first eight digits of its sha256.
PUBLISHED_WEIGHTS = {
    20: "resnet20-12fca82f.th",
    32: "resnet32-d509ac18.th",
    44: "resnet44-014dd654.th",
    56: "resnet56-4bfd9763.th",
}


class BasicBlock(nn.Module):
    """Two 3 x 3 convs and a shortcut without parameters (option A of He et al. 2016).

    Where the block halves the resolution, the shortcut takes every second pixel and pads the new channels with zeros,
    half of them on either side.
    """

    def __init__(self, in_ch: int, out_ch: int, stride: int) -> None:
        super().__init__()
        self.conv1 = nn.Conv2d(in_ch, out_ch, 3, stride=stride, padding=1, bias=False)
        self.bn1 = nn.BatchNorm2d(out_ch)
        self.conv2 = nn.Conv2d(out_ch, out_ch, 3, padding=1, bias=False)
        self.bn2 = nn.BatchNorm2d(out_ch)
        self.stride = stride
        self.new_channels = out_ch - in_ch

    def forward(self, x: Tensor) -> Tensor:
        y = F.relu(self.bn1(self.conv1(x)))
        y = self.bn2(self.conv2(y))
        if self.stride > 1:
            x = x[:, :, :: self.stride, :: self.stride]
        if self.new_channels:
            before = self.new_channels // 2
            x = F.pad(x, (0, 0, 0, 0, before, self.new_channels - before))
        return F.relu(y + x)


class CifarResNet(nn.Module):
    """A ResNet of `6 n + 2` layers for 32 x 32 images (He et al. 2016, section 4.2).

    Args:
        depth: 20, 32, 44, 56, ...: 6 n + 2.
        num_classes: number of outputs.
        width: channels of the first stage; the others have twice and four times as many.

    Raises:
        ValueError: if `depth` is not of that form.
    """

    def __init__(self, depth: int = 20, num_classes: int = 10, width: int = 16) -> None:
        super().__init__()
        if depth < 8 or (depth - 2) % 6:
            raise ValueError(
                f"The 'depth' parameter of CifarResNet must be 6 n + 2 (20, 32, 44, 56, ...). Got {depth}."
            )
        blocks = (depth - 2) // 6
        self.conv1 = nn.Conv2d(3, width, 3, padding=1, bias=False)
        self.bn1 = nn.BatchNorm2d(width)
        self.layer1 = _stage(width, width, blocks, stride=1)
        self.layer2 = _stage(width, 2 * width, blocks, stride=2)
        self.layer3 = _stage(2 * width, 4 * width, blocks, stride=2)
        self.linear = nn.Linear(4 * width, num_classes)

    def forward(self, images: Tensor) -> Tensor:
        x = F.relu(self.bn1(self.conv1(images)))
        x = self.layer3(self.layer2(self.layer1(x)))
        return self.linear(F.adaptive_avg_pool2d(x, 1).flatten(1))


def load_resnet_cifar(
    depth: int = 20, weights: str | Path | None = "published", root: str | Path | None = None
) -> CifarResNet:
    """A `CifarResNet` in evaluation mode with trained weights.

    Args:
        depth: 20, 32, 44 or 56.
        weights: `"published"` reads the file of akamaster/pytorch_resnet_cifar10 from `<data root>/cifar10_resnets`
            and checks its sha256; a path reads that file; None leaves the random initial weights.
        root: the data root, see `experiments.data.data_root`.

    Raises:
        DataError: if the file is missing, damaged, or belongs to another architecture.
    """
    model = CifarResNet(depth)
    if weights is None:
        return model.eval()
    if weights == "published":
        if depth not in PUBLISHED_WEIGHTS:
            raise DataError(f"The 'depth' parameter must be one of {sorted(PUBLISHED_WEIGHTS)} for published weights.")
        name = PUBLISHED_WEIGHTS[depth]
        (path,) = require_files(data_root(root) / "cifar10_resnets", [name], f"resnet{depth}")
        digest = hashlib.sha256(path.read_bytes()).hexdigest()
        if not digest.startswith(name.split("-")[1].removesuffix(".th")):
            raise DataError(f"{path} is damaged (sha256 {digest}). Delete it and fetch it again.")
    else:
        path = Path(weights)
    try:
        state = torch.load(path, map_location="cpu", weights_only=True)
    except (OSError, EOFError, RuntimeError, pickle.UnpicklingError) as error:
        raise DataError(f"Cannot read weights from {path}: {error}") from error
    state = state.get("state_dict", state)
    try:
        model.load_state_dict({name.removeprefix("module."): value for name, value in state.items()})
    except RuntimeError as error:
        raise DataError(f"{path} does not fit ResNet-{depth}: {str(error).splitlines()[-1].strip()}") from error
    return model.eval()


def _stage(in_ch: int, out_ch: int, blocks: int, stride: int) -> nn.Sequential:
    first = BasicBlock(in_ch, out_ch, stride)
    return nn.Sequential(first, *[BasicBlock(out_ch, out_ch, 1) for _ in range(blocks - 1)])
