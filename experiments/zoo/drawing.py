"""Recipes drawn at random: families and tasks in turn, sizes and trainings from poor to good."""

import math
from dataclasses import dataclass, replace

import numpy as np

from compress.errors import CompressError
from experiments.seeding import derive_seed
from experiments.zoo.architecture import PAIRS, network_size
from experiments.zoo.layers import GROUPS
from experiments.zoo.recipe import Recipe
from experiments.zoo.tasks import input_spec

MIN_PARAMETERS, MAX_PARAMETERS = 5_000, 150_000
MAX_MACS = 3_000_000
# Seconds of training that a recipe may be expected to take on one core.
MAX_SECONDS = 20.0
# Training examples of each task, and the range of epochs over all of them: from too short to long enough. A network
# that is trained on a fraction of them sees as many examples, in more epochs.
_EXAMPLES = {"digits": 927, "mnist1d": 5976, "small_mnist": 6000, "shakespeare": 12_000}
_EPOCHS = {"digits": (6, 150), "mnist1d": (6, 60), "small_mnist": (2, 25), "shakespeare": (2, 12)}
# A quarter of the text is too little to learn anything of the rest.
_FRACTIONS = {task: (0.25, 0.5, 0.75, 1.0, 1.0) for task in _EPOCHS} | {"shakespeare": (0.5, 0.75, 1.0, 1.0)}
# Seconds of one training step, as measured on one core: for itself, and for every MAC of every example.
_STEP_S, _MAC_S = 4e-3, 2.5e-10
_ATTEMPTS = 1000


@dataclass(frozen=True)
class Ranges:
    """What the recipes of a family are drawn from; a choice that is listed twice is twice as likely.

    Attributes:
        width: smallest and largest, drawn evenly on a logarithmic scale.
        example_s: seconds that an example takes in a training step besides its MACs, mostly for moving values.
    """

    width: tuple[int, int]
    depth: tuple[int, ...]
    norm: tuple[str, ...]
    expansion: tuple[float, ...]
    kernel: dict[str, tuple[int, ...]]
    pooling: dict[str, tuple[str, ...]]
    heads: tuple[int, ...] = (1,)
    activation: tuple[str, ...] = ("relu", "relu", "gelu", "silu", "tanh", "leaky_relu", "elu")
    optimizer: tuple[str, ...] = ("sgd", "adamw")
    example_s: float = 6e-5


_CONV_NORMS = ("batch", "batch", "batch", "layer", "group", "none")
_ODD = {"image": (3, 3, 5), "signal": (3, 5, 7), "tokens": (3, 3, 5)}
# What a mean over the text forgets is where the next character stands.
_POOLING = {"image": ("mean", "flatten"), "signal": ("mean", "flatten"), "tokens": ("flatten", "last", "last")}
_NOTHING = {"image": (1,), "signal": (1,), "tokens": (1,)}
_MEAN = {"image": ("mean",), "signal": ("mean",), "tokens": ("mean",)}
RANGES = {
    "mlp": Ranges(
        (32, 256), (2, 3, 4, 5), ("batch", "layer", "none", "none"), (0.5, 0.75, 1.0), _NOTHING, _MEAN, example_s=1e-5
    ),
    "conv1d": Ranges((16, 96), (2, 3, 4), _CONV_NORMS, (1.0, 1.25, 1.5, 2.0), _ODD, _POOLING),
    "conv2d": Ranges((8, 48), (2, 3, 4, 5), _CONV_NORMS, (1.0, 1.25, 1.5, 2.0), _ODD, _POOLING),
    "residual": Ranges((8, 48), (2, 3, 4), _CONV_NORMS, (0.5, 1.0, 1.0, 1.5), _ODD, _POOLING),
    "depthwise": Ranges((16, 64), (2, 3, 4), _CONV_NORMS, (1.0, 2.0, 3.0), _ODD, _POOLING, example_s=1.6e-4),
    "concat": Ranges((8, 48), (1, 2, 3), _CONV_NORMS, (0.5, 0.75, 1.0), _ODD, _POOLING),
    "attention": Ranges(
        (16, 64),
        (1, 2, 3),
        ("layer", "layer", "rms"),
        (1.0, 2.0, 3.0),
        {"image": (2, 4, 4), "signal": (4, 5), "tokens": (1,)},
        {"image": ("mean",), "signal": ("mean", "flatten"), "tokens": ("last",)},
        heads=(2, 4, 4, 8),
        activation=("gelu", "silu", "silu", "relu", "tanh"),
        optimizer=("sgd", "adamw", "adamw", "adamw"),
        example_s=1e-4,
    ),
    "recurrent": Ranges(
        (16, 64),
        (2, 3),
        ("batch", "layer", "none", "none"),
        (1.0, 2.0, 3.0),
        # Few steps: tracing a GRU takes time in proportion.
        {"image": (2,), "signal": (4, 5, 8), "tokens": (3, 4)},
        _MEAN,
    ),
}


def draw_recipes(n: int, seed: int = 0) -> list[Recipe]:
    """The first `n` recipes of the zoo of this seed: a longer zoo begins with the shorter one.

    All pairs of a family and a task that it suits take turns, so that their numbers differ by one at most.

    Raises:
        CompressError: if `n` is below 1.
    """
    if n < 1:
        raise CompressError(f"The 'n' parameter of draw_recipes must be at least 1. Got {n}.")
    return [_draw(index, seed) for index in range(n)]


def _draw(index: int, seed: int) -> Recipe:
    """Recipe `index`: drawn again until its network is neither too small nor too big."""
    family, task = PAIRS[index % len(PAIRS)]
    name = f"{family}-{task}-{index:03d}"
    own_seed = derive_seed(f"zoo/{name}", seed) % 2**31
    rng = np.random.default_rng(own_seed)
    for _ in range(_ATTEMPTS):
        recipe = _with_training(_architecture(name, family, task, own_seed, rng), rng)
        parameters, macs = network_size(recipe)
        if MIN_PARAMETERS <= parameters <= MAX_PARAMETERS and macs <= MAX_MACS:
            return replace(recipe, epochs=_affordable(recipe, macs))
    raise AssertionError(f"no network of {name} has a size in range")


def _architecture(name: str, family: str, task: str, seed: int, rng: np.random.Generator) -> Recipe:
    """A recipe without training: its learning rate and epochs are 0."""
    ranges, kind = RANGES[family], input_spec(task).kind

    def pick(choices: tuple) -> object:
        return choices[rng.integers(len(choices))]

    heads = pick(ranges.heads)
    # A head has at least two channels.
    step = math.lcm(GROUPS, 2 * heads)
    width = step * max(1, round(_between(*ranges.width, rng) / step))
    return Recipe(
        name=name,
        family=family,
        task=task,
        seed=seed,
        width=width,
        depth=pick(ranges.depth),
        activation=pick(ranges.activation),
        norm=pick(ranges.norm),
        optimizer=pick(ranges.optimizer),
        lr=0.0,
        weight_decay=0.0,
        epochs=0,
        batch_size=pick((32, 64, 64, 128)),
        train_fraction=pick(_FRACTIONS[task]),
        kernel=pick(ranges.kernel[kind]),
        heads=heads,
        expansion=pick(ranges.expansion),
        pooling=pick(ranges.pooling[kind]),
    )


def _with_training(recipe: Recipe, rng: np.random.Generator) -> Recipe:
    """The recipe with learning rate, weight decay and the wanted number of epochs."""
    if recipe.optimizer == "adamw":
        lr, decays = _between(5e-4, 8e-3, rng), (0.0, 0.01, 0.1)
    else:
        lr, decays = _between(0.01, 0.15 if recipe.norm != "none" else 0.05, rng), (0.0, 1e-4, 5e-4, 2e-3)
    return replace(
        recipe,
        lr=float(f"{lr:.3g}"),
        weight_decay=decays[rng.integers(len(decays))],
        epochs=max(1, round(_between(*_EPOCHS[recipe.task], rng) / recipe.train_fraction)),
    )


def _affordable(recipe: Recipe, macs: int) -> int:
    """The wanted epochs, or as many as fit into `MAX_SECONDS`."""
    example_s = _STEP_S / recipe.batch_size + RANGES[recipe.family].example_s + macs * _MAC_S
    epoch_s = example_s * _EXAMPLES[recipe.task] * recipe.train_fraction
    return max(1, min(recipe.epochs, int(MAX_SECONDS / epoch_s)))


def _between(low: float, high: float, rng: np.random.Generator) -> float:
    """A number between, evenly on a logarithmic scale."""
    return math.exp(rng.uniform(math.log(low), math.log(high)))
