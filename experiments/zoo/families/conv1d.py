"""Convolutions along a sequence, with average pooling between."""

from torch import Tensor, nn

from experiments.zoo.inputs import InputSpec
from experiments.zoo.layers import ChannelInput, Classifier, conv_block, rounded
from experiments.zoo.recipe import Recipe

# Shorter sequences are not pooled further.
_SHORTEST = 6


class Conv1dNet(nn.Module):
    """`depth` convs over a signal or embedded tokens, each `expansion` times as wide as the one before."""

    def __init__(self, recipe: Recipe, spec: InputSpec) -> None:
        super().__init__()
        self.input = ChannelInput(spec, embedding=rounded(recipe.width / 2))
        channels, (length,) = self.input.channels, spec.size
        self.layers = nn.Sequential()
        for layer in range(recipe.depth):
            width = rounded(recipe.width * recipe.expansion**layer)
            self.layers.append(conv_block(1, channels, width, recipe.kernel, recipe.norm, recipe.activation))
            channels = width
            if length // 2 >= _SHORTEST:
                self.layers.append(nn.AvgPool1d(2))
                length //= 2
        self.classifier = Classifier(recipe.pooling, channels, (length,), spec.classes)

    def forward(self, inputs: Tensor) -> Tensor:
        return self.classifier(self.layers(self.input(inputs)))
