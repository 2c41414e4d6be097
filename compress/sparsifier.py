"""Masks in a training: removes weights by a schedule, and holds every zero under any optimizer."""

import logging
from collections.abc import Mapping, Sequence
from typing import Any

from torch import Tensor, nn

from compress.errors import CompressError
from compress.hashing import hash_values
from compress.masking import apply_masks_, check_selection, choose_masks
from compress.normalization import check_normalization
from compress.pattern import SparsityPattern
from compress.pattern_text import pattern_of
from compress.prunable_weights import matching_layers, prunable_weights
from compress.sparsity_schedule import SparsitySchedule
from compress.sparsity_schedules import OneShotSchedule
from compress.task import Batch, Task
from compress.weight_score import WeightScore, score_weights
from compress.weight_scores import MagnitudeWeightScore

_log = logging.getLogger(__name__)
# A density for schedules whose removal goes by a threshold.
_ANY = 0.5


class Sparsifier:
    """A hook of `finetune_` that removes weights as its schedule says and keeps them at zero.

    A weight that is exactly zero before training or after a step counts as removed and never comes back, so masks of
    an earlier stage are kept, momentum and weight decay revive nothing, and the checkpoint of a training needs no more
    than its weights. Scores are computed anew from the weights (and `batches`) whenever something is removed, unless
    `scores` are given. Biases and norms have no masks.

    Args:
        density: fraction of the weights that stays in the end, in (0, 1]; None for the pattern's own. 1.0 only holds
            the zeros that are there.
        pattern, scope, overrides, floor: see `choose_masks`. An override is the final density of those layers.
        skip: layers whose weights are left alone, with wildcards; their zeros are not held either.
        score: how weights are scored; magnitude if None.
        normalize: scale of the scores within each layer, see `score_weights`.
        schedule: when they go; all before the first step if None.
        threshold: instead of a density, in the unit of the scores: when the schedule says so, weights (or blocks) with
            a score below it go, all at once (Han et al. 2015, "Learning both Weights and Connections for Efficient
            Neural Networks", arXiv:1506.02626). Those that fall below it later stay. Layers with an override keep
            that density, every layer its floor, and what a pattern always keeps stays too. Whatever the scope, it is
            one number for all layers; normalised scores make it one in the scale of each layer.
        task, batches: calibration data of a score that needs it.
        scores: layer name -> fixed importance of each weight, such as a labeler's, instead of `score`.

    Raises:
        CompressError: for settings out of range, for a threshold with a schedule that removes little by little, or a
            score that needs data and has none.
    """

    name = "sparsifier"

    def __init__(
        self, density: float | None = None, pattern: str | SparsityPattern = "unstructured", scope: str = "global",
        overrides: Mapping[str, float] | None = None, floor: float = 0.0, skip: Sequence[str] = (),
        score: WeightScore | None = None, normalize: str | None = None, schedule: SparsitySchedule | None = None,
        task: Task | None = None, batches: Sequence[Batch] = (), scores: Mapping[str, Tensor] | None = None,
        threshold: float | None = None,
    ) -> None:  # fmt: skip
        self.pattern = pattern_of(pattern) if isinstance(pattern, str) else pattern
        self.scope, self.overrides, self.floor, self.skip = scope, dict(overrides or {}), floor, tuple(skip)
        check_selection(density, scope, self.pattern, threshold, self.overrides, floor)
        check_normalization(normalize, "Sparsifier")
        self.density = self.pattern.least_density if density is None and threshold is None else density
        self.threshold = threshold
        # How much goes by a threshold is not known before; when it goes does not depend on it.
        usual = _ANY if self.density is None else self.density
        self._sparsest = 1.0 - min([usual, *self.overrides.values()])
        self.score = score or MagnitudeWeightScore()
        self.normalize, self.schedule, self.scores = normalize, schedule or OneShotSchedule(), scores
        self.task, self.batches = task, list(batches)
        self.masks: dict[str, Tensor] = {}
        self._total_steps = 0
        if threshold is not None and not isinstance(self.schedule, OneShotSchedule):
            raise CompressError(
                f"The 'threshold' parameter of Sparsifier needs the 'schedule' OneShotSchedule: {self.schedule.name!r} "
                f"is told by a density."
            )

    def settings(self) -> dict[str, Any]:
        """Plain JSON of everything but the calibration data; given scores by their hash."""
        given = None if self.scores is None else hash_values(dict(sorted(self.scores.items())))
        return {
            "density": self.density, "pattern": self.pattern.text, "scope": self.scope, "overrides": self.overrides,
            "floor": self.floor, "skip": list(self.skip), "normalize": self.normalize,
            "score": given or {"name": self.score.name, **vars(self.score)},
            "schedule": {"name": self.schedule.name, **vars(self.schedule)},
            # Without one nothing is said of it: checkpoints from before go on.
            **({} if self.threshold is None else {"threshold": self.threshold}),
        }  # fmt: skip

    def attach(self, model: nn.Module, step: int, total_steps: int) -> None:
        """Hold the zeros that are there, and remove what the schedule wants gone before the first step.

        Raises:
            CompressError: if the schedule does not end within the training, if a layer is all zeros, or if data is
                missing. PlanError: for an unknown layer in `skip` or `overrides`.
        """
        self._total_steps = total_steps
        self._check(model, total_steps)
        weights = prunable_weights(model, self.skip)
        self.masks = {name: weight.tensor.detach() != 0 for name, weight in weights.items()}
        empty = [name for name, mask in self.masks.items() if not mask.any()]
        if empty:
            raise CompressError(f"Layer {empty[0]!r} is all zeros, which would be held forever. Name it in 'skip'.")
        if step == 0 and self._gone(0) > 0:
            self._remove(model, 0)

    def penalty(self, model: nn.Module) -> Tensor | None:
        """None: nothing is added to the loss."""
        return None

    def after_step(self, model: nn.Module, step: int) -> None:
        """Put the zeros back, and remove more where the schedule rises."""
        for name, weight in prunable_weights(model, self.skip).items():
            weight.tensor.masked_fill_(~self.masks[name], 0.0)
            # So that masks read back from a checkpoint are these.
            self.masks[name] = weight.tensor.detach() != 0
        if self._gone(step) > self._gone(step - 1):
            self._remove(model, step)

    def settled(self, step: int) -> bool:
        """Whether the final density is reached."""
        return self._gone(step) >= self._sparsest

    def _gone(self, step: int) -> float:
        """The sparsity after `step` steps of the layers that lose most."""
        return self.schedule.sparsity(step, self._total_steps, self._sparsest)

    def _remove(self, model: nn.Module, step: int) -> None:
        scores = self.scores
        if scores is None:
            scores = score_weights(model, self.score, self.task, self.batches, self.normalize, self.skip)
        overrides = {name: self._density(own, step) for name, own in self.overrides.items()}
        density = None if self.density is None else self._density(self.density, step)
        there = self._kept()
        self.masks = choose_masks(
            model, {name: scores[name] for name in self.masks if name in scores}, density, scope=self.scope,
            pattern=self.pattern, threshold=self.threshold, overrides=overrides, skip=self.skip, floor=self.floor,
            within=self.masks,
        )  # fmt: skip
        apply_masks_(model, self.masks)
        kept, weights = self._kept(), sum(mask.numel() for mask in self.masks.values())
        if self.threshold is not None and kept == there:
            _log.warning("No weight was removed: none scores below the threshold of %g.", self.threshold)
        _log.info("After step %d, %d of %d weights stay (density %.4f).", step, kept, weights, kept / weights)

    def _kept(self) -> int:
        return sum(int(mask.sum()) for mask in self.masks.values())

    def _density(self, final: float, step: int) -> float:
        """The density after `step` steps on the way to `final`, which is met exactly."""
        gone = self.schedule.sparsity(step, self._total_steps, 1.0 - final)
        return final if gone >= 1.0 - final else 1.0 - gone

    def _check(self, model: nn.Module, total_steps: int) -> None:
        if not self.settled(total_steps):
            raise CompressError(
                f"The schedule {self.schedule.name!r} ends after the training of {total_steps} steps. Shorten it, or "
                f"train for longer."
            )
        if self.scores is None and self.score.needs and (self.task is None or not self.batches):
            raise CompressError(f"The score {self.score.name!r} needs the 'task' and 'batches' of Sparsifier.")
        names = list(prunable_weights(model, self.skip))
        for text in self.overrides:
            matching_layers(names, text)
