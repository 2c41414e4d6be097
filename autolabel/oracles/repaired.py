"""Damage of removing one channel or head in thinned company, after the rest was refitted, and trained if asked."""

from collections.abc import Collection, Iterator, MutableMapping

import numpy as np
import torch

from autolabel.after_repair import halves, is_taught, train_briefly_, trained_examples
from autolabel.marginal_effects import marginal_effects, random_masks
from autolabel.oracle import Measurement
from compress.application import slice_model
from compress.counting import unit_costs
from compress.errors import CompressError, DataError
from compress.plan import CompressionPlan
from compress.recovery import recover_
from compress.replay import Replay
from compress.structure import Structure


class RepairedOracle:
    """Marginal effect of each unit on the loss after a least-squares refit, among random masks around the target size.

    Half of the batches repair each masked network and the other half, which the repair has not seen, tells its loss;
    then the halves change places. One mask tells of all units at once. Rows come when all masks are done; a killed
    measuring goes on with the next mask.

    With `training_steps` each network is also trained a little after its refit, on the half that repaired it, as
    `finetune_` trains (from the dense model's logits too where the task is a `ClassificationTask`): with few steps what
    a brief training cannot heal, with many the slow truth about the fine-tuned network.

    Args:
        kept: fraction of each group that stays on average.
        masks: masks in all, each repaired twice.
        ridge, max_rows: of the refit, see `recover_`.
        training_steps: optimizer steps after each refit; 0 trains nothing.
        lr: of the training, by AdamW, the same in every step.
        seed: of the masks, the refit and the training.
    """

    name = "repaired"
    kind = "removable"
    least_batches = 2
    choices = ("removed",)

    def __init__(
        self, kept: float = 0.5, masks: int = 64, ridge: float | None = None, max_rows: int = 10_000,
        training_steps: int = 0, lr: float = 2e-3, seed: int = 0,
    ) -> None:  # fmt: skip
        if not 0 < kept < 1:
            raise CompressError(f"The 'kept' parameter of RepairedOracle must be in (0, 1). Got {kept}.")
        if masks < 4:
            raise CompressError(f"The 'masks' parameter of RepairedOracle must be at least 4. Got {masks}.")
        if training_steps < 0:
            raise CompressError(
                f"The 'training_steps' parameter of RepairedOracle must be at least 0. Got {training_steps}."
            )
        if not lr > 0:
            raise CompressError(f"The 'lr' parameter of RepairedOracle must be above 0. Got {lr}.")
        self.kept, self.masks, self.ridge, self.max_rows, self.seed = kept, masks, ridge, max_rows, seed
        self.training_steps, self.lr = training_steps, lr

    def measure(
        self, structure: Structure, replay: Replay, rows: np.ndarray, done: Collection[tuple[str, str]] = (),
        notes: MutableMapping[str, list[float]] | None = None,
    ) -> Iterator[Measurement]:  # fmt: skip
        """One measurement per row.

        Raises:
            CompressError: for a single batch, which cannot be halved.
            DataError: if a repaired network has a loss that is not finite.
        """
        rows = [row for row in rows if (structure.units.ids[row], "removed") not in done]
        if not len(rows):
            return
        if len(replay.batches) < 2:
            raise CompressError("RepairedOracle needs at least two batches: one half repairs, the other one judges.")
        rng = np.random.default_rng([self.seed, 5])
        removed = random_masks(structure.units, self.kept, self.masks, rng)
        costs, macs, losses = unit_costs(structure), 0.0, []
        trained = sum(trained_examples(replay, half, self.training_steps) for half in halves(replay))
        notes = {} if notes is None else notes
        for number, mask in enumerate(removed):
            note = f"mask {number}"
            if note not in notes:
                notes[note] = [self._loss(structure, replay, mask)]
            losses.append(notes[note][0])
            # The refit runs both networks, the judgement the small one; a step counts three forwards of the small one.
            small = costs.total(mask)[0]
            macs += (costs.dense_macs + 2 * small) * replay.n_examples
            macs += small * replay.n_examples * bool(self.training_steps)  # statistics of batch norms
            macs += (3 * small + costs.dense_macs * is_taught(replay)) * trained
        effect, std_err = marginal_effects(removed, np.array(losses))
        for row in rows:
            yield Measurement(structure.units.ids[row], "removed", float(effect[row]), float(std_err[row]),
                              replay.n_examples, macs / len(rows), 2 * macs)  # fmt: skip

    def _loss(self, structure: Structure, replay: Replay, removed: np.ndarray) -> float:
        """Mean increase of the loss of one mask, each half of the examples judged after a repair on the other."""
        parts = halves(replay)
        units, total = structure.units, 0.0
        plan = CompressionPlan.removing(units, [units.ids[row] for row in np.flatnonzero(removed)])
        for repairing, judging in (parts, parts[::-1]):
            small = slice_model(structure, removed).eval()
            batches = [replay.batches[i] for i in repairing]
            if removed.any():
                # Training would begin with a jump to new statistics otherwise.
                steps = ("refit", "batch_norm") if self.training_steps else ("refit",)
                recover_(
                    small, structure, batches, plan=plan, task=replay.task, steps=steps, ridge=self.ridge,
                    max_rows=self.max_rows, seed=self.seed,
                )  # fmt: skip
            if self.training_steps:
                train_briefly_(structure, replay, small, batches, steps=self.training_steps, lr=self.lr, seed=self.seed)
            with torch.no_grad():
                for number in judging:
                    batch = replay.batches[number]
                    losses = replay.task.loss(small(*replay.task.inputs(batch)), batch).double().cpu().numpy()
                    total += float((losses - replay.dense[number]).sum())
        if not np.isfinite(total):
            raise DataError(
                "A repaired network has a loss that is not finite. Lower the 'lr' of RepairedOracle, or measure on "
                "batches of several examples each."
            )
        return total / replay.n_examples
