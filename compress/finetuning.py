"""Fine-tuning with distillation: checkpointed, resumable, stopped early on validation, repeatable bit for bit."""

import json
import logging
import math
import sys
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import safetensors
import safetensors.torch
import torch
from rich.console import Console
from rich.progress import Progress
from torch import Tensor, nn
from torch.nn import functional as F

from compress.errors import ArtifactError, CompressError, DataError
from compress.files import write_atomic
from compress.task import Batch, Task, evaluate

_log = logging.getLogger(__name__)
OPTIMIZERS = ("sgd", "adam", "adamw")


@dataclass(frozen=True)
class Epoch:
    """One epoch: its number from 0, mean training loss, and the validation metric and loss (None without validation)."""

    number: int
    train_loss: float
    metric: float | None
    loss: float | None


def finetune_(
    model: nn.Module,
    task: Task,
    train_batches: Iterable[Batch],
    teacher: nn.Module | None = None,
    epochs: int = 3,
    *,
    lr: float = 1e-3,
    optimizer: str = "adamw",
    weight_decay: float = 0.0,
    alpha: float = 0.5,
    temperature: float = 4.0,
    validation: Sequence[Batch] | None = None,
    patience: int | None = None,
    checkpoint: str | Path | None = None,
    seed: int = 0,
    on_metrics: Callable[[Mapping[str, float], int], None] | None = None,
    description: str = "fine-tuning",
) -> list[Epoch]:
    """Train `model` in place on `(1 - alpha) task loss + alpha T^2 KL(teacher || model)`; returns its epochs.

    The learning rate rises over the first tenth of the steps and falls to zero along a cosine. With `validation` the
    weights of the best epoch are kept. The mode of the model and the global random state are restored.

    Args:
        model: any module, also a sliced or quantised graph.
        task: reads batches and gives the per-example loss.
        train_batches: iterated once per epoch. If it has `set_epoch(number)`, that is called first, so that a resumed
            training sees the same batches.
        teacher: the dense model; None trains on the task loss alone.
        epochs: how many; 0 does nothing.
        lr, optimizer, weight_decay: `"sgd"` (momentum 0.9, Nesterov), `"adam"` or `"adamw"`.
        alpha: weight of distillation in [0, 1]. temperature: of both softmaxes. Hinton, Vinyals, Dean 2015
            (arXiv:1503.02531). Outputs that are no logits are distilled by a task loss that is a distance.
        validation: batches; the metric is told after every epoch, the loss decides.
        patience: stop after this many epochs without a lower validation loss.
        checkpoint: a folder; after each epoch everything is kept there (safetensors and JSON). The same call goes on
            from it, bit for bit as if it had never stopped, at the same number of threads.
        seed: of dropout.
        on_metrics: called with metrics and the step after every epoch.
        description: name of the progress bar.

    Raises:
        CompressError: for a setting out of range. DataError: if there is no batch, or the loss is not finite.
        ArtifactError: if the checkpoint is damaged or of another training.
    """
    _check(epochs, lr, optimizer, alpha, temperature)
    if epochs == 0:
        return []
    run = _Run(model, task, train_batches, teacher, epochs, lr, optimizer, weight_decay, alpha, temperature)
    run.checkpoint = None if checkpoint is None else Path(checkpoint)
    modes = [(module, module.training) for module in model.modules()]
    with torch.random.fork_rng(devices=_devices(model)):
        torch.manual_seed(seed)
        try:
            run.resume()
            _train(run, validation, patience, on_metrics, description)
        finally:
            for module, training in modes:
                module.training = training
    return run.history


def _check(epochs: int, lr: float, optimizer: str, alpha: float, temperature: float) -> None:
    if optimizer not in OPTIMIZERS:
        raise CompressError(f"The 'optimizer' parameter of finetune_ must be one of {OPTIMIZERS}. Got {optimizer!r}.")
    if not 0 <= alpha <= 1:
        raise CompressError(f"The 'alpha' parameter of finetune_ must be a float in [0, 1]. Got {alpha!r}.")
    for name, value, least in (("epochs", epochs, 0), ("lr", lr, 0), ("temperature", temperature, 1e-9)):
        if not value >= least:
            raise CompressError(f"The '{name}' parameter of finetune_ must be at least {least}. Got {value!r}.")


def _devices(model: nn.Module) -> list[Any]:
    return sorted({p.device.index or 0 for p in model.parameters() if p.device.type == "cuda"})


def _train(
    run: "_Run",
    validation: Sequence[Batch] | None,
    patience: int | None,
    on_metrics: Callable[[Mapping[str, float], int], None] | None,
    description: str,
) -> None:
    console = Console(stderr=True)
    with Progress(console=console, transient=True, disable=not sys.stderr.isatty()) as bar:
        total = run.n_batches * run.epochs
        task = bar.add_task(description, total=total, completed=run.step)
        for number in range(len(run.history), run.epochs):
            if run.stale(patience):
                _log.info("%s: stopped early after %d epochs", description, number)
                break
            loss = run.train_epoch(number, lambda: bar.advance(task))
            metric, validation_loss = evaluate(run.model, run.task, validation) if validation else (None, None)
            run.finish_epoch(Epoch(number, loss, metric, validation_loss))
            _log.info("%s: epoch %d, loss %.4f, validation %s", description, number + 1, loss, metric)
            if on_metrics is not None:
                found = {"train_loss": loss, "metric": metric, "loss": validation_loss}
                on_metrics({name: value for name, value in found.items() if value is not None}, run.step)
    run.take_best()


class _Run:
    """State of one training."""

    def __init__(
        self, model: nn.Module, task: Task, batches: Iterable[Batch], teacher: nn.Module | None, epochs: int, lr: float,
        optimizer: str, weight_decay: float, alpha: float, temperature: float,
    ) -> None:  # fmt: skip
        self.model, self.task, self.batches, self.teacher = model, task, batches, teacher
        self.epochs, self.lr, self.alpha, self.temperature = epochs, lr, alpha, temperature
        self.n_batches = len(batches) if hasattr(batches, "__len__") else sum(1 for _ in batches)
        if not self.n_batches:
            raise DataError("The 'train_batches' parameter of finetune_ must hold at least one batch. Got none.")
        self.parameters = [p for p in model.parameters() if p.requires_grad]
        # Biases and norm weights are not decayed, as is usual.
        groups = [{"params": [p for p in self.parameters if p.dim() > 1], "weight_decay": weight_decay},
                  {"params": [p for p in self.parameters if p.dim() <= 1], "weight_decay": 0.0}]  # fmt: skip
        groups = [group for group in groups if group["params"]]
        kinds = {"sgd": lambda: torch.optim.SGD(groups, lr=lr, momentum=0.9, nesterov=True),
                 "adam": lambda: torch.optim.Adam(groups, lr=lr), "adamw": lambda: torch.optim.AdamW(groups, lr=lr)}  # fmt: skip
        self.optimizer = kinds[optimizer]()
        self.settings = {"epochs": epochs, "lr": lr, "optimizer": optimizer, "weight_decay": weight_decay, "alpha": alpha,
                         "temperature": temperature, "n_batches": self.n_batches,
                         "shapes": [list(p.shape) for p in self.parameters]}  # fmt: skip
        self.step = 0
        self.history: list[Epoch] = []
        self.best: dict[str, Tensor] | None = None
        self.best_loss = math.inf
        self.checkpoint: Path | None = None

    def train_epoch(self, number: int, on_step: Callable[[], None]) -> float:
        """Mean training loss of one epoch."""
        if hasattr(self.batches, "set_epoch"):
            self.batches.set_epoch(number)
        self.model.train()
        if self.teacher is not None:
            self.teacher.eval()
        total, count = 0.0, 0
        for batch in self.batches:
            loss = self._loss(batch)
            if not torch.isfinite(loss):
                raise DataError(
                    f"The training loss became {loss.item()} in step {self.step}. Lower the 'lr' ({self.lr})."
                )
            gradients = torch.autograd.grad(loss, self.parameters, allow_unused=True)
            self._update(gradients)
            total += loss.item()
            count += 1
            on_step()
        return total / count

    def _update(self, gradients: Sequence[Tensor | None]) -> None:
        """One step; gradients that the caller keeps in `.grad` are left alone."""
        kept = [p.grad for p in self.parameters]
        for parameter, gradient in zip(self.parameters, gradients, strict=True):
            parameter.grad = gradient
        for group in self.optimizer.param_groups:
            group["lr"] = self._rate()
        self.optimizer.step()
        for parameter, gradient in zip(self.parameters, kept, strict=True):
            parameter.grad = gradient
        self.step += 1

    def _rate(self) -> float:
        total = self.n_batches * self.epochs
        warm = max(total // 10, 1)
        if self.step < warm:
            return self.lr * (self.step + 1) / warm
        return self.lr * 0.5 * (1 + math.cos(math.pi * (self.step - warm) / max(total - warm, 1)))

    def _loss(self, batch: Batch) -> Tensor:
        inputs = self.task.inputs(batch)
        outputs = self.model(*inputs)
        distilled = self.teacher is not None and self.alpha > 0
        loss = self.task.loss(outputs, batch).mean() if not distilled or self.alpha < 1 else outputs.new_zeros(())
        if not distilled:
            return loss
        with torch.no_grad():
            target = self.teacher(*inputs)
        t = self.temperature
        divergence = F.kl_div(
            F.log_softmax(outputs / t, -1), F.log_softmax(target / t, -1), reduction="batchmean", log_target=True
        )
        return (1 - self.alpha) * loss + self.alpha * t * t * divergence

    # -- best weights and checkpoints --------------------------------------------------------------------------------

    def finish_epoch(self, epoch: Epoch) -> None:
        """Keep the epoch, the best weights, and a checkpoint."""
        self.history.append(epoch)
        if epoch.loss is not None and epoch.loss < self.best_loss:
            self.best_loss = epoch.loss
            self.best = {name: value.detach().clone() for name, value in self.model.state_dict().items()}
        if self.checkpoint is not None:
            self._save()

    def stale(self, patience: int | None) -> bool:
        """Whether the last `patience` epochs brought no lower validation loss."""
        losses = [epoch.loss for epoch in self.history]
        if patience is None or None in losses or len(losses) <= patience:
            return False
        return min(losses[-patience:]) >= min(losses[:-patience])

    def take_best(self) -> None:
        """Put the best weights into the model."""
        if self.best is not None:
            own = self.model.state_dict()
            with torch.no_grad():
                for name, value in self.best.items():
                    own[name].copy_(value)

    def _save(self) -> None:
        tensors = {f"model/{name}": value for name, value in self.model.state_dict().items()}
        tensors |= {f"best/{name}": value for name, value in (self.best or {}).items()}
        for i, parameter in enumerate(self.parameters):
            for name, value in self.optimizer.state.get(parameter, {}).items():
                if isinstance(value, Tensor):
                    tensors[f"optimizer/{i}/{name}"] = value
        tensors["rng"] = torch.get_rng_state()
        copies = {name: value.detach().cpu().clone().contiguous() for name, value in tensors.items()}
        state = {"settings": json.dumps(self.settings), "step": str(self.step),
                 "history": json.dumps([asdict(epoch) for epoch in self.history])}  # fmt: skip
        data = safetensors.torch.save(copies, metadata=state)
        write_atomic(self.checkpoint / "checkpoint.safetensors", lambda file: file.write(data))

    def resume(self) -> None:
        """Take up the checkpoint, if there is one."""
        path = self.checkpoint / "checkpoint.safetensors" if self.checkpoint else None
        if path is None or not path.exists():
            return
        try:
            with safetensors.safe_open(path, "pt") as file:
                state = file.metadata()
                tensors = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118 - no mapping
            settings, history = json.loads(state["settings"]), json.loads(state["history"])
        except (OSError, safetensors.SafetensorError, KeyError, TypeError, ValueError) as error:
            raise ArtifactError(
                f"The checkpoint {path} is damaged ({error}). Delete it to train from the start."
            ) from error
        if settings != json.loads(json.dumps(self.settings)):
            raise ArtifactError(f"The checkpoint {path} is of another training. Delete it or choose another folder.")
        self.step = int(state["step"])
        self.history = [Epoch(**epoch) for epoch in history]
        known = [epoch.loss for epoch in self.history if epoch.loss is not None]
        self.best_loss = min(known, default=math.inf)
        own = self.model.state_dict()
        with torch.no_grad():
            for name, value in own.items():
                value.copy_(tensors[f"model/{name}"])
        best = {name.removeprefix("best/"): value for name, value in tensors.items() if name.startswith("best/")}
        self.best = best or None
        for i, parameter in enumerate(self.parameters):
            prefix = f"optimizer/{i}/"
            found = {name.removeprefix(prefix): value for name, value in tensors.items() if name.startswith(prefix)}
            if found:
                # PyTorch keeps Adam's step counter on the CPU, moments beside the parameter.
                self.optimizer.state[parameter] = {
                    n: v if n == "step" else v.to(parameter.device) for n, v in found.items()
                }
        torch.set_rng_state(tensors["rng"])
        _log.info("resumed after epoch %d", len(self.history))
