"""Everything a training needs to go on bit for bit, in one file without pickle."""

import json
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

import safetensors
import torch
from safetensors.torch import load, save
from torch import Tensor, nn

from compress.errors import ArtifactError
from compress.files import write_atomic

_KEY = "training"


@dataclass
class Progress:
    """How far a training is.

    Attributes:
        epoch: number of whole epochs done.
        step: steps done within the epoch that is under way.
        total_steps: steps done since the start.
        loss_sum: sum of the losses of the epoch under way.
        history: one entry for each epoch done.
        best_epoch: epoch (counted from 1, 0 is before training) of the best validation, None without validation.
        best_score, best_loss: what that validation gave; the score is higher for better.
        idle: epochs since then.
        finished: whether the training came to its end.
    """

    epoch: int = 0
    step: int = 0
    total_steps: int = 0
    loss_sum: float = 0.0
    history: list[dict[str, float]] = field(default_factory=list)
    best_epoch: int | None = None
    best_score: float | None = None
    best_loss: float | None = None
    idle: int = 0
    finished: bool = False


def model_tensors(model: nn.Module) -> dict[str, Tensor]:
    """Copies of all parameters and buffers by name; tied ones once."""
    named = (*model.named_parameters(), *model.named_buffers())
    return {name: value.detach().clone(memory_format=torch.contiguous_format) for name, value in named}


def set_model_tensors(model: nn.Module, tensors: Mapping[str, Tensor]) -> None:
    """Copy values back into the parameters and buffers that they were taken from."""
    with torch.no_grad():
        for name, value in (*model.named_parameters(), *model.named_buffers()):
            value.copy_(tensors[name])


def save_state(
    path: str | Path, model: nn.Module, optimizer: torch.optim.Optimizer, best: Mapping[str, Tensor] | None,
    progress: Progress, settings: Mapping[str, Any], beside: nn.Module,
) -> None:  # fmt: skip
    """Write weights, also those trained beside the model, optimizer, best weights, random state and progress."""
    tensors = {f"model/{name}": value for name, value in model_tensors(model).items()}
    tensors |= {f"beside/{name}": value for name, value in model_tensors(beside).items()}
    tensors |= {f"best/{name}": value for name, value in (best or {}).items()}
    for index, entries in optimizer.state_dict()["state"].items():
        for name, value in entries.items():
            if isinstance(value, Tensor):
                tensors[f"optimizer/{index}/{name}"] = value.detach().contiguous()
    tensors["rng/cpu"] = torch.get_rng_state()
    if torch.cuda.is_available():
        tensors["rng/cuda"] = torch.cuda.get_rng_state()
    state = json.dumps({"progress": asdict(progress), "settings": dict(settings)}, sort_keys=True)
    content = save(tensors, metadata={_KEY: state})
    write_atomic(path, lambda file: file.write(content))


def load_state(
    path: str | Path, model: nn.Module, optimizer: torch.optim.Optimizer, settings: Mapping[str, Any], beside: nn.Module
) -> tuple[Progress, dict[str, Tensor] | None]:
    """Put back what `save_state` wrote; the progress and the best weights.

    Raises:
        ArtifactError: if the file is damaged, or was written with other settings or for another model.
    """
    path = Path(path)
    try:
        content = path.read_bytes()
        tensors = load(content)
        with safetensors.safe_open(path, "pt") as file:
            state = json.loads((file.metadata() or {})[_KEY])
        progress = Progress(**state["progress"])
    except (OSError, safetensors.SafetensorError, KeyError, TypeError, ValueError) as error:
        raise ArtifactError(f"{path} is damaged ({error}). Delete it to train from the start.") from error
    wanted = json.loads(json.dumps(dict(settings)))
    odd = sorted(k for k in wanted.keys() | state["settings"].keys() if wanted.get(k) != state["settings"].get(k))
    if odd:
        raise ArtifactError(
            f"{path} was written with other settings ({odd[0]}: {state['settings'].get(odd[0])!r}, now "
            f"{wanted.get(odd[0])!r}). Delete it to train from the start, or use the settings it was written with."
        )
    parts: dict[str, dict[str, Tensor]] = {}
    for name, value in tensors.items():
        part, _, rest = name.partition("/")
        parts.setdefault(part, {})[rest] = value
    for whole, part in ((model, "model"), (beside, "beside")):
        expected = {name: value.shape for name, value in (*whole.named_parameters(), *whole.named_buffers())}
        if expected != {name: value.shape for name, value in parts.get(part, {}).items()}:
            raise ArtifactError(f"{path} belongs to a model of other shapes. Delete it to train from the start.")
    set_model_tensors(model, parts["model"])
    set_model_tensors(beside, parts.get("beside", {}))
    entries: dict[int, dict[str, Tensor]] = {}
    for name, value in parts.get("optimizer", {}).items():
        index, _, key = name.partition("/")
        entries.setdefault(int(index), {})[key] = value
    optimizer.load_state_dict({"state": entries, "param_groups": optimizer.state_dict()["param_groups"]})
    torch.set_rng_state(parts["rng"]["cpu"])
    if "cuda" in parts["rng"] and torch.cuda.is_available():
        torch.cuda.set_rng_state(parts["rng"]["cuda"])
    return progress, parts.get("best")
