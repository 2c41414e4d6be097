"""From a recipe to a trained network and the row that describes it."""

import time
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import torch
from torch import nn

from compress.counting import count_macs
from compress.finetuning import finetune_
from compress.structure import analyze
from compress.task import ClassificationTask, evaluate
from experiments.data import DataSplits, Part, ShuffledBatches, make_batches
from experiments.seeding import derive_seed, generator
from experiments.zoo.architecture import build_network
from experiments.zoo.recipe import Recipe
from experiments.zoo.store import SHA256, hash_weights, weights_of
from experiments.zoo.tasks import input_spec, load_task_data

CLIP_NORM = 5.0
# Of the training examples this many tell the training loss.
MAX_TRAIN_EXAMPLES = 2000
_EVALUATION_BATCH = 500


def train_network(recipe: Recipe) -> tuple[nn.Module, dict[str, Any]]:
    """`(network in evaluation mode, row)`: trained on one thread, with the same weights every time.

    The row holds the fields of the recipe, `parameters`, `macs` of one example (as `compress.unit_costs` counts them),
    `train_`, `validation_` and `test_` `loss` in nats and `accuracy_percent`, `seconds` and `weights_sha256`.

    Raises:
        DataError: if the data are missing, or the loss is not finite.
    """
    started = time.perf_counter()
    with _one_thread():
        splits = load_task_data(recipe.task)
        part = _share(splits.train, recipe)
        network = build_network(recipe)
        finetune_(
            network,
            ClassificationTask(),
            ShuffledBatches(part, recipe.batch_size, seed=derive_seed(f"zoo/order/{recipe.name}", recipe.seed)),
            epochs=recipe.epochs,
            lr=recipe.lr,
            optimizer=recipe.optimizer,
            weight_decay=recipe.weight_decay,
            clip_norm=CLIP_NORM,
            progress=False,
            seed=recipe.seed,
        )
        network.eval()
        row = {**recipe.to_json(), **_size(network, recipe), **_quality(network, part, splits)}
    row["seconds"] = round(time.perf_counter() - started, 2)
    return network, {**row, SHA256: hash_weights(weights_of(network))}


def _share(part: Part, recipe: Recipe) -> Part:
    """The fraction of the training examples that the recipe asks for, drawn at random, in their order."""
    n = max(1, round(recipe.train_fraction * len(part)))
    order = torch.randperm(len(part), generator=generator(f"zoo/examples/{recipe.name}", recipe.seed))
    return part.select(order[:n].sort().values)


def _size(network: nn.Module, recipe: Recipe) -> dict[str, int]:
    structure = analyze(network, (input_spec(recipe.task).example(),))
    return {
        "parameters": sum(parameter.numel() for parameter in network.parameters()),
        "macs": round(count_macs(structure)),
    }


def _quality(network: nn.Module, train: Part, splits: DataSplits) -> dict[str, float]:
    """Loss and accuracy on the training examples, without augmentation, and on the validation and test parts."""
    found = {}
    for name, part in (("train", train), ("validation", splits.validation), ("test", splits.test)):
        limit = MAX_TRAIN_EXAMPLES if name == "train" else None
        batches = make_batches(part, _EVALUATION_BATCH, limit)
        accuracy, loss = evaluate(network, ClassificationTask(), batches)
        found |= {f"{name}_loss": loss, f"{name}_accuracy_percent": accuracy}
    return found


@contextmanager
def _one_thread() -> Iterator[None]:
    """Within it torch computes on one thread, which is as fast for such networks and repeats bit for bit."""
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        yield
    finally:
        torch.set_num_threads(threads)
