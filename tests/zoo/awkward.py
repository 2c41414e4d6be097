"""Architectures of the zoo that do what forward functions should not do, and do."""

import torch
from architecture import Zoo, image, sequence, tokens
from torch import Tensor, nn
from torch.nn import functional as F

ZOO = Zoo()


@ZOO.add(sequence(5, 4), groups={"fc1:out": 8}, blocked={"gru": "recurrent"})
class GruFront(nn.Module):
    """A recurrent front that must stay, and a tail that can be pruned."""

    def __init__(self) -> None:
        super().__init__()
        self.gru = nn.GRU(4, 6, batch_first=True)
        self.fc1, self.fc2 = nn.Linear(6, 8), nn.Linear(8, 3)

    def forward(self, x: Tensor) -> Tensor:
        x, _ = self.gru(x)
        return self.fc2(F.relu(self.fc1(x[:, -1])))


@ZOO.add(sequence(5, 4), groups={"embed:out": 6}, blocked={"lstm": "recurrent"})
class LstmMiddle(nn.Module):
    """A recurrent layer behind something prunable; the channels that enter it must stay."""

    def __init__(self) -> None:
        super().__init__()
        self.embed, self.mix = nn.Linear(4, 6), nn.Linear(6, 5)
        self.lstm, self.out = nn.LSTM(5, 4, batch_first=True), nn.Linear(4, 3)

    def forward(self, x: Tensor) -> Tensor:
        x, _ = self.lstm(self.mix(F.relu(self.embed(x))))
        return self.out(x)


def _image_and_vector(batch: int) -> dict[str, Tensor]:
    return {"picture": image(3, 6, 6)(batch), "facts": image(4, 1)(batch).flatten(1)}


@ZOO.add(_image_and_vector, groups={"conv:out": 6, "facts:out": 5, "mix:out": 7})
class TwoInputs(nn.Module):
    """Two named inputs, a dict of outputs."""

    def __init__(self) -> None:
        super().__init__()
        self.conv, self.facts, self.mix = nn.Conv2d(3, 6, 3), nn.Linear(4, 5), nn.Linear(11, 7)
        self.score, self.classes = nn.Linear(7, 1), nn.Linear(7, 3)

    def forward(self, picture: Tensor, facts: Tensor) -> dict[str, Tensor]:
        a = F.relu(self.conv(picture)).amax(dim=(2, 3))
        x = F.relu(self.mix(torch.cat([a, torch.tanh(self.facts(facts))], dim=-1)))
        return {"score": self.score(x).squeeze(-1), "classes": self.classes(x)}


@ZOO.add(image(3, 6, 6), groups={"conv2:out": 5}, blocked={"conv1": "output"})
class ManyOutputs(nn.Module):
    """A feature map is an output as well: its channels must stay."""

    def __init__(self) -> None:
        super().__init__()
        self.conv1, self.conv2, self.fc = nn.Conv2d(3, 4, 3), nn.Conv2d(4, 5, 3), nn.Linear(5, 2)

    def forward(self, x: Tensor) -> tuple[Tensor, list[Tensor]]:
        a = self.conv1(x)
        b = F.relu(self.conv2(F.relu(a)))
        return self.fc(b.mean((2, 3))), [a, b.mean(1)]


@ZOO.add(image(3, 6, 6), groups={"conv1:out": 2, "conv1:out/2": 4, "conv2:out": 5})
class Buffers(nn.Module):
    """Per-channel buffers and constants, some of them made in forward."""

    def __init__(self) -> None:
        super().__init__()
        self.conv1, self.conv2, self.fc = nn.Conv2d(3, 6, 3), nn.Conv2d(6, 5, 3), nn.Linear(5, 2)
        self.register_buffer("mean", torch.randn(1, 6, 1, 1))
        self.register_buffer("scale", torch.rand(6, 1, 1) + 0.5, persistent=False)
        self.constant = torch.rand(5)

    def forward(self, x: Tensor) -> Tensor:
        x = (self.conv1(x) - self.mean) / self.scale * torch.ones(6, 1, 1)
        x = torch.cat([x[:, :2], x[:, 2:] * 2], dim=1) + torch.full((1, 6, 1, 1), 0.5)
        x = F.relu(self.conv2(x)).mean((2, 3)) * self.constant + torch.tensor([0.1, 0.2, 0.3, 0.4, 0.5])
        return self.fc(x + x.new_zeros(5) + torch.zeros_like(x))


@ZOO.add(image(3, 6, 6), groups={"conv1:out": 6, "conv2:out": 6, "conv3:out": 6})
class InPlace(nn.Module):
    """In-place operations of every kind that change no shape."""

    def __init__(self) -> None:
        super().__init__()
        self.conv1, self.conv2 = nn.Conv2d(3, 6, 3, padding=1), nn.Conv2d(6, 6, 3, padding=1)
        self.conv3, self.fc = nn.Conv2d(6, 6, 3), nn.Linear(6, 2)

    def forward(self, x: Tensor) -> Tensor:
        a = self.conv1(x).relu_()
        b = self.conv2(a)
        b.add_(1.0).mul_(0.5)
        b += 0.25
        b.clamp_(min=-1.0).sigmoid_()
        c = F.leaky_relu_(self.conv3(b), 0.2)
        d = c * 2
        d -= 1
        return self.fc(F.dropout(d, 0.5, self.training, inplace=True).mean((2, 3)).tanh_())


@ZOO.add(sequence(5, 6), groups={"fc1:out": 8, "fc3:out": 6})
class NoGradSection(nn.Module):
    """A branch without gradients."""

    def __init__(self) -> None:
        super().__init__()
        self.fc1, self.fc2, self.fc3, self.fc4 = nn.Linear(6, 8), nn.Linear(8, 4), nn.Linear(6, 6), nn.Linear(6, 4)

    def forward(self, x: Tensor) -> Tensor:
        with torch.no_grad():
            target = self.fc2(F.relu(self.fc1(x)))
        return self.fc4(F.relu(self.fc3(x))) * target.detach()


@ZOO.add(tokens(5, 7), groups={"embed:out": 4, "mix:out": 6})
class Nonzero(nn.Module):
    """A number of rows that depends on the data: the channels are none of its business."""

    def __init__(self) -> None:
        super().__init__()
        self.embed, self.mix, self.out = nn.Embedding(7, 4), nn.Linear(4, 6), nn.Linear(6, 2)

    def forward(self, idx: Tensor) -> Tensor:
        x = self.embed(idx)
        return self.out(F.relu(self.mix(x[idx > 1])))


@ZOO.add(sequence(8, 4), groups={"0:out": 6, "2:out": 6})
def mixed_view() -> nn.Module:
    return nn.Sequential(nn.Linear(4, 6), nn.ReLU(), nn.Linear(6, 12), _Fold(), nn.Linear(6, 3))


class _Fold(nn.Module):
    """Half of the channels become positions: the same index of both halves goes."""

    def forward(self, x: Tensor) -> Tensor:
        return F.relu(x.view(-1, 16, 6))


@ZOO.add(sequence(4, 4), groups={"0:out": 4})
def view_to_grid() -> nn.Module:
    return nn.Sequential(nn.Linear(4, 8), nn.Tanh(), _Grid(), nn.Linear(8, 2))


class _Grid(nn.Module):
    """Views to a hard-coded grid of 2 x 4 and back: nothing attends over it, so the finer cut is taken."""

    def forward(self, x: Tensor) -> Tensor:
        b = x.size(0)
        x = x.view(b, 4, 2, 4) * 2
        return x.reshape(b, 4, 8)


@ZOO.add(image(3, 8, 8), groups={"trunk.0:out": 6, "extra:out": 4})
class DeepSupervision(nn.Module):
    """Unused parameters, an unused layer, and a module called inside a loop."""

    def __init__(self) -> None:
        super().__init__()
        self.trunk = nn.Sequential(nn.Conv2d(3, 6, 3, padding=1), nn.BatchNorm2d(6), nn.ReLU())
        self.extra, self.fc = nn.Conv2d(6, 4, 1), nn.Linear(4, 2)
        self.never = nn.Linear(3, 3)
        self.step = nn.Parameter(torch.tensor(0.3))

    def forward(self, x: Tensor) -> Tensor:
        x = self.trunk(x)
        total = 0
        for _ in range(3):
            total = total + self.extra(x * self.step)
        return self.fc(torch.flatten(total.mean((2, 3), keepdim=True), 1))


@ZOO.add(sequence(6, 4), groups={"fc1:out": 6})
class SoftmaxChannels(nn.Module):
    """A softmax and a norm over the channels that may go."""

    def __init__(self) -> None:
        super().__init__()
        self.fc1, self.fc2 = nn.Linear(4, 6), nn.Linear(6, 2)

    def forward(self, x: Tensor) -> Tensor:
        x = F.softmax(self.fc1(x), dim=-1)
        return self.fc2(F.normalize(x, dim=-1) * x.mean(-1, keepdim=True))


@ZOO.add(sequence(5, 4), groups={"fc1:out": 2, "fc1:out/2": 2, "fc1:out/3": 2, "fc2:out": 4})
class TemporalShift(nn.Module):
    """Ranges of the channels written into a prepared tensor, and one channel changed in place."""

    def __init__(self) -> None:
        super().__init__()
        self.fc1, self.fc2, self.fc3 = nn.Linear(4, 6), nn.Linear(6, 5), nn.Linear(5, 2)

    def forward(self, x: Tensor) -> Tensor:
        x = F.relu(self.fc1(x))
        out = torch.zeros_like(x)
        out[:, :-1, :2] = x[:, 1:, :2]
        out[:, 1:, 2:4] = x[:, :-1, 2:4]
        out[:, :, 4:] = x[:, :, 4:]
        y = self.fc2(out) * 0.5
        y[:, 0].mul_(2.0)
        y[:, :, 1:] += 1.0
        return self.fc3(torch.tanh(y))


@ZOO.add(image(3, 6, 6), groups={"conv1:out": 5, "conv1:out/2": 5, "conv2:out": 4})
class PooledHalf(nn.Module):
    """Halves of one convolution meet again: a pooling in between must not be left without channels."""

    def __init__(self) -> None:
        super().__init__()
        self.conv1, self.conv2, self.fc = nn.Conv2d(3, 10, 3, padding=1), nn.Conv2d(10, 4, 3), nn.Linear(4, 2)

    def forward(self, x: Tensor) -> Tensor:
        u, v = self.conv1(x).chunk(2, 1)
        x = F.relu(self.conv2(torch.cat([u, F.max_pool2d(v, 3, 1, 1)], 1)))
        return self.fc(x.mean((2, 3)))
