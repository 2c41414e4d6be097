"""Damage of many choices together: what they do alone, corrected by what a few random plans measured."""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from scipy.optimize import minimize

from compress.errors import ArtifactError, CompressError
from compress.files import load_arrays, save_arrays

# Damages below this part of the largest are noise of rounding; their logarithm would mean nothing.
_FLOOR = 1e-5
# Strengths that hold the weights at 1; without weights only exponent and scale are fitted.
_PENALTIES = (0.01, 0.03, 0.1, 0.3, 1.0, float("inf"))
_FOLDS = 5
_FEWEST = 10
# Damages below this many standard errors are not told from none.
_LOUD = 2.0
_EXPONENTS = (0.2, 4.0)


@dataclass(frozen=True, eq=False)
class JointDamage:
    """Predicts the damage of a plan as `scale * (sum of weight * damage alone) ** exponent`.

    Single damages add up only where they are small. Among many they grow faster than their sum (an exponent above 1:
    errors of one layer meet the errors of others) or slower (below 1: what is lost already cannot be lost again), and a
    choice that looks harmless in the dense network may not be so among others. CLADO (Deng et al. 2023,
    arXiv:2307.05657) measures this pair by pair; here it is learned from random plans, a few dozen for any number of
    choices. The prediction grows with a sum over choices, so `corrected` damages can be given to any allocator that
    adds.

    Attributes:
        damage: `(n_choices,)` measured alone, in nats, floored above zero.
        weight: `(n_choices,)`.
        exponent, scale: see above.
        penalty: that cross-validation over plans chose; infinite if weights did not help. Where a plain sum predicts
            plans held out better, it is left a sum: weights, exponent and scale are 1.
        residuals: measured minus predicted log damage of plans held out of the fit, of those that did more damage than
            the noise of measuring. With fewer than ten of these nothing is learned: it is left a sum.
        plans: how many were measured.
    """

    damage: np.ndarray
    weight: np.ndarray
    exponent: float
    scale: float
    penalty: float
    residuals: np.ndarray
    plans: int

    @classmethod
    def fit(
        cls, damage: np.ndarray, taken: np.ndarray, measured: np.ndarray, shared: Sequence[int] | None = None,
        noise: float = 0.0, seed: int = 0,
    ) -> "JointDamage":  # fmt: skip
        """Learn from measured plans.

        Args:
            damage: `(n_choices,)` of each choice alone, in nats.
            taken: `(n_plans, n_choices)` bool, what each plan does.
            measured: `(n_plans,)` damage of the plans, in nats.
            shared: `(n_choices,)` number of the weight that each choice has; by default each has its own.
            noise: nats below which measured damages mean nothing, such as their standard error.
            seed: of the folds of plans.

        Raises:
            CompressError: for arrays that do not fit together or are not finite, fewer than ten plans, or a plan that
                takes nothing.
        """
        damage, taken, measured = np.asarray(damage, float), np.asarray(taken, bool), np.asarray(measured, float)
        own = np.arange(len(damage)) if shared is None else np.unique(shared, return_inverse=True)[1]
        if taken.shape != (len(measured), len(damage)) or own.shape != damage.shape:
            raise CompressError(
                f"JointDamage.fit needs 'taken' of shape {(len(measured), len(damage))} and as many 'shared' as "
                f"choices. Got {taken.shape} and {own.shape}."
            )
        if len(measured) < _FEWEST or not (np.isfinite(damage).all() and np.isfinite(measured).all()):
            raise CompressError(
                f"JointDamage.fit needs finite damages and at least {_FEWEST} measured plans. Got {len(measured)}."
            )
        if not taken.any(1).all() or not (damage > 0).any():
            raise CompressError("JointDamage.fit needs plans that take at least one choice, and one that does damage.")
        if (taken == taken[:1]).all():
            raise CompressError("JointDamage.fit needs plans that differ. All take the same choices.")
        damage = np.maximum(damage, _FLOOR * damage.max())
        noise = max(noise, _FLOOR * float(measured.max()), 1e-12)
        problem = _Problem(taken * damage, np.log(np.maximum(measured, 0) + noise), own, noise)
        folds = np.random.default_rng(seed).permutation(len(measured)) % _FOLDS
        errors = {penalty: problem.held_out(penalty, folds) for penalty in _PENALTIES}
        best = min(errors, key=lambda penalty: float(np.square(errors[penalty]).mean()))
        added = problem.errors(np.zeros(int(own.max()) + 1), 1.0, 0.0)
        # What lies within the noise is predicted by anything: it neither teaches nor counts as predicted.
        loud = measured > _LOUD * noise
        if loud.sum() < _FEWEST or np.square(added[loud]).mean() <= np.square(errors[best][loud]).mean():
            residuals = problem.log_ratios(added)[loud]
            return cls(damage, np.ones(len(damage)), 1.0, 1.0, float("inf"), residuals, len(measured))
        log_weight, exponent, log_scale = problem.solve(best)
        return cls(damage, np.exp(log_weight[own]), exponent, float(np.exp(log_scale)), best,
                   problem.log_ratios(errors[best])[loud], len(measured))  # fmt: skip

    @property
    def corrected(self) -> np.ndarray:
        """`(n_choices,)` damages that may be added: a smaller sum is a smaller predicted damage."""
        return self.weight * self.damage

    def predict(self, taken: np.ndarray) -> np.ndarray:
        """`(n_plans,)` nats. A plan that takes nothing does none."""
        return self.of_sum(np.asarray(taken, float) @ self.corrected)

    def of_sum(self, total: np.ndarray | float) -> np.ndarray:
        """Nats of plans whose `corrected` damages add up to this."""
        return self.scale * np.power(np.maximum(total, 0.0), self.exponent)

    def marginal(self, total: float) -> float:
        """Nats that one more unit of `corrected` damage costs where they add up to this; at the least to one choice."""
        total = max(total, float(self.corrected.min()))
        return float(self.scale * self.exponent * total ** (self.exponent - 1))

    def save(self, path: str | Path) -> None:
        """Write an `.npz`, atomically."""
        law = np.array([self.exponent, self.scale, self.penalty, self.plans])
        save_arrays(path, damage=self.damage, weight=self.weight, law=law, residuals=self.residuals)

    @classmethod
    def load(cls, path: str | Path) -> "JointDamage":
        """Read what `save` wrote. Raises ArtifactError if it is missing or damaged."""
        a = load_arrays(path, ("damage", "weight", "law", "residuals"))
        if a["damage"].shape != a["weight"].shape or a["law"].shape != (4,) or not (a["damage"] > 0).all():
            raise ArtifactError(f"{path} is not a valid law of joint damage. Delete it to learn it anew.")
        return cls(a["damage"], a["weight"], *a["law"][:3].tolist(), a["residuals"], int(a["law"][3]))


@dataclass(frozen=True, eq=False)
class _Problem:
    """`parts` is `(n_plans, n_choices)` single damages of what was taken, `own` the weight of each choice; `target` is
    the logarithm of damage plus noise."""

    parts: np.ndarray
    target: np.ndarray
    own: np.ndarray
    noise: float

    def solve(self, penalty: float) -> tuple[np.ndarray, float, float]:
        """Log weights, exponent and log scale."""
        n_weights = int(self.own.max()) + 1
        by_weight = np.zeros((len(self.parts), n_weights))
        np.add.at(by_weight.T, self.own, self.parts.T)
        free = np.isfinite(penalty)

        def cost(x: np.ndarray) -> tuple[float, np.ndarray]:
            weighted = by_weight * np.exp(np.clip(x[:-2], -20, 20))
            total = weighted.sum(1)
            level = x[-2] * np.log(total) + x[-1]
            damage = np.exp(np.clip(level, -50, 50))
            error = np.log(damage + self.noise) - self.target
            slope = 2 * error / len(error) * damage / (damage + self.noise)
            held = penalty * 100 / len(error) / n_weights if free else 0.0
            gradient = np.concatenate([
                (slope * x[-2] / total) @ weighted * free + 2 * held * x[:-2], [slope @ np.log(total)], [slope.sum()]
            ])  # fmt: skip
            return float(np.square(error).mean() + held * np.square(x[:-2]).sum()), gradient

        start = np.concatenate([np.zeros(n_weights), [1.0, 0.0]])
        bounds = [(None, None)] * n_weights + [_EXPONENTS, (None, None)]
        found = minimize(cost, start, jac=True, method="L-BFGS-B", bounds=bounds, options={"maxiter": 500}).x
        return found[:-2], float(found[-2]), float(found[-1])

    def held_out(self, penalty: float, folds: np.ndarray) -> np.ndarray:
        """`(n_plans,)` errors of the log damage, each plan predicted without its fold."""
        errors = np.empty(len(self.target))
        for fold in np.unique(folds):
            out = folds == fold
            known = _Problem(self.parts[~out], self.target[~out], self.own, self.noise)
            errors[out] = _Problem(self.parts[out], self.target[out], self.own, self.noise).errors(
                *known.solve(penalty)
            )
        return errors

    def log_ratios(self, errors: np.ndarray) -> np.ndarray:
        """`(n_plans,)` logarithm of measured over predicted damage, without the noise that errors count in."""
        measured, predicted = np.exp(self.target) - self.noise, np.exp(self.target - errors) - self.noise
        return np.log(np.maximum(measured, 1e-12) / np.maximum(predicted, 1e-12))

    def errors(self, log_weight: np.ndarray, exponent: float, log_scale: float) -> np.ndarray:
        """`(n_plans,)` measured minus predicted."""
        total = self.parts @ np.exp(log_weight[self.own])
        return self.target - np.log(np.exp(exponent * np.log(total) + log_scale) + self.noise)
