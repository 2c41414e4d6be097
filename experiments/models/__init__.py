"""Networks of the experiments, one file each."""

from experiments.models.digits_cnn import DigitsCNN
from experiments.models.digits_mlp import DigitsMLP
from experiments.models.lenet5 import LeNet5
from experiments.models.lenet300 import LeNet300
from experiments.models.minilm import MiniLMEncoder, load_minilm
from experiments.models.resnet_cifar import CifarResNet, load_resnet_cifar

__all__ = [
    "CifarResNet", "DigitsCNN", "DigitsMLP", "LeNet5", "LeNet300", "MiniLMEncoder", "load_minilm", "load_resnet_cifar"
]  # fmt: skip
