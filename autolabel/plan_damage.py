"""Damage in nats that a whole plan does, predicted from its summary, and corrected by a few measured plans."""

from collections.abc import Sequence
from dataclasses import dataclass, replace
from itertools import product
from pathlib import Path
from typing import Any

import numpy as np
from scipy.special import ndtri

from autolabel.plan_board import PlanBoard
from autolabel.plan_summary import PlanSummary
from compress.errors import ArtifactError, CompressError
from compress.files import read_json, write_json

DAMAGE_FILE = "plan_damage.json"
# Raised with every change of what is learned or how it predicts: stored predictions of another version are made anew.
MODEL_VERSION = 2
# Smaller damages, in nats, are not told from the noise of measuring: nothing is learned from them.
SMALLEST = 3e-3
COLUMNS = (
    "refitted_loss_sum", "refitted_output_sum", "averaged_loss_sum", "silenced_loss_sum", "refitted_kept_variance",
    "averaged_kept_variance", "refitted_output_capped", "refitted_output_largest", "log_fisher_nats",
    "log_second_order_nats", "log_removed_magnitude", "log_removed_activation", "log_removed_reconstruction",
    "log_removed_taylor", "log_removed_wanda", "weight_bytes", "macs", "n_groups",
)  # fmt: skip
_PENALTY = 100.0
_FAR = 4.0
_FEWEST_PLANS = 5
_ROUNDS = 40
# A network's misfits beyond so many standard deviations do not teach how networks differ.
_OUTLYING = 2.5
# Numbers in which the plans of a network hardly differ tell little about how alike they are.
_LEAST_SPREAD = 0.05
# Of what the regression leaves: which part may be alike, at which lengths, and how much of it there is.
_SHARES, _LENGTHS, _SCALES = (0.0, 0.3, 0.5, 0.7), (0.35, 0.5, 0.7, 1.0, 1.5, 2.0), (0.7, 1.0, 1.4, 2.0)
_ARRAYS, _NUMBERS = ("center", "scale", "weights", "variances"), ("alike", "length", "noise")


@dataclass(frozen=True, eq=False)
class DamagePrediction:
    """What plans are expected to do.

    Attributes:
        nats: `(n_plans,)` median damage.
        log_std: `(n_plans,)` standard deviation of its logarithm.
    """

    nats: np.ndarray
    log_std: np.ndarray

    def interval(self, coverage: float = 0.9) -> tuple[np.ndarray, np.ndarray]:
        """Lower and upper end, in nats.

        Raises:
            CompressError: for a coverage that is not in (0, 1).
        """
        if not 0 < coverage < 1:
            raise CompressError(f"The 'coverage' parameter of an interval must be in (0, 1). Got {coverage!r}.")
        factor = np.exp(float(ndtri(0.5 + coverage / 2)) * self.log_std)
        return self.nats / factor, self.nats * factor


@dataclass(frozen=True, eq=False)
class PlanDamage:
    """Log damage as a regression on numbers of the plan, whose coefficients differ from network to network.

    What all networks share is a ridge regression on the numbers and their squares. By how much the level, the slope and
    the coefficients of single networks differ from it is learned too, so that a few measured plans of a new network
    correct as much as they can tell (random effects: Laird and Ware 1982, "Random-effects models for longitudinal
    data", by expectation maximisation), and what they were found to do beyond it is expected of plans like them
    (a Gaussian process: Rasmussen and Williams 2006, chapter 2). All of this is learned from networks whose family the
    regression had not seen, where there are three families or more.

    Attributes:
        moment: of the damages, out of `autolabel.plan_oracle.MOMENTS`.
        columns: names of the numbers of whole plans that are read, see `PlanSummarizer`.
        center, scale: `(n_columns + 1,)` of the numbers and of the logarithm of the dense loss.
        weights: `(2 (n_columns + 1) + 1,)` what networks share: of the numbers, of their squares, the level.
        variances: `(n_columns + 3,)` of what they differ in: level, slope of the prediction, coefficients.
        alike: variance of what is left and is alike for plans that are alike, see `length`.
        length: of a Gaussian kernel, in standard deviations of the plans' numbers (root mean square over the numbers).
        noise: variance of what is left of single plans.
    """

    moment: str
    columns: tuple[str, ...]
    center: np.ndarray
    scale: np.ndarray
    weights: np.ndarray
    variances: np.ndarray
    alike: float
    length: float
    noise: float

    @classmethod
    def fit(cls, boards: Sequence[PlanBoard], moment: str, columns: Sequence[str] = COLUMNS) -> "PlanDamage":
        """Learn from boards, each with the losses of its plans after this moment.

        Raises:
            CompressError: for fewer than two boards with five plans that do damage, or plans that were summarised
                without one of the columns.
        """
        known = []
        for board in boards:
            damage = board.loss[moment] - board.dense_loss
            counts = np.isfinite(damage) & (damage > SMALLEST)
            if counts.sum() >= _FEWEST_PLANS:
                numbers = _numbers(board.summary, board.dense_loss, columns)[counts]
                known.append(_Known(board.family, numbers, np.log(damage[counts])))
        if len(known) < 2:
            raise CompressError(
                f"PlanDamage.fit needs at least two networks with {_FEWEST_PLANS} plans that do damage. "
                f"Got {len(known)}."
            )
        # How networks differ from a regression that knows them says too little of how a new one will.
        effects, apart = [], []
        for seen, unseen in _folds(known):
            shared = cls._shared(seen, moment, columns)
            for network in unseen:
                prior = shared._prior(network.numbers)
                effects.append((shared._effects(network.numbers, prior), network.damage - prior))
                apart.append(shared._apart(network.numbers))
        variances, noise = _spread(effects)
        inside = [(design[ok], rest[ok]) for design, rest in effects
                  for ok in [np.abs(rest - design @ _posterior(design, rest, variances, noise)[0])
                             < _OUTLYING * np.sqrt(noise)]]  # fmt: skip
        variances, _ = _spread(inside)
        alike, length, noise = _likeliest(effects, apart, variances, noise)
        shared = cls._shared(known, moment, columns)
        return replace(shared, variances=variances, alike=alike, length=length, noise=noise)

    @classmethod
    def _shared(cls, known: Sequence["_Known"], moment: str, columns: Sequence[str]) -> "PlanDamage":
        """What these networks share, and nothing of how they differ."""
        values = np.concatenate([network.numbers for network in known])
        center, scale = values.mean(axis=0), np.maximum(values.std(axis=0), 1e-9)
        matrix, target = _squares((values - center) / scale), np.concatenate([network.damage for network in known])
        penalty = np.full(matrix.shape[1], _PENALTY)
        penalty[-1] = 0.0
        weights = np.linalg.solve(matrix.T @ matrix + np.diag(penalty), matrix.T @ target)
        return cls(moment, tuple(columns), center, scale, weights, np.zeros(values.shape[1] + 2), 0.0, 1.0, 0.0)

    def predict(
        self, summary: PlanSummary, dense_loss: float, measured: Sequence[int] = (), damages: Sequence[float] = ()
    ) -> DamagePrediction:
        """Damages of plans of one network and one size.

        Args:
            summary: of the plans; how they differ from one another matters, so that those that were measured belong
                to it.
            dense_loss: of the network itself.
            measured: rows of the plans that were measured.
            damages: theirs, in nats; those below `SMALLEST` say that a damage is small, and not how small.

        Raises:
            CompressError: for damages that do not fit the measured rows or are not finite, or plans that were
                summarised without a column.
        """
        rows, found = np.asarray(measured, dtype=int), np.asarray(damages, dtype=np.float64)
        if rows.shape != found.shape or not np.isfinite(found).all():
            raise CompressError(f"Each measured plan needs one finite damage. Got {len(rows)} plans and {found}.")
        numbers = _numbers(summary, dense_loss, self.columns)
        prior = self._prior(numbers)
        design = self._effects(numbers, prior)
        common = (design * self.variances) @ design.T + self.alike * _kernel(self._apart(numbers), self.length)
        target = np.log(np.maximum(found, SMALLEST)) - prior[rows]
        among = common[np.ix_(rows, rows)] + self.noise * np.eye(len(rows))
        explained = np.linalg.solve(among, common[rows])
        variance = self.noise + common.diagonal() - (common[rows] * explained).sum(axis=0)
        return DamagePrediction(np.exp(prior + target @ explained), np.sqrt(np.maximum(variance, self.noise)))

    def _prior(self, numbers: np.ndarray) -> np.ndarray:
        return _squares((numbers - self.center) / self.scale) @ self.weights

    def _effects(self, numbers: np.ndarray, prior: np.ndarray) -> np.ndarray:
        """`(n_plans, n_columns + 3)` what a network's own level, slope and coefficients are multiplied with."""
        values = np.clip((numbers - self.center) / self.scale, -_FAR, _FAR)
        return np.column_stack([np.ones(len(prior)), prior - prior.mean(), values - values.mean(axis=0)])

    def _apart(self, numbers: np.ndarray) -> np.ndarray:
        """`(n_plans, n_plans)` mean squared differences of the numbers, in standard deviations of these plans."""
        values = np.clip((numbers - self.center) / self.scale, -_FAR, _FAR)
        values = (values - values.mean(axis=0)) / np.maximum(values.std(axis=0), _LEAST_SPREAD)
        norms = (values**2).sum(axis=1)
        return np.maximum(norms[:, None] + norms - 2 * values @ values.T, 0.0) / values.shape[1]

    def save(self, folder: str | Path) -> None:
        """Write it into a folder, as JSON."""
        own: dict[str, Any] = {"moment": self.moment, "columns": list(self.columns)}
        own |= {name: [_rounded(x) for x in getattr(self, name)] for name in _ARRAYS}
        own |= {name: _rounded(getattr(self, name)) for name in _NUMBERS}
        write_json(Path(folder) / DAMAGE_FILE, own)

    @classmethod
    def load(cls, folder: str | Path) -> "PlanDamage":
        """Read what `save` wrote. Raises ArtifactError if it is missing or damaged."""
        path = Path(folder) / DAMAGE_FILE
        found = read_json(path)
        try:
            columns = tuple(map(str, found["columns"]))
            n = len(columns) + 1
            arrays = []
            for name, length in zip(_ARRAYS, (n, n, 2 * n + 1, n + 2), strict=True):
                values = np.array(found[name], dtype=np.float64)
                if values.shape != (length,) or not np.isfinite(values).all():
                    raise ValueError(f"{name} does not fit the columns")
                arrays.append(values)
            alike, length, noise = (float(found[name]) for name in _NUMBERS)
            if not np.isfinite([alike, length, noise]).all() or alike < 0 or min(length, noise) <= 0:
                raise ValueError(f"{', '.join(_NUMBERS)} are out of range")
            return cls(str(found["moment"]), columns, *arrays, alike, length, noise)
        except (KeyError, TypeError, ValueError) as error:
            raise ArtifactError(f"{path} is damaged ({error}). Fit and save it again: experiment=pretrain") from None


@dataclass(frozen=True, eq=False)
class _Known:
    """A network that is learned from: `(n_plans, n_columns + 1)` numbers of its plans, and log damages."""

    family: str
    numbers: np.ndarray
    damage: np.ndarray


def _folds(known: Sequence[_Known]) -> list[tuple[list[_Known], list[_Known]]]:
    """Each family, after all others, that it is judged by; of fewer than three families each network by itself."""
    groups = [network.family for network in known]
    if len(set(groups)) < 3:
        groups = list(map(str, range(len(known))))
    return [
        ([n for n, own in zip(known, groups, strict=True) if own != name],
         [n for n, own in zip(known, groups, strict=True) if own == name])
        for name in dict.fromkeys(groups)
    ]  # fmt: skip


def _rounded(value: float) -> float:
    return float(f"{value:.6g}")


def _numbers(summary: PlanSummary, dense_loss: float, columns: Sequence[str]) -> np.ndarray:
    """`(n_plans, n_columns + 1)` float64."""
    missing = [name for name in columns if name not in summary.plan_names]
    if missing:
        raise CompressError(f"These plans were summarised without {missing[0]!r}.")
    values = summary.plan_values[:, [summary.plan_names.index(name) for name in columns]].astype(np.float64)
    return np.column_stack([values, np.full(len(values), np.log(max(dense_loss, 1e-3)))])


def _kernel(apart: np.ndarray, length: float) -> np.ndarray:
    return np.exp(-apart / (2 * length**2))


def _likeliest(
    effects: Sequence[tuple[np.ndarray, np.ndarray]], apart: Sequence[np.ndarray], variances: np.ndarray, noise: float
) -> tuple[float, float, float]:
    """Variance and length of what is alike, and noise of single plans, under which these plans are likeliest."""
    best = -np.inf, (0.0, 1.0, noise)
    linear = [(design * variances) @ design.T for design, _ in effects]
    for share, length, scale in product(_SHARES, _LENGTHS, _SCALES):
        alike, own = share * scale * noise, (1 - share) * scale * noise
        fit = 0.0
        for common, distance, (_, rest) in zip(linear, apart, effects, strict=True):
            whole = common + alike * _kernel(distance, length) + own * np.eye(len(rest))
            fit -= np.linalg.slogdet(whole)[1] + rest @ np.linalg.solve(whole, rest)
        best = max(best, (fit, (alike, length, own)))
    return best[1]


def _squares(values: np.ndarray) -> np.ndarray:
    values = np.clip(values, -_FAR, _FAR)
    return np.column_stack([values, values**2, np.ones(len(values))])


def _posterior(
    design: np.ndarray, rest: np.ndarray, variances: np.ndarray, noise: float
) -> tuple[np.ndarray, np.ndarray]:
    """Mean and covariance of a network's own coefficients after these plans were seen."""
    # In the scale of the prior, where a variance of zero is no trouble.
    scaled = design * np.sqrt(variances)
    inner = np.linalg.inv(scaled.T @ scaled / noise + np.eye(len(variances)))
    root = np.sqrt(variances)
    return root * (inner @ (scaled.T @ rest)) / noise, inner * np.outer(root, root)


def _spread(effects: Sequence[tuple[np.ndarray, np.ndarray]]) -> tuple[np.ndarray, float]:
    """Variances of the coefficients over networks, and of single plans."""
    variances, noise = np.full(effects[0][0].shape[1], 0.1), 0.2
    for _ in range(_ROUNDS):
        squares, misfit = np.zeros(len(variances)), 0.0
        for design, rest in effects:
            mean, covariance = _posterior(design, rest, variances, noise)
            squares += mean**2 + np.diag(covariance)
            misfit += np.square(rest - design @ mean).sum() + np.einsum("ij,jk,ik->", design, covariance, design)
        variances = np.maximum(squares / len(effects), 1e-9)
        noise = max(float(misfit / sum(len(rest) for _, rest in effects)), 1e-6)
    return variances, noise
