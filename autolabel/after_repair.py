"""What oracles that look after a repair share: halves of the examples, and a few steps of training."""

from collections.abc import Sequence
from itertools import cycle, islice

import torch
from torch import fx

from compress.finetuning import finetune_
from compress.replay import Replay
from compress.structure import Structure
from compress.task import Batch, ClassificationTask
from compress.training_hook import TrainingHook


def halves(replay: Replay) -> tuple[list[int], list[int]]:
    """Numbers of the batches that repair and of those that judge."""
    return list(range(0, len(replay.batches), 2)), list(range(1, len(replay.batches), 2))


def is_taught(replay: Replay) -> bool:
    """Whether the dense model teaches, as in `auto_compress`."""
    return isinstance(replay.task, ClassificationTask)


def trained_examples(replay: Replay, repairing: Sequence[int], steps: int) -> int:
    """How many examples so many steps see."""
    return sum(replay.sizes[i] for i in islice(cycle(repairing), steps))


def train_briefly_(
    structure: Structure, replay: Replay, small: fx.GraphModule, batches: Sequence[Batch], *, steps: int, lr: float,
    seed: int, hooks: Sequence[TrainingHook] = (),
) -> None:  # fmt: skip
    """So many steps of AdamW over the batches, again and again, in place; the dense model teaches where it can."""
    with torch.enable_grad():
        finetune_(
            small, replay.task, list(islice(cycle(batches), steps)), epochs=1, lr=lr,
            teacher=structure.traced.module if is_taught(replay) else None, optimizer="adamw",
            schedule="constant", progress=False, seed=seed, hooks=hooks,
        )  # fmt: skip
    small.eval()
