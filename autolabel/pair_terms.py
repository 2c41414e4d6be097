"""What pairs of choices do beyond their sum: by a second-order expansion, and learned from plans of many choices."""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch
from sklearn.linear_model import RidgeCV

from autolabel.choice_bench import DENSE, ChoiceBench
from autolabel.joint_damage import JointDamage
from compress.errors import CompressError
from compress.task import Batch

# What holds the terms of pairs at 0, in numbers of plans; the last leaves nothing of them.
_PENALTIES = (10.0, 30.0, 100.0, 300.0, 1000.0, 3000.0, 1e6)


def second_order_pairs(bench: ChoiceBench, batches: Sequence[Batch]) -> np.ndarray:
    """`(n_choices, n_choices)` nats: a plan that takes choices t does `t @ pairs @ t`, the diagonal being each alone.

    Outputs of a classifier are taken to change by the sum of what choices change alone, and the loss by the
    second-order expansion in them (Gauss-Newton: the Fisher matrix of the softmax). CLADO (Deng et al. 2023,
    arXiv:2307.05657) measures the terms of pairs one by one; here they cost a forward pass of each choice.

    Raises:
        CompressError: if outputs are not `(n_examples, n_classes)`.
    """
    dense = bench.outputs([DENSE] * len(bench.layers), batches).double()
    if dense.dim() != 2:
        raise CompressError(f"Terms of pairs need outputs (n_examples, n_classes). Got {tuple(dense.shape)}.")
    probability = dense.softmax(1)
    rows = []
    for layer in range(len(bench.layers)):
        for pick in range(len(bench.choices)):
            picks = [pick if i == layer else DENSE for i in range(len(bench.layers))]
            change = bench.outputs(picks, batches).double() - dense
            change -= (probability * change).sum(1, keepdim=True)
            rows.append((probability.sqrt() * change).reshape(-1))
    changes = torch.stack(rows)
    return (changes @ changes.T / (2 * len(dense))).numpy()


@dataclass(frozen=True, eq=False)
class LearnedPairs:
    """Terms of pairs of layers, on top of a law of the sum.

    The logarithm of a plan's damage is that of `law`, plus a term for each pair of layers: a weight times how severe
    the choice of either is (the logarithm of its damage alone, standardised). Weights are a ridge regression on what
    the law left of the plans it learned from; its penalty is chosen by leaving single plans out.
    """

    law: JointDamage
    noise: float
    severity: np.ndarray
    weight: np.ndarray
    offset: float

    @classmethod
    def fit(
        cls, law: JointDamage, taken: np.ndarray, measured: np.ndarray, n_layers: int, noise: float
    ) -> "LearnedPairs":  # fmt: skip
        """Learn from measured plans, `(n_plans, n_choices)` taken and `(n_plans,)` nats; noise as of `JointDamage`."""
        log_damage = np.log(law.damage + noise).reshape(n_layers, -1)
        severity = (log_damage - log_damage.mean()) / max(float(log_damage.std()), 1e-12)
        left = np.log(np.maximum(measured, 0) + noise) - np.log(law.predict(taken) + noise)
        ridge = RidgeCV(alphas=_PENALTIES).fit(_products(taken, severity), left)
        return cls(law, noise, severity, ridge.coef_, float(ridge.intercept_))

    def predict(self, taken: np.ndarray) -> np.ndarray:
        """`(n_plans,)` nats."""
        left = _products(taken, self.severity) @ self.weight + self.offset
        return np.maximum((self.law.predict(taken) + self.noise) * np.exp(left) - self.noise, 0)


def _products(taken: np.ndarray, severity: np.ndarray) -> np.ndarray:
    """`(n_plans, n_pairs)` products of the severities that two layers take."""
    own = (np.asarray(taken, float).reshape(-1, *severity.shape) * severity).sum(2)
    first, second = np.triu_indices(len(severity), 1)
    return own[:, first] * own[:, second]
