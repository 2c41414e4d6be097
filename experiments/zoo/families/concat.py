"""Networks that concatenate: every layer sees the outputs of all before it (DenseNet, Huang et al. 2017)."""

import torch
from torch import Tensor, nn

from experiments.zoo.inputs import InputSpec
from experiments.zoo.layers import ChannelInput, Classifier, conv_block, rounded
from experiments.zoo.recipe import Recipe

_POOLS = {1: nn.AvgPool1d, 2: nn.AvgPool2d}
_LAYERS_PER_BLOCK = 2


class GrowingBlock(nn.Module):
    """Convs that each add `growth` channels to those they see."""

    def __init__(self, recipe: Recipe, dims: int, in_ch: int, growth: int, n_layers: int) -> None:
        super().__init__()
        self.layers = nn.ModuleList(
            conv_block(dims, in_ch + layer * growth, growth, recipe.kernel, recipe.norm, recipe.activation)
            for layer in range(n_layers)
        )

    def forward(self, x: Tensor) -> Tensor:
        for layer in self.layers:
            x = torch.cat([x, layer(x)], dim=1)
        return x


class ConcatNet(nn.Module):
    """A conv, then `depth` blocks of two growing layers; between blocks a conv of 1 back to `width`, and pooling.

    Each growing layer adds `expansion` times `width` channels.
    """

    def __init__(self, recipe: Recipe, spec: InputSpec) -> None:
        super().__init__()
        self.input = ChannelInput(spec, embedding=rounded(recipe.width / 2))
        width, size = recipe.width, spec.size
        growth = rounded(width * recipe.expansion)
        block = (spec.dims, self.input.channels, width, recipe.kernel, recipe.norm, recipe.activation)
        self.stem = conv_block(*block)
        self.blocks = nn.Sequential()
        channels = width
        for number in range(recipe.depth):
            if number:
                self.blocks.append(conv_block(spec.dims, channels, width, 1, recipe.norm, recipe.activation))
                self.blocks.append(_POOLS[spec.dims](2))
                size = tuple(extent // 2 for extent in size)
            self.blocks.append(GrowingBlock(recipe, spec.dims, width, growth, _LAYERS_PER_BLOCK))
            channels = width + _LAYERS_PER_BLOCK * growth
        self.classifier = Classifier(recipe.pooling, channels, size, spec.classes)

    def forward(self, inputs: Tensor) -> Tensor:
        return self.classifier(self.blocks(self.stem(self.input(inputs))))
