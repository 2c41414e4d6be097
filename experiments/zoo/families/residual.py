"""Residual networks over signals, tokens and images."""

from torch import Tensor, nn

from experiments.zoo.inputs import InputSpec
from experiments.zoo.layers import ACTIVATIONS, ChannelInput, Classifier, conv_block, rounded
from experiments.zoo.recipe import Recipe

_BLOCKS_PER_STAGE = 2


class ResidualBlock(nn.Module):
    """Two convs and a shortcut, which is a conv of 1 where shapes differ; `expansion` widens the channels between."""

    def __init__(self, recipe: Recipe, dims: int, in_ch: int, out_ch: int, stride: int) -> None:
        super().__init__()
        between = rounded(out_ch * recipe.expansion)
        self.first = conv_block(dims, in_ch, between, recipe.kernel, recipe.norm, recipe.activation, stride)
        self.second = conv_block(dims, between, out_ch, recipe.kernel, recipe.norm, None)
        same = in_ch == out_ch and stride == 1
        self.shortcut = nn.Identity() if same else conv_block(dims, in_ch, out_ch, 1, recipe.norm, None, stride)
        self.activation = ACTIVATIONS[recipe.activation]()

    def forward(self, x: Tensor) -> Tensor:
        return self.activation(self.second(self.first(x)) + self.shortcut(x))


class ResidualNet(nn.Module):
    """A conv and `depth` residual blocks; every second one but the first halves the extents and widens by a half."""

    def __init__(self, recipe: Recipe, spec: InputSpec) -> None:
        super().__init__()
        self.input = ChannelInput(spec, embedding=rounded(recipe.width / 2))
        channels, size = recipe.width, spec.size
        self.stem = conv_block(spec.dims, self.input.channels, channels, recipe.kernel, recipe.norm, recipe.activation)
        self.blocks = nn.Sequential()
        for block in range(recipe.depth):
            stride = 2 if block % _BLOCKS_PER_STAGE == 1 else 1
            width = rounded(channels * 1.5) if stride > 1 else channels
            self.blocks.append(ResidualBlock(recipe, spec.dims, channels, width, stride))
            channels, size = width, tuple(-(-extent // stride) for extent in size)
        self.classifier = Classifier(recipe.pooling, channels, size, spec.classes)

    def forward(self, inputs: Tensor) -> Tensor:
        return self.classifier(self.blocks(self.stem(self.input(inputs))))
