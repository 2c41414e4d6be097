"""Training: fine-tuning with distillation from the dense model, or from scratch without a teacher."""

import itertools
import logging
import math
import time
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils import _pytree as pytree

from compress.distillation import Distillation
from compress.distillations.logits import LogitDistillation
from compress.distillations.logits import distillation_loss as distillation_loss
from compress.distiller import Distiller
from compress.errors import CompressError, DataError
from compress.graph import fingerprint
from compress.hashing import hash_state
from compress.optimizers import make_optimizer, relative_step
from compress.task import Batch, Task, evaluate, losses_of, outputs_of
from compress.training_bar import TrainingBar
from compress.training_hook import PreparingHook, TrainingHook
from compress.training_settings import check_settings, learning_rate, warn_of_idle_settings, warn_of_slow_precision
from compress.training_state import Progress, load_state, model_tensors, save_state, set_model_tensors

_log = logging.getLogger(__name__)
_LOG_EVERY = 10
TrainBatches = Callable[[int], Iterable[Batch]] | Iterable[Batch]


@dataclass(frozen=True)
class FinetuneReport:
    """What a training did.

    Attributes:
        history: one entry for each epoch: `epoch` (from 1), `train_loss`, `lr` at its end, and with validation `metric`
            and `loss`. Entry 0 is before training, if there is validation.
        best_epoch: the epoch whose weights the model has now; 0 if none was better than before training.
        steps: optimizer steps in all.
        stopped_early: whether patience ended it.
        resumed: whether it went on from a checkpoint.
    """

    history: tuple[dict[str, float], ...]
    best_epoch: int
    steps: int
    stopped_early: bool
    resumed: bool


def finetune_(
    model: nn.Module,
    task: Task,
    train_batches: TrainBatches,
    *,
    teacher: nn.Module | None = None,
    distillation: Distillation | None = None,
    epochs: int = 3,
    lr: float = 0.02,
    optimizer: str = "sgd",
    momentum: float = 0.9,
    weight_decay: float = 1e-4,
    schedule: str = "cosine",
    warmup: float = 0.05,
    temperature: float = 4.0,
    alpha: float = 0.5,
    clip_norm: float | None = None,
    precision: str = "float32",
    range_rate: float = 10.0,
    validation: Iterable[Batch] | None = None,
    patience: int | None = None,
    hooks: Sequence[TrainingHook] = (),
    checkpoint: str | Path | None = None,
    checkpoint_every_s: float | None = 120.0,
    checkpoint_every_steps: int | None = None,
    on_metrics: Callable[[dict[str, float], int], None] | None = None,
    progress: bool = True,
    seed: int = 0,
) -> FinetuneReport:
    """Train `model`, in place; with a teacher the loss is `(1 - alpha) task + alpha distillation`.

    At a fixed number of threads it repeats bit for bit, also when it was killed and goes on from its checkpoint. The
    modes of all modules, the gradients and the global random state are left as they were.

    Args:
        model: any module; a pruned or fake-quantised one as well.
        task: loss and metric.
        train_batches: a callable that gives the batches of epoch 0, 1, ...; or an iterable for every epoch alike, whose
            `set_epoch` is called first if it has one. The epochs are as long as the first.
        teacher: the dense model; None to learn from the task. A wrapper that may answer from memory names the model
            by `source_model`, which is asked where values of layers are compared.
        distillation: what the model is to have in common with its teacher; None for `LogitDistillation(temperature)`,
            for which the outputs must be logits (last dimension: classes).
        epochs: passes over the data.
        lr: peak learning rate.
        optimizer: `"sgd"` with Nesterov momentum, or `"adamw"`.
        weight_decay: of weights with two or more dimensions; biases and norms are not decayed.
        schedule: `"cosine"`: linear warm-up over the fraction `warmup` of all steps, then down to zero; `"one_cycle"`:
            up over 30 % of the steps, then down to zero; `"constant"`.
        temperature: of the distillation where none is given.
        alpha: share of the distillation; 0 ignores the teacher.
        clip_norm: largest norm of the gradient; None leaves it.
        precision: `"float32"`, or `"bfloat16"`: forward passes in autocast, about twice as fast where the processor
            multiplies bfloat16 (AVX-512 BF16, AMX, GPUs) and slower elsewhere. Weights, losses and optimizer stay
            float32.
        range_rate: with `"adamw"`, how fast trained scales, offsets and centroids move: the learning rate times this is
            the part of their mean magnitude that a step changes. A scale must keep up with its weights, each of which
            moves by a few hundredths of it: LeNet-300-100 at 3 bits came to 1.62 % error with 1 and to 1.28 with 10
            (one seed). Under a price on bits 1 is steadier.
        validation: batches for choosing: the model ends with the weights of its best epoch (before training counts).
        patience: epochs without a better validation after which training stops.
        hooks: penalties, masks that are held, schedules of sparsity; called in this order. Those that train
            parameters of their own put them into the model before and take them away at the end.
        checkpoint: file for going on after an interruption, written after every epoch, every `checkpoint_every_s`
            seconds and every `checkpoint_every_steps` steps. If it is there, training goes on from it.
        on_metrics: called with metrics and the number of steps done, every few steps and after every epoch.
        progress: show a bar if there is a terminal.
        seed: of what is random in the model (dropout).

    Raises:
        CompressError: for a setting out of range. DataError: without batches, or if the loss is not finite.
        ArtifactError: if the checkpoint is damaged or was written with other settings.
    """
    settings = {
        "epochs": epochs, "lr": lr, "optimizer": optimizer, "momentum": momentum, "weight_decay": weight_decay,
        "schedule": schedule, "warmup": warmup, "temperature": temperature, "alpha": alpha, "clip_norm": clip_norm,
        "patience": patience, "seed": seed, "precision": precision, "range_rate": range_rate,
        "distilled": teacher is not None, "validated": validation is not None, "model": fingerprint(model),
        "teacher": None if teacher is None else hash_state(getattr(teacher, "source_model", teacher)),
        "hooks": [{"name": hook.name, **hook.settings()} for hook in hooks],
    }  # fmt: skip
    if distillation is not None:
        settings["distillation"] = {"name": distillation.name, **distillation.settings()}
    check_settings(**settings)
    warn_of_idle_settings(settings)
    trained = [p for p in model.parameters() if p.requires_grad]
    if not trained:
        raise CompressError("The model has no parameter that requires a gradient: there is nothing to train.")
    train_batches = list(train_batches) if isinstance(train_batches, Iterator) else train_batches
    steps_per_epoch = _length(train_batches)
    settings["steps_per_epoch"] = steps_per_epoch
    validation = None if validation is None else list(validation)
    modes = [(m, m.training) for whole in (model, teacher) if whole is not None for m in whole.modules()]
    gradients = [(p, p.grad) for p in model.parameters()]
    prepared: list[PreparingHook] = []
    try:
        with torch.random.fork_rng():
            distiller = None
            if teacher is not None and alpha > 0:
                distillation = distillation or LogitDistillation(temperature)
                inputs = () if distillation.reads == "outputs" else task.inputs(_first(train_batches))
                distiller = Distiller(distillation, model, teacher, inputs, seed)
            for hook in hooks:
                if isinstance(hook, PreparingHook):
                    hook.prepare(model)
                    prepared.append(hook)
            warn_of_slow_precision(precision, trained[0].device.type)
            run = _Run(model, task, distiller, settings, validation, on_metrics)
            run.hooks = tuple(hooks)
            run.checkpoint, run.every_s, run.every_steps = checkpoint, checkpoint_every_s, checkpoint_every_steps
            torch.manual_seed(seed)
            run.optimizer.zero_grad(set_to_none=True)
            if teacher is not None:
                teacher.eval()
            run.start()
            with TrainingBar(progress, epochs * steps_per_epoch) as (bar, line):
                run.advance = lambda done, text: bar.update(line, completed=done, description=text)
                while not run.progress.finished:
                    run.epoch(_epoch_batches(train_batches, run.progress.epoch))
            run.finish()
    finally:
        for hook in reversed(prepared):
            hook.release(model)
        for module, training in modes:
            module.training = training
        for parameter, gradient in gradients:
            parameter.grad = gradient
    state = run.progress
    best = state.best_epoch if state.best_epoch is not None else state.epoch
    return FinetuneReport(tuple(state.history), best, state.total_steps, state.epoch < epochs, run.resumed)


class _Run:
    """One training, with everything that a checkpoint holds."""

    def __init__(
        self, model: nn.Module, task: Task, distiller: Distiller | None, settings: dict[str, Any],
        validation: list[Batch] | None, on_metrics: Callable[[dict[str, float], int], None] | None,
    ) -> None:  # fmt: skip
        self.model, self.task, self.distiller, self.settings = model, task, distiller, settings
        self.validation, self.on_metrics = validation, on_metrics
        # What is trained beside the model and is no part of it.
        self.beside = distiller.regressors if distiller is not None else nn.ModuleList()
        self.trained = [p for p in (*model.parameters(), *self.beside.parameters()) if p.requires_grad]
        self.optimizer = make_optimizer(model, self.trained, settings)
        self.progress = Progress()
        self.best: dict[str, Tensor] | None = None
        self.resumed = False
        self.hooks: tuple[TrainingHook, ...] = ()
        self.checkpoint: str | Path | None = None
        self.every_s: float | None = None
        self.every_steps: int | None = None
        self.advance: Callable[[int, str], None] = lambda done, text: None
        self._device = next(model.parameters()).device.type
        self._saved_at = time.monotonic()

    def start(self) -> None:
        if self.checkpoint is not None and Path(self.checkpoint).exists():
            self.progress, self.best = load_state(
                self.checkpoint, self.model, self.optimizer, self.settings, self.beside
            )
            self.resumed = True
            _log.info("Training goes on from %s after %d steps.", self.checkpoint, self.progress.total_steps)
        total = self.settings["epochs"] * self.settings["steps_per_epoch"]
        with torch.no_grad():
            for hook in self.hooks:
                hook.attach(self.model, self.progress.total_steps, total)
        if not self.resumed and self.validation is not None:
            self.validate({"epoch": 0})
        self.progress.finished |= self.settings["epochs"] == 0

    def epoch(self, batches: Iterator[Batch]) -> None:
        """The rest of one epoch, from where the checkpoint was written."""
        state, n_steps = self.progress, self.settings["steps_per_epoch"]
        self.model.train()
        for batch in itertools.islice(batches, state.step, n_steps):
            loss, lr = self.step(batch)
            state.step += 1
            state.total_steps += 1
            state.loss_sum += loss
            if state.total_steps % _LOG_EVERY == 0:
                self.report({"train/loss": loss, "train/lr": lr})
            self.advance(state.total_steps, f"epoch {state.epoch + 1}  loss {loss:.4f}")
            if state.step < n_steps and self.due():
                self.save()
        if state.step < n_steps:
            raise DataError(f"Epoch {state.epoch} gave {state.step} batches, the first was to give {n_steps}.")
        entry = {"epoch": state.epoch + 1, "train_loss": state.loss_sum / n_steps, "lr": self.lr(state.total_steps - 1)}
        state.epoch, state.step, state.loss_sum = state.epoch + 1, 0, 0.0
        if self.validation is not None:
            self.validate(entry)
        else:
            state.history.append(entry)
        self.report({"train/epoch_loss": entry["train_loss"], "epoch": state.epoch})
        patience = self.settings["patience"]
        tired = patience is not None and self.validation is not None and state.idle >= patience
        state.finished = state.epoch >= self.settings["epochs"] or tired
        self.save()

    def step(self, batch: Batch) -> tuple[float, float]:
        """One optimizer step; its loss and learning rate."""
        inputs = self.task.inputs(batch)
        lr = self.lr(self.progress.total_steps)
        for group in self.optimizer.param_groups:
            group["lr"] = lr * relative_step(group)
        loss = self.loss(inputs, batch)
        for hook in self.hooks:
            penalty = hook.penalty(self.model)
            loss = loss if penalty is None else loss + penalty
        value = loss.item()
        if not math.isfinite(value):
            raise DataError(
                f"The loss is {value} at step {self.progress.total_steps}. Lower the 'lr' parameter of finetune_ "
                f"(now {self.settings['lr']}), or check the training data."
            )
        self.optimizer.zero_grad(set_to_none=True)
        loss.backward()
        if self.settings["clip_norm"] is not None:
            nn.utils.clip_grad_norm_(self.trained, self.settings["clip_norm"])
        self.optimizer.step()
        with torch.no_grad():
            for hook in self.hooks:
                hook.after_step(self.model, self.progress.total_steps + 1)
        return value, lr

    def loss(self, inputs: tuple, batch: Batch) -> Tensor:
        """Of the task, or of the distillation and the task."""
        if self.distiller is None:
            return losses_of(self.task, self.forward(self.model, inputs), batch).mean()
        said = self.forward(self.distiller.student, inputs)
        with torch.no_grad():
            expected = self.forward(self.distiller.teacher, inputs)
        alpha = self.settings["alpha"]
        loss = alpha * self.distiller.loss(said, expected)
        return loss if alpha == 1 else loss + (1 - alpha) * losses_of(self.task, said[0], batch).mean()

    def forward(self, model: Callable[..., Any], inputs: tuple) -> Any:
        """The outputs, which are never of lower precision than the weights."""
        if self.settings["precision"] == "float32":
            return outputs_of(model, inputs)
        with torch.autocast(self._device, torch.bfloat16):
            outputs = outputs_of(model, inputs)
        return pytree.tree_map(_widen, outputs)

    def lr(self, step: int) -> float:
        s = self.settings
        return learning_rate(step, s["epochs"] * s["steps_per_epoch"], s["lr"], s["schedule"], s["warmup"])

    def validate(self, entry: dict[str, float]) -> None:
        """Evaluate, remember the weights if they are the best so far, and note the epoch."""
        state = self.progress
        metric, loss = evaluate(self.model, self.task, self.validation)
        entry |= {"metric": metric, "loss": loss}
        state.history.append(entry)
        score = metric if self.task.higher_is_better else -metric
        if all(hook.settled(state.total_steps) for hook in self.hooks):
            if state.best_score is None or (score, -loss) > (state.best_score, -state.best_loss):
                state.best_epoch, state.best_score, state.best_loss, state.idle = state.epoch, score, loss, 0
                self.best = model_tensors(self.model)
            else:
                state.idle += 1
        self.report({f"validation/{self.task.metric_name}": metric, "validation/loss": loss, "epoch": state.epoch})

    def finish(self) -> None:
        if self.best is not None:
            set_model_tensors(self.model, self.best)

    def due(self) -> bool:
        if self.checkpoint is None:
            return False
        by_step = self.every_steps is not None and self.progress.total_steps % self.every_steps == 0
        return by_step or (self.every_s is not None and time.monotonic() - self._saved_at >= self.every_s)

    def save(self) -> None:
        if self.checkpoint is not None:
            save_state(
                self.checkpoint, self.model, self.optimizer, self.best, self.progress, self.settings, self.beside
            )
            self._saved_at = time.monotonic()

    def report(self, metrics: dict[str, float]) -> None:
        if self.on_metrics is not None:
            self.on_metrics(metrics, self.progress.total_steps)


def _widen(leaf: Any) -> Any:
    return leaf.float() if isinstance(leaf, Tensor) and leaf.dtype == torch.bfloat16 else leaf


def _length(train_batches: TrainBatches) -> int:
    """Batches of an epoch. Batches that do not know their number are counted once."""
    batches = train_batches(0) if callable(train_batches) else train_batches
    length = len(batches) if hasattr(batches, "__len__") else sum(1 for _ in batches)
    if not length:
        raise DataError("The 'train_batches' parameter of finetune_ must hold at least one batch. Got none.")
    return length


def _first(train_batches: TrainBatches) -> Batch:
    """A batch to look at, without a trace in the global random state."""
    with torch.random.fork_rng():
        return next(_epoch_batches(train_batches, 0))


def _epoch_batches(train_batches: TrainBatches, epoch: int) -> Iterator[Batch]:
    if callable(train_batches):
        return iter(train_batches(epoch))
    if hasattr(train_batches, "set_epoch"):
        train_batches.set_epoch(epoch)
    return iter(train_batches)
