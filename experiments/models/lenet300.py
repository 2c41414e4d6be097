"""LeNet-300-100: the fully connected net of the compression papers, 28 x 28 grey images to 10 classes."""

from torch import Tensor, nn
from torch.nn import functional as F


class LeNet300(nn.Module):
    """784-300-100-10 with ReLU: 266,610 parameters (LeCun et al. 1998; Han et al. 2016, Deep Compression)."""

    def __init__(self, num_classes: int = 10) -> None:
        super().__init__()
        self.fc1 = nn.Linear(28 * 28, 300)
        self.fc2 = nn.Linear(300, 100)
        self.fc3 = nn.Linear(100, num_classes)

    def forward(self, images: Tensor) -> Tensor:
        x = F.relu(self.fc1(images.flatten(1)))
        return self.fc3(F.relu(self.fc2(x)))
