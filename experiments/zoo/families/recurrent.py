"""A GRU over the sequence, whose channels stay, then fully connected layers, whose channels may go."""

from torch import Tensor, nn

from experiments.zoo.inputs import InputSpec
from experiments.zoo.layers import linear_block, rounded
from experiments.zoo.recipe import Recipe


class RecurrentNet(nn.Module):
    """A GRU of `width` channels, then `depth` hidden layers over its last state, `expansion` times as wide.

    A step is `kernel` rows of an image, samples of a signal, or embedded tokens.
    """

    def __init__(self, recipe: Recipe, spec: InputSpec) -> None:
        super().__init__()
        features = spec.shape[-1] if spec.kind == "image" else 1
        self.embedding = None
        if spec.kind == "tokens":
            features = rounded(recipe.width / recipe.kernel)
            self.embedding = nn.Embedding(spec.tokens, features)
        self.step = recipe.kernel * features
        self.gru = nn.GRU(self.step, recipe.width, batch_first=True)
        hidden = rounded(recipe.width * recipe.expansion)
        self.layers = nn.Sequential()
        for layer in range(recipe.depth):
            self.layers.append(linear_block(hidden if layer else recipe.width, hidden, recipe.norm, recipe.activation))
        self.classifier = nn.Linear(hidden, spec.classes)

    def forward(self, inputs: Tensor) -> Tensor:
        x = inputs if self.embedding is None else self.embedding(inputs)
        states, _ = self.gru(x.flatten(1).unflatten(1, (-1, self.step)))
        return self.classifier(self.layers(states[:, -1]))
