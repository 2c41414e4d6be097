"""A small conv net for the 8 x 8 digits of scikit-learn."""

from torch import Tensor, nn
from torch.nn import functional as F


class DigitsCNN(nn.Module):
    """Three conv blocks with batch norm and two linear layers: 8 x 8 grey images to 10 classes.

    With the default widths it has 90,090 parameters and 1,821,952 MACs per image.

    Args:
        widths: output channels of the three convs.
        hidden: width of the first linear layer.
        num_classes: number of outputs.
    """

    def __init__(self, widths: tuple[int, int, int] = (32, 64, 64), hidden: int = 128, num_classes: int = 10) -> None:
        super().__init__()
        first, second, third = widths
        self.conv1 = nn.Conv2d(1, first, 3, padding=1, bias=False)
        self.bn1 = nn.BatchNorm2d(first)
        self.conv2 = nn.Conv2d(first, second, 3, padding=1, bias=False)
        self.bn2 = nn.BatchNorm2d(second)
        self.conv3 = nn.Conv2d(second, third, 3, padding=1, bias=False)
        self.bn3 = nn.BatchNorm2d(third)
        self.fc1 = nn.Linear(third * 4, hidden)
        self.fc2 = nn.Linear(hidden, num_classes)

    def forward(self, images: Tensor) -> Tensor:
        x = F.relu(self.bn1(self.conv1(images)))
        x = F.max_pool2d(F.relu(self.bn2(self.conv2(x))), 2)
        x = F.max_pool2d(F.relu(self.bn3(self.conv3(x))), 2)
        return self.fc2(F.relu(self.fc1(x.flatten(1))))
