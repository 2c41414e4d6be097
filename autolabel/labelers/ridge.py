"""Ridge regression on bent and standardised features: the linear labeler."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import ClassVar

import numpy as np
from safetensors import SafetensorError
from safetensors.numpy import load, save
from sklearn.linear_model import Ridge, RidgeCV

from autolabel.folds import assign_folds
from autolabel.tabular import TabularLabeler
from autolabel.transform import FeatureScaler

_INNER_FOLDS = 4


@dataclass(frozen=True, eq=False)
class _Linear:
    """`intercept + scaled features @ weight`."""

    scaler: FeatureScaler
    weight: np.ndarray
    intercept: float

    def predict(self, x: np.ndarray) -> np.ndarray:
        """`(n_rows,)` predictions."""
        return self.scaler.apply(x) @ self.weight + self.intercept

    def contributions(self, x: np.ndarray) -> np.ndarray:
        """Weight times scaled feature: the SHAP values of a linear model whose features are independent."""
        return np.column_stack([self.scaler.apply(x) * self.weight, np.full(len(x), self.intercept)])

    def dump(self) -> bytes:
        """This regression as safetensors."""
        return save({**self.scaler.arrays(), "weight": self.weight, "intercept": np.array([self.intercept])})


@dataclass
class RidgeLabeler(TabularLabeler):
    """Linear in signed logarithms of the features, on the transformed damage.

    Attributes:
        alphas: penalties to choose from, per row of data, by error on held-out groups; the middle one is taken where
            there are fewer than two groups.
    """

    alphas: tuple[float, ...] = (1e-3, 1e-2, 1e-1, 1.0, 10.0)

    name: ClassVar[str] = "ridge"

    def __post_init__(self) -> None:
        super().__post_init__()
        self.alphas = tuple(float(alpha) for alpha in self.alphas)
        self._check("alphas", bool(self.alphas) and min(self.alphas) > 0.0, "a non-empty sequence of positive floats")

    def _regress(self, x: np.ndarray, z: np.ndarray, keys: np.ndarray, columns: Sequence[str]) -> _Linear:
        scaler = FeatureScaler.learn(x)
        scaled = scaler.apply(x)
        fold = assign_folds(keys, _INNER_FOLDS, self.seed)
        alphas = np.array(self.alphas) * len(z)
        if fold.max() == 0:
            model = Ridge(alpha=alphas[len(alphas) // 2], solver="svd").fit(scaled, z)
        else:
            splits = [(np.flatnonzero(fold != k), np.flatnonzero(fold == k)) for k in range(int(fold.max()) + 1)]
            search = RidgeCV(alphas, cv=splits, scoring="neg_mean_squared_error").fit(scaled, z)
            model = Ridge(alpha=float(search.alpha_), solver="svd").fit(scaled, z)
        return _Linear(scaler, np.asarray(model.coef_, dtype=np.float64), float(model.intercept_))

    @classmethod
    def _parse(cls, content: bytes) -> _Linear:
        try:
            arrays = load(content)
        except SafetensorError as error:
            raise ValueError(str(error)) from error
        scaler = FeatureScaler(arrays["bend"], arrays["mean"], arrays["deviation"])
        return _Linear(scaler, arrays["weight"], float(arrays["intercept"][0]))
