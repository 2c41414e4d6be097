"""Convolutional architectures of the zoo."""

import torch
from architecture import Zoo, image
from torch import Tensor, nn
from torch.nn import functional as F

ZOO = Zoo()


def conv_bn(
    n_in: int, n_out: int, kernel: int = 3, stride: int = 1, groups: int = 1, act: bool = True
) -> nn.Sequential:
    """Convolution, batch norm, relu."""
    layers = [
        nn.Conv2d(n_in, n_out, kernel, stride, kernel // 2, groups=groups, bias=False),
        nn.BatchNorm2d(n_out),
    ]
    return nn.Sequential(*layers, nn.ReLU(inplace=True)) if act else nn.Sequential(*layers)


@ZOO.add(image(3, 8, 8), groups={"0.0:out": 8, "1.0:out": 6, "3:out": 5})
def plain_conv_bn() -> nn.Module:
    return nn.Sequential(conv_bn(3, 8), conv_bn(8, 6, stride=2), nn.AvgPool2d(2), nn.Conv2d(6, 5, 1), nn.ReLU6(),
                         nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(5, 4))  # fmt: skip


class _PadBlock(nn.Module):
    def __init__(self, n_in: int, n_out: int, stride: int) -> None:
        super().__init__()
        self.conv1 = nn.Conv2d(n_in, n_out, 3, stride, 1, bias=False)
        self.bn1 = nn.BatchNorm2d(n_out)
        self.conv2 = nn.Conv2d(n_out, n_out, 3, 1, 1, bias=False)
        self.bn2 = nn.BatchNorm2d(n_out)
        self.pad = (n_out - n_in) // 2
        self.stride = stride

    def forward(self, x: Tensor) -> Tensor:
        out = self.bn2(self.conv2(F.relu(self.bn1(self.conv1(x)))))
        if self.stride == 2:
            x = F.pad(x[:, :, ::2, ::2], (0, 0, 0, 0, self.pad, self.pad), "constant", 0)
        return F.relu(out + x)


@ZOO.add(image(3, 8, 8), groups={"conv:out": 4, "blocks.0.conv1:out": 4, "blocks.1.conv1:out": 8,
                                 "blocks.1.conv2:out": 4, "blocks.2.conv1:out": 8})  # fmt: skip
class ResidualPad(nn.Module):
    """Shortcut A of the CIFAR ResNets: every second pixel, channels padded with zeros."""

    def __init__(self) -> None:
        super().__init__()
        self.conv = nn.Conv2d(3, 4, 3, 1, 1, bias=False)
        self.bn = nn.BatchNorm2d(4)
        self.blocks = nn.Sequential(_PadBlock(4, 4, 1), _PadBlock(4, 8, 2), _PadBlock(8, 8, 1))
        self.fc = nn.Linear(8, 5)

    def forward(self, x: Tensor) -> Tensor:
        x = self.blocks(F.relu(self.bn(self.conv(x))))
        return self.fc(F.avg_pool2d(x, x.size()[3]).view(x.size(0), -1))


class _Bottleneck(nn.Module):
    def __init__(self, n_in: int, width: int, n_out: int, stride: int = 1, groups: int = 1) -> None:
        super().__init__()
        self.conv1 = conv_bn(n_in, width, 1)
        self.conv2 = conv_bn(width, width, 3, stride, groups)
        self.conv3 = conv_bn(width, n_out, 1, act=False)
        self.shortcut = conv_bn(n_in, n_out, 1, stride, act=False) if stride > 1 or n_in != n_out else nn.Identity()

    def forward(self, x: Tensor) -> Tensor:
        out = self.conv3(self.conv2(self.conv1(x)))
        out += self.shortcut(x)
        return torch.relu_(out)


def _residual(groups: int) -> nn.Module:
    return nn.Sequential(conv_bn(3, 6), _Bottleneck(6, 4, 8, 2, groups), _Bottleneck(8, 4, 8, 1, groups),
                         nn.AdaptiveAvgPool2d(1), nn.Flatten(1), nn.Linear(8, 4))  # fmt: skip


@ZOO.add(image(3, 8, 8), groups={"0.0:out": 6, "1.conv1.0:out": 4, "1.conv2.0:out": 4, "1.conv3.0:out": 8,
                                 "2.conv1.0:out": 4, "2.conv2.0:out": 4})  # fmt: skip
def residual_projection() -> nn.Module:
    return _residual(1)


@ZOO.add(image(3, 8, 8), groups={"0.0:out": 6, "1.conv1.0:out": 2, "1.conv3.0:out": 8, "2.conv1.0:out": 2})
def resnext() -> nn.Module:
    return _residual(2)


class _DenseLayer(nn.Module):
    def __init__(self, n_in: int, growth: int) -> None:
        super().__init__()
        self.norm = nn.BatchNorm2d(n_in)
        self.conv = nn.Conv2d(n_in, growth, 3, padding=1, bias=False)

    def forward(self, x: Tensor) -> Tensor:
        return torch.cat([x, self.conv(F.relu(self.norm(x)))], 1)


@ZOO.add(image(3, 8, 8), groups={"0:out": 6, "1.conv:out": 4, "2.conv:out": 4, "4.0:out": 5, "5.conv:out": 4})
def dense_concat() -> nn.Module:
    return nn.Sequential(nn.Conv2d(3, 6, 3, padding=1), _DenseLayer(6, 4), _DenseLayer(10, 4), nn.MaxPool2d(2),
                         conv_bn(14, 5, 1), _DenseLayer(5, 4), nn.AdaptiveAvgPool2d(2), nn.Flatten(),
                         nn.Linear(36, 4))  # fmt: skip


class _InvertedResidual(nn.Module):
    def __init__(self, n_in: int, n_out: int, stride: int, expand: int) -> None:
        super().__init__()
        hidden = n_in * expand
        self.same = stride == 1 and n_in == n_out
        self.conv = nn.Sequential(
            nn.Conv2d(n_in, hidden, 1, bias=False), nn.BatchNorm2d(hidden), nn.ReLU6(inplace=True),
            nn.Conv2d(hidden, hidden, 3, stride, 1, groups=hidden, bias=False), nn.BatchNorm2d(hidden),
            nn.ReLU6(inplace=True), nn.Conv2d(hidden, n_out, 1, bias=False), nn.BatchNorm2d(n_out))  # fmt: skip

    def forward(self, x: Tensor) -> Tensor:
        return x + self.conv(x) if self.same else self.conv(x)


@ZOO.add(image(3, 8, 8), groups={"0.0:out": 4, "1.conv.0:out": 8, "1.conv.6:out": 6, "2.conv.0:out": 12,
                                 "3.0:out": 7})  # fmt: skip
def mobilenet_v2() -> nn.Module:
    return nn.Sequential(conv_bn(3, 4, stride=2), _InvertedResidual(4, 6, 1, 2), _InvertedResidual(6, 6, 1, 2),
                         conv_bn(6, 7, 1), nn.AdaptiveAvgPool2d((1, 1)), nn.Flatten(), nn.Dropout(0.2),
                         nn.Linear(7, 4))  # fmt: skip


class _Shuffle(nn.Module):
    def __init__(self, groups: int) -> None:
        super().__init__()
        self.groups = groups

    def forward(self, x: Tensor) -> Tensor:
        b, c, h, w = x.size()
        x = x.view(b, self.groups, c // self.groups, h, w)
        return torch.transpose(x, 1, 2).contiguous().view(b, -1, h, w)


@ZOO.add(image(3, 8, 8))
class ShuffleV1(nn.Module):
    """Grouped 1x1 convolutions with a shuffle of the channels by views."""

    def __init__(self) -> None:
        super().__init__()
        self.stem = conv_bn(3, 8)
        self.compress = conv_bn(8, 12, 1, groups=2)
        self.shuffle = _Shuffle(2)
        self.depthwise = conv_bn(12, 12, groups=12, act=False)
        self.expand = conv_bn(12, 8, 1, groups=2, act=False)
        self.fc = nn.Linear(8, 4)

    def forward(self, x: Tensor) -> Tensor:
        x = self.stem(x)
        x = F.relu(x + self.expand(self.depthwise(self.shuffle(self.compress(x)))))
        return self.fc(x.mean([2, 3]))


class _ShuffleUnit(nn.Module):
    def __init__(self, n: int) -> None:
        super().__init__()
        self.branch = nn.Sequential(conv_bn(n, n, 1), conv_bn(n, n, groups=n, act=False), conv_bn(n, n, 1))
        self.shuffle = _Shuffle(2)

    def forward(self, x: Tensor) -> Tensor:
        left, right = x.chunk(2, dim=1)
        return self.shuffle(torch.cat((left, self.branch(right)), dim=1))


@ZOO.add(image(3, 8, 8))
def shuffle_v2() -> nn.Module:
    return nn.Sequential(conv_bn(3, 8), _ShuffleUnit(4), _ShuffleUnit(4), conv_bn(8, 6, 1), nn.AdaptiveAvgPool2d(1),
                         nn.Flatten(), nn.Linear(6, 4))  # fmt: skip


@ZOO.add(image(4, 8, 8))
def native_channel_shuffle() -> nn.Module:
    return nn.Sequential(conv_bn(4, 8), nn.ChannelShuffle(2), conv_bn(8, 6), nn.AdaptiveAvgPool2d(1), nn.Flatten(),
                         nn.Linear(6, 4))  # fmt: skip


class _SqueezeExcite(nn.Module):
    def __init__(self, n: int, hidden: int) -> None:
        super().__init__()
        self.reduce = nn.Linear(n, hidden)
        self.expand = nn.Linear(hidden, n)

    def forward(self, x: Tensor) -> Tensor:
        b, c, _, _ = x.size()
        gate = torch.sigmoid(self.expand(F.relu(self.reduce(x.mean((2, 3)).view(b, c)))))
        return x * gate.view(b, c, 1, 1).expand_as(x)


@ZOO.add(image(3, 8, 8), groups={"0.0:out": 6, "1.reduce:out": 3, "2.0:out": 5})
def squeeze_excite() -> nn.Module:
    return nn.Sequential(conv_bn(3, 6), _SqueezeExcite(6, 3), conv_bn(6, 5), nn.AdaptiveAvgPool2d(1), nn.Flatten(),
                         nn.Linear(5, 4))  # fmt: skip


class _MBConv(nn.Module):
    def __init__(self, n: int, expand: int) -> None:
        super().__init__()
        hidden = n * expand
        self.expand = nn.Sequential(nn.Conv2d(n, hidden, 1, bias=False), nn.BatchNorm2d(hidden), nn.SiLU(inplace=True))
        self.depthwise = nn.Sequential(nn.Conv2d(hidden, hidden, 5, 1, 2, groups=hidden, bias=False),
                                       nn.BatchNorm2d(hidden), nn.SiLU(inplace=True))  # fmt: skip
        self.se_reduce = nn.Conv2d(hidden, 3, 1)
        self.se_expand = nn.Conv2d(3, hidden, 1)
        self.project = nn.Sequential(nn.Conv2d(hidden, n, 1, bias=False), nn.BatchNorm2d(n))

    def forward(self, x: Tensor) -> Tensor:
        out = self.depthwise(self.expand(x))
        scale = F.adaptive_avg_pool2d(out, 1)
        out = out * self.se_expand(F.silu(self.se_reduce(scale))).sigmoid()
        return self.project(out) + x


@ZOO.add(image(3, 8, 8), groups={"0.0:out": 4, "1.expand.0:out": 8, "1.se_reduce:out": 3, "2.expand.0:out": 8,
                                 "2.se_reduce:out": 3})  # fmt: skip
def efficientnet() -> nn.Module:
    return nn.Sequential(conv_bn(3, 4, stride=2), _MBConv(4, 2), _MBConv(4, 2), nn.AdaptiveAvgPool2d(1), nn.Flatten(),
                         nn.Dropout(0.1), nn.Linear(4, 4))  # fmt: skip


@ZOO.add(image(2, 8, 8), groups={"down1.0:out": 4, "down2.0:out": 6, "middle.0:out": 8, "up2:out": 6, "join2.0:out": 6,
                                 "up1:out": 4, "join1.0:out": 4})  # fmt: skip
class UNet(nn.Module):
    """Transposed convolutions, skips by concat, an image out."""

    def __init__(self) -> None:
        super().__init__()
        self.down1, self.down2, self.middle = conv_bn(2, 4), conv_bn(4, 6), conv_bn(6, 8)
        self.up2, self.join2 = nn.ConvTranspose2d(8, 6, 2, 2), conv_bn(12, 6)
        self.up1, self.join1 = nn.ConvTranspose2d(6, 4, 2, 2), conv_bn(8, 4)
        self.out = nn.Conv2d(4, 2, 1)

    def forward(self, x: Tensor) -> Tensor:
        a = self.down1(x)
        b = self.down2(F.max_pool2d(a, 2))
        c = self.middle(F.max_pool2d(b, 2))
        b = self.join2(torch.cat([self.up2(c), b], dim=1))
        a = self.join1(torch.cat([self.up1(b), a], dim=1))
        return self.out(a)


@ZOO.add(image(4, 6, 6), groups={"0:out": 3, "2:out": 5, "4:out": 2})
def grouped_transposed() -> nn.Module:
    # The first loses the same outputs in both groups; the last is cut by whole groups.
    return nn.Sequential(nn.ConvTranspose2d(4, 6, 3, 2, 1, groups=2), nn.PReLU(6),
                         nn.ConvTranspose2d(6, 10, 3, groups=2), nn.Tanh(), nn.ConvTranspose2d(10, 4, 3, groups=2),
                         nn.ReLU(), nn.Flatten(2), nn.Conv1d(4, 2, 3))  # fmt: skip


@ZOO.add(image(1, 28, 28), groups={"conv1:out": 6, "conv2:out": 16, "fc1:out": 12, "fc2:out": 8})
class LeNet5(nn.Module):
    """Flatten by hard-coded sizes."""

    def __init__(self) -> None:
        super().__init__()
        self.conv1, self.conv2 = nn.Conv2d(1, 6, 5, padding=2), nn.Conv2d(6, 16, 5)
        self.fc1, self.fc2, self.fc3 = nn.Linear(16 * 5 * 5, 12), nn.Linear(12, 8), nn.Linear(8, 10)

    def forward(self, x: Tensor) -> Tensor:
        x = F.max_pool2d(F.relu(self.conv1(x)), 2)
        x = F.max_pool2d(F.relu(self.conv2(x)), 2)
        x = x.view(-1, 16 * 5 * 5)
        return F.log_softmax(self.fc3(F.relu(self.fc2(F.relu(self.fc1(x))))), dim=1)


@ZOO.add(image(3, 8, 8), groups={"0:out": 6, "3:out": 4, "6:out": 4})
def group_norms() -> nn.Module:
    return nn.Sequential(nn.Conv2d(3, 6, 3), nn.GroupNorm(1, 6), nn.ReLU(), nn.Conv2d(6, 8, 3), nn.GroupNorm(2, 8),
                         nn.ReLU(), nn.Conv2d(8, 4, 1), nn.GroupNorm(4, 4), nn.ReLU(), nn.Flatten(),
                         nn.Linear(64, 4))  # fmt: skip


@ZOO.add(image(3, 8, 8), groups={"0:out": 6, "3:out": 5})
def instance_norms() -> nn.Module:
    return nn.Sequential(nn.Conv2d(3, 6, 3), nn.InstanceNorm2d(6, affine=True), nn.ReLU(), nn.Conv2d(6, 5, 3),
                         nn.InstanceNorm2d(5), nn.LeakyReLU(0.1, inplace=True), nn.AdaptiveMaxPool2d(2), nn.Flatten(),
                         nn.Linear(20, 4))  # fmt: skip


class _ConvNeXtBlock(nn.Module):
    def __init__(self, n: int) -> None:
        super().__init__()
        self.dwconv = nn.Conv2d(n, n, 3, padding=1, groups=n)
        self.norm = nn.LayerNorm(n, eps=1e-6)
        self.pwconv1, self.pwconv2 = nn.Linear(n, 2 * n), nn.Linear(2 * n, n)
        self.gamma = nn.Parameter(torch.full((n,), 0.5))

    def forward(self, x: Tensor) -> Tensor:
        out = self.norm(self.dwconv(x).permute(0, 2, 3, 1))
        out = self.gamma * self.pwconv2(F.gelu(self.pwconv1(out)))
        return x + out.permute(0, 3, 1, 2)


class _LayerNorm2d(nn.Module):
    """Layer norm over the channels of channels-first maps, written by hand."""

    def __init__(self, n: int) -> None:
        super().__init__()
        self.weight, self.bias = nn.Parameter(torch.rand(n) + 0.5), nn.Parameter(torch.rand(n))

    def forward(self, x: Tensor) -> Tensor:
        u = x.mean(1, keepdim=True)
        s = (x - u).pow(2).mean(1, keepdim=True)
        x = (x - u) / torch.sqrt(s + 1e-6)
        return self.weight[:, None, None] * x + self.bias[:, None, None]


@ZOO.add(image(3, 8, 8), groups={"0:out": 6, "2.pwconv1:out": 12, "3.pwconv1:out": 12})
def convnext() -> nn.Module:
    return nn.Sequential(nn.Conv2d(3, 6, 4, 4), _LayerNorm2d(6), _ConvNeXtBlock(6), _ConvNeXtBlock(6),
                         nn.AdaptiveAvgPool2d(1), nn.Flatten(1), nn.LayerNorm(6), nn.Linear(6, 4))  # fmt: skip


@ZOO.add(image(3, 8, 8), groups={"0:out": 6, "2:out": 5})
def prelu() -> nn.Module:
    return nn.Sequential(nn.Conv2d(3, 6, 3), nn.PReLU(6), nn.Conv2d(6, 5, 3), nn.PReLU(), nn.AdaptiveAvgPool2d(1),
                         nn.Flatten(), nn.Linear(5, 4))  # fmt: skip


@ZOO.add(image(3, 8, 8), groups={"stem:out": 6})
class SharedConv(nn.Module):
    """One convolution used twice: its inputs and outputs are the same channels."""

    def __init__(self) -> None:
        super().__init__()
        self.stem, self.conv, self.fc = nn.Conv2d(3, 6, 1), nn.Conv2d(6, 6, 3, padding=1), nn.Linear(6, 4)

    def forward(self, x: Tensor) -> Tensor:
        x = F.relu(self.conv(F.relu(self.stem(x))))
        return self.fc(F.relu(self.conv(x)).amax((2, 3)))


@ZOO.add(image(3, 9, 9), groups={"a:out": 4, "b.0:out": 3, "b.1:out": 5, "c.1:out": 3, "mix:out": 6})
class Inception(nn.Module):
    """Branches of several kinds, put behind each other."""

    def __init__(self) -> None:
        super().__init__()
        self.a = nn.Conv2d(3, 4, 1)
        self.b = nn.Sequential(nn.Conv2d(3, 3, 1), nn.Conv2d(3, 5, 3, padding="same"))
        self.c = nn.Sequential(nn.MaxPool2d(3, 1, 1), nn.Conv2d(3, 3, 1))
        self.mix, self.fc = nn.Conv2d(15, 6, 1), nn.Linear(6, 4)

    def forward(self, x: Tensor) -> Tensor:
        x = torch.cat([self.a(x), self.b(x), self.c(x), F.avg_pool2d(x, 3, 1, 1)], 1)
        return self.fc(F.relu(self.mix(F.relu(x))).mean(dim=(-2, -1)))


@ZOO.add(image(3, 6, 6), groups={"0:out": 8, "2:out": 3, "5:out": 4})
def pixel_shuffle() -> nn.Module:
    return nn.Sequential(nn.Conv2d(3, 8, 3, padding=1), nn.ReLU(), nn.Conv2d(8, 12, 3, padding=1), nn.PixelShuffle(2),
                         nn.ReLU(), nn.Conv2d(3, 4, 3, padding=1), nn.PixelUnshuffle(2), nn.Conv2d(16, 12, 1),
                         nn.PixelShuffle(2))  # fmt: skip


@ZOO.add(image(3, 32), groups={"0:out": 6, "3:out": 8, "6:out": 8})
def conv1d() -> nn.Module:
    return nn.Sequential(nn.Conv1d(3, 6, 5, padding="same"), nn.BatchNorm1d(6), nn.GELU(), nn.Conv1d(6, 8, 3, 2),
                         nn.GroupNorm(1, 8), nn.MaxPool1d(2), nn.ConvTranspose1d(8, 8, 2, 2), nn.ELU(),
                         nn.AdaptiveAvgPool1d(3), nn.Flatten(), nn.Linear(24, 4))  # fmt: skip


@ZOO.add(image(2, 6, 6, 6), groups={"0:out": 4, "4:out": 3})
def conv3d() -> nn.Module:
    return nn.Sequential(nn.Conv3d(2, 4, 3, padding=1), nn.BatchNorm3d(4), nn.ReLU(), nn.MaxPool3d(2),
                         nn.ConvTranspose3d(4, 3, 2), nn.Hardswish(), nn.AdaptiveAvgPool3d(2), nn.Flatten(),
                         nn.Linear(24, 4))  # fmt: skip


@ZOO.add(image(3, 8, 8), groups={"conv1:out": 6, "conv2:out": 6, "wide:out": 4})
class Upsampling(nn.Module):
    """Resizing, padding of space, and a dilated convolution."""

    def __init__(self) -> None:
        super().__init__()
        self.conv1 = nn.Conv2d(3, 6, 3, stride=2, padding=1)
        self.conv2 = nn.Conv2d(6, 6, 3, padding=2, dilation=2)
        self.wide, self.out = nn.Conv2d(6, 4, 3), nn.Conv2d(4, 2, 3)

    def forward(self, x: Tensor) -> Tensor:
        a = F.relu(self.conv1(x))
        b = F.interpolate(self.conv2(a), scale_factor=2, mode="bilinear", align_corners=False)
        c = F.relu(self.wide(F.pad(b, (1, 1, 1, 1), mode="reflect")))
        return self.out(F.pad(F.interpolate(c, size=(10, 10)), (1, 0, 1, 0)))
