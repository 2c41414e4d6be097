"""The folder of a zoo: `networks/NAME.safetensors` and `networks/NAME.json`, the row that says what the network is."""

import hashlib
from pathlib import Path
from typing import Any

import safetensors.torch
from safetensors import SafetensorError
from torch import nn

from compress.errors import ArtifactError, CompressError
from compress.files import read_json, write_atomic, write_json
from experiments.data import DataSplits
from experiments.zoo.architecture import build_network
from experiments.zoo.recipe import Recipe
from experiments.zoo.tasks import load_task_data

NETWORKS = "networks"
SHA256 = "weights_sha256"


def weights_of(network: nn.Module) -> bytes:
    """Parameters and buffers as the content of a safetensors file, the same for the same weights."""
    return safetensors.torch.save({name: value.contiguous() for name, value in network.state_dict().items()})


def hash_weights(content: bytes) -> str:
    """sha256 of the content of a weights file."""
    return hashlib.sha256(content).hexdigest()


def store_network(folder: str | Path, network: nn.Module, row: dict[str, Any]) -> None:
    """Write the weights, then the row: where there is a row, there is a whole network.

    Raises:
        ArtifactError: if the folder cannot be written.
    """
    weights, row_path = _paths(folder, row["name"])
    content = weights_of(network)
    write_atomic(weights, lambda file: file.write(content))
    write_json(row_path, row)


def read_row(folder: str | Path, name: str) -> dict[str, Any]:
    """The row of one network. Raises ArtifactError naming the file if it is missing or damaged."""
    return _read_row(_paths(folder, name)[1])


def read_rows(folder: str | Path) -> list[dict[str, Any]]:
    """The rows of all networks in the folder, in the order of their numbers.

    Raises:
        ArtifactError: naming a file that is damaged, or the folder if it holds no network.
    """
    paths = sorted((Path(folder) / NETWORKS).glob("*.json"), key=_order)
    if not paths:
        raise ArtifactError(f"{Path(folder) / NETWORKS} holds no network. Build the zoo first (experiment=zoo).")
    return [_read_row(path) for path in paths]


def holds(folder: str | Path, recipe: Recipe) -> bool:
    """Whether the network of this very recipe is in the folder, undamaged."""
    weights, row_path = _paths(folder, recipe.name)
    if not row_path.exists():
        return False
    try:
        row = _read_row(row_path)
        _read_weights(weights, row)
        return Recipe.from_json(row) == recipe
    except CompressError:
        return False


def load_network(folder: str | Path, name: str) -> tuple[nn.Module, DataSplits, dict[str, Any]]:
    """`(network in evaluation mode, data of its task, row)`, with the weights checked against the row.

    Raises:
        ArtifactError: naming the file that is missing, damaged or does not fit. DataError: without the data.
    """
    weights, row_path = _paths(folder, name)
    row = _read_row(row_path)
    content = _read_weights(weights, row)
    network = build_network(Recipe.from_json(row))
    try:
        network.load_state_dict(safetensors.torch.load(content))
    except (SafetensorError, RuntimeError) as error:
        raise ArtifactError(
            f"{weights} does not fit the network of its row ({str(error).splitlines()[0]}). Build it again."
        ) from error
    return network.eval(), load_task_data(row["task"]), row


def _order(path: Path) -> tuple[int, str, str]:
    number = path.stem.rpartition("-")[2]
    return len(number), number, path.stem


def _paths(folder: str | Path, name: str) -> tuple[Path, Path]:
    stem = Path(folder) / NETWORKS / name
    return stem.with_name(f"{name}.safetensors"), stem.with_name(f"{name}.json")


def _read_row(path: Path) -> dict[str, Any]:
    row = read_json(path)
    try:
        recipe = Recipe.from_json(row)
    except CompressError as error:
        raise ArtifactError(f"{path} is not the row of a network: {error} Delete it and build it again.") from error
    if recipe.name != path.stem or not isinstance(row.get(SHA256), str):
        raise ArtifactError(f"{path} is not the row of network {path.stem!r}. Delete it and build it again.")
    return row


def _read_weights(path: Path, row: dict[str, Any]) -> bytes:
    try:
        content = path.read_bytes()
    except OSError as error:
        raise ArtifactError(f"Cannot read {path}: {error.strerror or error}. Build the network again.") from error
    if hash_weights(content) != row[SHA256]:
        raise ArtifactError(f"{path} is damaged (its sha256 is not that of its row). Build the network again.")
    return content
