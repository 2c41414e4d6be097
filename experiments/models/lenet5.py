"""LeNet-5 as shipped with Caffe: the conv net of the compression papers, 28 x 28 grey images to 10 classes."""

from torch import Tensor, nn
from torch.nn import functional as F


class LeNet5(nn.Module):
    """20-50 convs of 5 x 5 with max pooling, then 500-10: 431,080 parameters (Han et al. 2016, Deep Compression)."""

    def __init__(self, num_classes: int = 10) -> None:
        super().__init__()
        self.conv1 = nn.Conv2d(1, 20, 5)
        self.conv2 = nn.Conv2d(20, 50, 5)
        self.fc1 = nn.Linear(50 * 4 * 4, 500)
        self.fc2 = nn.Linear(500, num_classes)

    def forward(self, images: Tensor) -> Tensor:
        # Caffe's net has a ReLU after fc1 only; here, as in most later versions, each conv has one too.
        x = F.max_pool2d(F.relu(self.conv1(images)), 2)
        x = F.max_pool2d(F.relu(self.conv2(x)), 2)
        return self.fc2(F.relu(self.fc1(x.flatten(1))))
