"""Damage of removing one channel or head in the thinned company that a budget leads to."""

from collections.abc import Collection, Iterator, MutableMapping, Sequence

import numpy as np
import torch
from torch import nn

from autolabel.marginal_effects import marginal_effects, random_masks
from autolabel.oracle import Measurement
from compress.errors import CompressError
from compress.gates import gated_module
from compress.replay import Replay
from compress.structure import Structure


class ContextOracle:
    """Marginal effect of each unit among random masks around the target size, nothing being repaired.

    Every example meets its own masks, and every mask tells of all units at once, so the cost does not grow with the
    number of units; the standard error does not shrink with it either. Masks are compared with others of the same
    example. In a network where it is unknown which values belong to which example (recurrent layers), the examples of a
    batch share a mask. Rows come when all masks are done; a killed measuring goes on with the next batch.

    Args:
        kept: fraction of each group that stays on average.
        masks: masks that each example meets.
        seed: of the masks, which do not depend on the units asked for.
    """

    name = "context"
    kind = "removable"
    least_batches = 1
    choices = ("removed",)

    def __init__(self, kept: float = 0.5, masks: int = 16, seed: int = 0) -> None:
        if not 0 < kept < 1:
            raise CompressError(f"The 'kept' parameter of ContextOracle must be in (0, 1). Got {kept}.")
        if masks < 1:
            raise CompressError(f"The 'masks' parameter of ContextOracle must be at least 1. Got {masks}.")
        self.kept, self.masks, self.seed = kept, masks, seed

    def measure(
        self, structure: Structure, replay: Replay, rows: np.ndarray, done: Collection[tuple[str, str]] = (),
        notes: MutableMapping[str, list[float]] | None = None,
    ) -> Iterator[Measurement]:  # fmt: skip
        """One measurement per row."""
        rows = [row for row in rows if (structure.units.ids[row], "removed") not in done]
        if not len(rows):
            return
        effect, std_err = marginal_effects(*self._losses(structure, replay, {} if notes is None else notes))
        spent = self.masks * replay.full_macs * replay.n_examples
        for row in rows:
            # One unit alone would need masks with and without it.
            yield Measurement(structure.units.ids[row], "removed", float(effect[row]), float(std_err[row]),
                              replay.n_examples, spent / len(rows), 2 * spent)  # fmt: skip

    def _losses(
        self, structure: Structure, replay: Replay, notes: MutableMapping[str, list[float]]
    ) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
        """Masks, what each costs its example or batch, and which that is: `(n_masks, n_units)`, twice `(n_masks,)`."""
        rng = np.random.default_rng([self.seed, 3])
        module = gated_module(structure).eval()
        shared = any(site.batch is None for site in structure.sites)
        removed, losses, blocks = [], [], []
        for number in range(len(replay.batches)):
            n_masks = 1 if shared else replay.sizes[number]
            masks = [random_masks(structure.units, self.kept, n_masks, rng) for _ in range(self.masks)]
            note = f"batch {number}"
            if note not in notes:
                notes[note] = self._damages(structure, replay, module, number, masks).tolist()
            removed += masks
            losses.append(np.array(notes[note]))
            first = sum(replay.sizes[:number])
            blocks.append(np.tile(first + np.arange(n_masks), self.masks))
        return np.concatenate(removed), np.concatenate(losses), np.concatenate(blocks)

    def _damages(
        self, structure: Structure, replay: Replay, module: nn.Module, number: int, masks: Sequence[np.ndarray]
    ) -> np.ndarray:
        """What the masks cost the examples of a batch, or the batch that shares them, one after the other."""
        batch, found = replay.batches[number], []
        dtype = next((p.dtype for p in structure.traced.module.parameters() if p.is_floating_point()), torch.float32)
        with torch.no_grad():
            for mask in masks:
                module.gates = torch.from_numpy(~mask[:, : structure.n_removable]).to(dtype)
                losses = replay.task.loss(module(*replay.task.inputs(batch)), batch).double().cpu().numpy()
                damage = losses - replay.dense[number]
                found.append(damage.mean(keepdims=True) if len(mask) == 1 else damage)
        return np.concatenate(found)
