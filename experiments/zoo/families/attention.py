"""Transformer encoders with gated feed-forward layers over patches or tokens."""

import math

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from experiments.zoo.inputs import InputSpec
from experiments.zoo.layers import ACTIVATIONS, Classifier, make_norm, rounded
from experiments.zoo.recipe import Recipe

_PATCHES = {"signal": nn.Conv1d, "image": nn.Conv2d}


class SelfAttention(nn.Module):
    """Every position looks at all; queries, keys and values have layers of their own."""

    def __init__(self, width: int, heads: int) -> None:
        super().__init__()
        self.heads = heads
        self.query, self.key, self.value = (nn.Linear(width, width) for _ in range(3))
        self.output = nn.Linear(width, width)

    def forward(self, x: Tensor) -> Tensor:
        batch, length, width = x.shape
        shape = (batch, length, self.heads, width // self.heads)
        query, key, value = (layer(x).view(shape).transpose(1, 2) for layer in (self.query, self.key, self.value))
        mixed = F.scaled_dot_product_attention(query, key, value)
        return self.output(mixed.transpose(1, 2).reshape(batch, length, width))


class GatedFeedForward(nn.Module):
    """`down(activation(gate(x)) * up(x))` (Shazeer 2020)."""

    def __init__(self, width: int, hidden: int, activation: str) -> None:
        super().__init__()
        self.gate, self.up, self.down = nn.Linear(width, hidden), nn.Linear(width, hidden), nn.Linear(hidden, width)
        self.activation = ACTIVATIONS[activation]()

    def forward(self, x: Tensor) -> Tensor:
        return self.down(self.activation(self.gate(x)) * self.up(x))


class EncoderBlock(nn.Module):
    """Attention and feed-forward, each after a norm and added to what it saw."""

    def __init__(self, recipe: Recipe) -> None:
        super().__init__()
        self.norm1, self.norm2 = (make_norm(recipe.norm, recipe.width, 0) for _ in range(2))
        self.attention = SelfAttention(recipe.width, recipe.heads)
        self.feed_forward = GatedFeedForward(recipe.width, rounded(recipe.width * recipe.expansion), recipe.activation)

    def forward(self, x: Tensor) -> Tensor:
        x = x + self.attention(self.norm1(x))
        return x + self.feed_forward(self.norm2(x))


class AttentionNet(nn.Module):
    """Patches of `kernel` samples or pixels a side (or tokens), positions, `depth` blocks, a norm, a linear layer.

    `expansion` is that of the feed-forward layers.
    """

    def __init__(self, recipe: Recipe, spec: InputSpec) -> None:
        super().__init__()
        if spec.kind == "tokens":
            self.embed, length = nn.Embedding(spec.tokens, recipe.width), spec.size[0]
        else:
            self.embed = _PATCHES[spec.kind](spec.shape[0], recipe.width, recipe.kernel, stride=recipe.kernel)
            length = math.prod(extent // recipe.kernel for extent in spec.size)
        self.tokens = spec.kind == "tokens"
        self.position = nn.Parameter(0.02 * torch.randn(1, length, recipe.width))
        self.blocks = nn.Sequential(*[EncoderBlock(recipe) for _ in range(recipe.depth)])
        self.norm = make_norm(recipe.norm, recipe.width, 0)
        self.classifier = Classifier(recipe.pooling, recipe.width, (length,), spec.classes)

    def forward(self, inputs: Tensor) -> Tensor:
        x = self.embed(inputs)
        if not self.tokens:
            x = x.flatten(2).transpose(1, 2)
        x = self.norm(self.blocks(x + self.position))
        return self.classifier(x.transpose(1, 2))
