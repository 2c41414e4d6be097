"""Depthwise separable networks: MobileNet in small, over signals, tokens and images."""

from torch import Tensor, nn

from experiments.zoo.inputs import InputSpec
from experiments.zoo.layers import ChannelInput, Classifier, conv_block, rounded
from experiments.zoo.recipe import Recipe


class InvertedBlock(nn.Module):
    """A conv of 1 that widens by `expansion` (none if that is 1), a depthwise conv, a conv of 1 back.

    The input is added where shapes are equal (Sandler et al. 2018); without widening there is an activation instead
    (Howard et al. 2017).
    """

    def __init__(self, recipe: Recipe, dims: int, in_ch: int, out_ch: int, stride: int) -> None:
        super().__init__()
        inverted = recipe.expansion > 1
        hidden = rounded(in_ch * recipe.expansion)
        self.layers = nn.Sequential()
        if inverted:
            self.layers.append(conv_block(dims, in_ch, hidden, 1, recipe.norm, recipe.activation))
        self.layers.append(
            conv_block(dims, hidden, hidden, recipe.kernel, recipe.norm, recipe.activation, stride, groups=hidden)
        )
        self.layers.append(conv_block(dims, hidden, out_ch, 1, recipe.norm, None if inverted else recipe.activation))
        self.adds = inverted and stride == 1 and in_ch == out_ch

    def forward(self, x: Tensor) -> Tensor:
        return x + self.layers(x) if self.adds else self.layers(x)


class DepthwiseNet(nn.Module):
    """A conv and `depth` blocks; the second and the fourth halve the extents and widen by a half."""

    def __init__(self, recipe: Recipe, spec: InputSpec) -> None:
        super().__init__()
        self.input = ChannelInput(spec, embedding=rounded(recipe.width / 2))
        channels, size = recipe.width, spec.size
        self.stem = conv_block(spec.dims, self.input.channels, channels, recipe.kernel, recipe.norm, recipe.activation)
        self.blocks = nn.Sequential()
        for block in range(recipe.depth):
            stride = 2 if block in (1, 3) else 1
            width = rounded(channels * 1.5) if stride > 1 else channels
            self.blocks.append(InvertedBlock(recipe, spec.dims, channels, width, stride))
            channels, size = width, tuple(-(-extent // stride) for extent in size)
        self.classifier = Classifier(recipe.pooling, channels, size, spec.classes)

    def forward(self, inputs: Tensor) -> Tensor:
        return self.classifier(self.blocks(self.stem(self.input(inputs))))
