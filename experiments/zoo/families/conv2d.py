"""Convolutions over images with max pooling, then a hidden linear layer: LeNet and VGG in small."""

from torch import Tensor, nn

from experiments.zoo.inputs import InputSpec
from experiments.zoo.layers import conv_block, linear_block, rounded
from experiments.zoo.recipe import Recipe

# Smaller images are not pooled further.
_SMALLEST = 3


class Conv2dNet(nn.Module):
    """`depth` convs, each `expansion` times as wide as the one before, pooled after the first and every second one.

    The hidden layer has twice the first conv's width; `pooling` says what it sees.
    """

    def __init__(self, recipe: Recipe, spec: InputSpec) -> None:
        super().__init__()
        channels, size = spec.shape[0], spec.size[0]
        self.layers = nn.Sequential()
        for layer in range(recipe.depth):
            width = rounded(recipe.width * recipe.expansion**layer)
            self.layers.append(conv_block(2, channels, width, recipe.kernel, recipe.norm, recipe.activation))
            channels = width
            if layer % 2 == 0 and size // 2 >= _SMALLEST:
                self.layers.append(nn.MaxPool2d(2))
                size //= 2
        self.squeeze = nn.AdaptiveAvgPool2d(1) if recipe.pooling == "mean" else nn.Identity()
        values = channels * (1 if recipe.pooling == "mean" else size * size)
        self.hidden = linear_block(values, 2 * recipe.width, "none", recipe.activation)
        self.classifier = nn.Linear(2 * recipe.width, spec.classes)

    def forward(self, images: Tensor) -> Tensor:
        return self.classifier(self.hidden(self.squeeze(self.layers(images)).flatten(1)))
