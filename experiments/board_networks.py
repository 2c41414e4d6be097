"""The networks of the boards on which plans are compared: those of a zoo, and trained ones that no zoo has."""

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import safetensors.torch
from filelock import FileLock
from torch import nn

from compress.allocator import Constraints
from compress.files import write_atomic
from compress.finetuning import finetune_
from compress.task import ClassificationTask, Task
from experiments.data import DataSplits, ShuffledBatches, load_cifar10, load_mnist, load_stsb
from experiments.embedding_task import EmbeddingTask
from experiments.models.lenet5 import LeNet5
from experiments.models.minilm import load_minilm
from experiments.models.resnet_cifar import load_resnet_cifar
from experiments.seeding import derive_seed
from experiments.subject import RepairSettings
from experiments.zoo import load_network

Loaded = tuple[nn.Module, DataSplits, Task]


@dataclass(frozen=True)
class BoardNetwork:
    """A trained network and what is done to its plans.

    Attributes:
        family, task: what it is, and what it is for.
        load: gives the network, its data and its task; the folder is for weights that must be trained first.
        repair: the same for all methods.
        shares_data_with: tasks of the zoo whose examples overlap with its own.
    """

    family: str
    task: str
    load: Callable[[Path], Loaded]
    repair: RepairSettings
    shares_data_with: tuple[str, ...] = ()


def zoo_network(zoo: str | Path, name: str) -> BoardNetwork:
    """A network of the zoo in this folder."""
    family, task, _ = name.split("-")

    def load(folder: Path) -> Loaded:
        model, data, _ = load_network(zoo, name)
        return model, data, ClassificationTask()

    return BoardNetwork(family, task, load, RepairSettings())


def _resnet20(folder: Path) -> Loaded:
    return load_resnet_cifar(20).eval(), load_cifar10(calibration=2000, channels_last=True), ClassificationTask()


def _lenet5(folder: Path) -> Loaded:
    data, path = load_mnist(), folder / "lenet5.safetensors"
    model = LeNet5()
    path.parent.mkdir(parents=True, exist_ok=True)
    with FileLock(path.with_suffix(".lock")):
        if not path.exists():
            batches = ShuffledBatches(data.train, 128, derive_seed("lenet5", 0))
            finetune_(model, ClassificationTask(), batches, epochs=3, lr=3e-3, optimizer="adamw", weight_decay=1e-2)
            content = safetensors.torch.save(model.state_dict())
            write_atomic(path, lambda file: file.write(content))
    model.load_state_dict(safetensors.torch.load_file(path))
    return model.eval(), data, ClassificationTask()


def _minilm(folder: Path) -> Loaded:
    return load_minilm().eval(), load_stsb(), EmbeddingTask()


# At a rate of 0.02 the training of some plans breaks (validation 21 % where 0.005 gives 85 %); others end alike.
_LOGITS: Mapping[str, Any] = {"optimizer": "sgd", "lr": 0.005, "weight_decay": 5e-4, "alpha": 1.0, "temperature": 20.0,
                              "precision": "float32"}  # fmt: skip
BOARD_NETWORKS: Mapping[str, BoardNetwork] = {
    # The residual streams stay: only channels inside the blocks go.
    "resnet20": BoardNetwork(
        "residual", "cifar10", _resnet20,
        RepairSettings(512, 128, 20, 128, True, _LOGITS,
                       Constraints(floor=0.05, pinned=("conv1:out", "layer2.0.conv2:out", "layer3.0.conv2:out")),
                       judged=2000),
    ),
    "lenet5": BoardNetwork("conv2d", "mnist", _lenet5, RepairSettings(judged=3000), ("small_mnist",)),
    "minilm": BoardNetwork(
        "attention", "stsb", _minilm,
        RepairSettings(96, 24, 6, 32, False, {"optimizer": "adamw", "lr": 2e-4, "alpha": 0.0}, judged=300),
    ),
}  # fmt: skip
