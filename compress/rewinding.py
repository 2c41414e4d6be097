"""Lottery tickets: train, prune, rewind, again; in rounds that a kill does not undo."""

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import safetensors
import torch
from safetensors.torch import load, save
from torch import Tensor, nn

from compress.errors import ArtifactError, CompressError
from compress.files import write_atomic
from compress.finetuning import FinetuneReport, TrainBatches, finetune_
from compress.masking import apply_masks_, density_of
from compress.sparsifier import Sparsifier
from compress.sparsity_schedule import check_count, check_moment, step_of
from compress.sparsity_schedules import IterativeSchedule
from compress.task import Task
from compress.training_state import model_tensors, set_model_tensors

REWINDS = ("weights", "learning_rate")


@dataclass(frozen=True)
class RewindReport:
    """What the rounds did; entry 0 is the training of the dense model.

    Attributes:
        densities: fraction of the weights of the layers with masks that each training kept.
        trainings: what each training did.
    """

    densities: tuple[float, ...]
    trainings: tuple[FinetuneReport, ...]


def rewind_(
    model: nn.Module,
    task: Task,
    train_batches: TrainBatches,
    *,
    density: float,
    rounds: int = 5,
    rewind: str = "weights",
    early: float = 0.02,
    pruning: Mapping[str, Any] | None = None,
    folder: str | Path | None = None,
    **training: Any,
) -> RewindReport:
    """Train `model`, in place, and in every round prune what was trained, rewind and train again with the masks held.

    After round k of n the density is `density^(k / n)`. Every round trains for all epochs, with the learning rate from
    the start of its schedule. (Frankle and Carbin 2019, "The Lottery Ticket Hypothesis", ICLR, arXiv:1803.03635, with
    the late rewinding of Frankle et al. 2020, arXiv:1912.05671; Renda, Frankle, Carbin 2020, "Comparing Rewinding and
    Fine-tuning in Neural Network Pruning", ICLR, arXiv:2003.02389, for the learning rate alone.)

    Args:
        model, task, train_batches: see `finetune_`; the model begins as it is, new or trained.
        density: final fraction of the weights that stays, in (0, 1].
        rounds: how many.
        rewind: `"weights"`: parameters and buffers go back to what they were early in the first training, those that
            stay. `"learning_rate"`: the trained weights stay, only the schedule begins anew.
        early: when that was: a fraction of the first training (float) or a step (int); 0 is before it.
        pruning: further settings of `Sparsifier`: pattern, scope, score, skip, ...
        folder: takes the state of every round; called again with the same settings, it goes on from there.
        **training: further settings of `finetune_`, for all trainings; `hooks` come after the masks.

    Raises:
        CompressError: for a setting out of range, or if patience ends the first training before `early`. ArtifactError:
            if `folder` holds rounds of other settings.
    """
    _check(rounds, early, rewind, {*training}, {*(pruning or {})})
    # Here a step is a round: the dense training is step 0.
    schedule = IterativeSchedule(rounds, begin=1, end=rounds + 1)
    pruner = Sparsifier(density, schedule=schedule, **(pruning or {}))
    others = tuple(training.pop("hooks", ()))
    start = _EarlyWeights(early, None if folder is None else Path(folder) / "early.safetensors")
    densities, reports = [], []
    for k in range(rounds + 1):
        if k:
            with torch.no_grad():
                pruner.attach(model, k, rounds)
                pruner.after_step(model, k)
            if rewind == "weights":
                set_model_tensors(model, start.tensors)
                apply_masks_(model, pruner.masks)
        hook = _HeldRound(pruner, k, rewind) if k else start
        checkpoint = None if folder is None else Path(folder) / f"round_{k:02d}.safetensors"
        reports.append(finetune_(model, task, train_batches, hooks=(hook, *others), checkpoint=checkpoint, **training))
        densities.append(density_of(model, pruner.skip).total)
        if rewind == "weights" and not start.tensors:
            raise CompressError(
                f"The training ended after {reports[0].steps} steps, before the 'early' parameter of rewind_ "
                f"({early!r}). Lower it, or give more patience."
            )
    return RewindReport(tuple(densities), tuple(reports))


def _check(rounds: int, early: float, rewind: str, training: set[str], pruning: set[str]) -> None:
    check_count("rewind_", "rounds", rounds)
    check_moment("rewind_", "early", early)
    if rewind not in REWINDS:
        raise CompressError(f"The 'rewind' parameter of rewind_ must be one of {REWINDS}. Got {rewind!r}.")
    refused = {"checkpoint"} & training or {"density", "schedule"} & pruning
    if refused:
        raise CompressError(f"rewind_ sets {sorted(refused)[0]!r} by itself: it follows from 'folder' and 'rounds'.")


class _HeldRound(Sparsifier):
    """Holds the masks of one round; its checkpoint belongs to everything that led to them."""

    name = "rewinding_round"

    def __init__(self, pruner: Sparsifier, number: int, rewind: str) -> None:
        super().__init__(1.0, skip=pruner.skip)
        self._made_by = {"round": number, "rewind": rewind, **pruner.settings()}

    def settings(self) -> dict[str, Any]:
        return self._made_by


class _EarlyWeights:
    """A hook that keeps parameters and buffers as they are at one moment, in a file too."""

    name = "early_weights"

    def __init__(self, moment: float, path: Path | None) -> None:
        self._moment, self._path, self._step = moment, path, 0
        self.tensors: dict[str, Tensor] = {}

    def settings(self) -> dict[str, Any]:
        return {"moment": self._moment}

    def attach(self, model: nn.Module, step: int, total_steps: int) -> None:
        self._step = step_of(self._moment, total_steps)
        if self._step > total_steps:
            raise CompressError(f"The 'early' parameter of rewind_ is step {self._step} of only {total_steps}.")
        if step < self._step or step == 0:
            self.after_step(model, step)
        else:
            self._read(model)

    def penalty(self, model: nn.Module) -> Tensor | None:
        return None

    def after_step(self, model: nn.Module, step: int) -> None:
        if step == self._step:
            self.tensors = model_tensors(model)
            if self._path is not None:
                content = save(self.tensors)
                write_atomic(self._path, lambda file: file.write(content))

    def settled(self, step: int) -> bool:
        return True

    def _read(self, model: nn.Module) -> None:
        try:
            found = load(self._path.read_bytes())
        except (OSError, safetensors.SafetensorError) as error:
            raise ArtifactError(
                f"{self._path} is damaged ({error}). Delete its folder to train from the start."
            ) from error
        if {name: t.shape for name, t in found.items()} != {name: t.shape for name, t in model_tensors(model).items()}:
            raise ArtifactError(f"{self._path} is of another model. Delete its folder to train from the start.")
        self.tensors = found
