"""Fully connected networks."""

from torch import Tensor, nn

from experiments.zoo.inputs import InputSpec
from experiments.zoo.layers import ChannelInput, linear_block, rounded
from experiments.zoo.recipe import Recipe


class MLPNet(nn.Module):
    """`depth` hidden layers over the flattened input; each is `expansion` times as wide as the one before."""

    def __init__(self, recipe: Recipe, spec: InputSpec) -> None:
        super().__init__()
        self.input = ChannelInput(spec, embedding=8)
        width = self.input.channels
        for extent in spec.size:
            width *= extent
        self.layers = nn.Sequential()
        for layer in range(recipe.depth):
            hidden = rounded(recipe.width * recipe.expansion**layer)
            self.layers.append(linear_block(width, hidden, recipe.norm, recipe.activation))
            width = hidden
        self.classifier = nn.Linear(width, spec.classes)

    def forward(self, inputs: Tensor) -> Tensor:
        return self.classifier(self.layers(self.input(inputs).flatten(1)))
