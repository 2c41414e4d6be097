"""A small neural network (torch): a few of them, averaged."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import ClassVar

import numpy as np
import torch
from safetensors import SafetensorError
from safetensors.numpy import load, save

from autolabel.tabular import TabularLabeler
from autolabel.transform import FeatureScaler


@dataclass(frozen=True, eq=False)
class _Nets:
    """`n_nets` two-layer nets side by side: `weights` maps a name to an array whose first axis is the net."""

    scaler: FeatureScaler
    center: float
    spread: float
    weights: dict[str, np.ndarray]

    def predict(self, x: np.ndarray) -> np.ndarray:
        """`(n_rows,)` mean over the nets."""
        with torch.no_grad():
            weights = {name: torch.from_numpy(value) for name, value in self.weights.items()}
            out = _forward(torch.from_numpy(self.scaler.apply(x)), weights).mean(dim=0)
        return out.numpy() * self.spread + self.center

    def dump(self) -> bytes:
        """These nets as safetensors."""
        nets = {f"net.{name}": value for name, value in self.weights.items()}
        return save({**self.scaler.arrays(), **nets, "target": np.array([self.center, self.spread])})


def _forward(x: torch.Tensor, weights: dict[str, torch.Tensor]) -> torch.Tensor:
    """`(n_nets, n_rows)` outputs for scaled rows `(n_rows, n_columns)` or `(n_nets, n_rows, n_columns)`."""
    hidden = torch.nn.functional.silu(x @ weights["w1"] + weights["b1"])
    return (hidden @ weights["w2"] + weights["b2"] + x @ weights["skip"]).squeeze(-1)


@dataclass
class MLPLabeler(TabularLabeler):
    """One hidden layer and a linear skip, trained on all rows at once by AdamW; nets differ in their start and rows.

    Attributes:
        hidden: width of the hidden layer.
        nets: how many are averaged; each is trained on a random 80 % of the groups where there are at least five.
        steps: training steps.
        learning_rate: of AdamW, decaying to zero along a cosine.
        weight_decay: of AdamW.
    """

    hidden: int = 16
    nets: int = 4
    steps: int = 120
    learning_rate: float = 0.005
    weight_decay: float = 1.0

    name: ClassVar[str] = "mlp"

    def __post_init__(self) -> None:
        super().__post_init__()
        for name in ("hidden", "nets", "steps"):
            value = getattr(self, name)
            self._check(name, isinstance(value, int) and value >= 1, "a positive int")
        self._check("learning_rate", self.learning_rate > 0.0, "a positive float")
        self._check("weight_decay", self.weight_decay >= 0.0, "a float that is not negative")

    def _regress(self, x: np.ndarray, z: np.ndarray, keys: np.ndarray, columns: Sequence[str]) -> _Nets:
        scaler = FeatureScaler.learn(x)
        center, spread = float(z.mean()), float(z.std())
        # Equal damages leave nothing to learn: the nets then count for nothing and the centre is the answer.
        spread = spread if spread > 1e-12 * max(1.0, abs(center)) else 0.0
        rows = torch.from_numpy(scaler.apply(x))
        target = torch.from_numpy((z - center) / (spread or 1.0))
        share = torch.from_numpy(_row_weights(keys, self.nets, self.seed))
        weights = _start(rows.shape[1], self.hidden, self.nets, self.seed)
        optimizer = torch.optim.AdamW(weights.values(), lr=self.learning_rate, weight_decay=self.weight_decay)
        schedule = torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, self.steps)
        with torch.enable_grad():
            for _ in range(self.steps):
                optimizer.zero_grad()
                # A sum over nets: each has its own parameters, so none feels the others.
                (share * (_forward(rows, weights) - target) ** 2).sum().backward()
                optimizer.step()
                schedule.step()
        return _Nets(scaler, center, spread, {name: value.detach().numpy() for name, value in weights.items()})

    @classmethod
    def _parse(cls, content: bytes) -> _Nets:
        try:
            arrays = load(content)
        except SafetensorError as error:
            raise ValueError(str(error)) from error
        scaler = FeatureScaler(arrays["bend"], arrays["mean"], arrays["deviation"])
        nets = {name.removeprefix("net."): value for name, value in arrays.items() if name.startswith("net.")}
        return _Nets(scaler, float(arrays["target"][0]), float(arrays["target"][1]), nets)


def _start(n_columns: int, hidden: int, nets: int, seed: int) -> dict[str, torch.Tensor]:
    """Initial float64 parameters, from a generator of their own."""
    generator = torch.Generator().manual_seed(seed)

    def draw(*shape: int, scale: float) -> torch.Tensor:
        return (torch.randn(*shape, generator=generator, dtype=torch.float64) * scale).requires_grad_()

    return {
        "w1": draw(nets, n_columns, hidden, scale=n_columns**-0.5),
        "b1": draw(nets, 1, hidden, scale=0.1),
        "w2": draw(nets, hidden, 1, scale=0.1 * hidden**-0.5),
        "b2": draw(nets, 1, 1, scale=0.0),
        "skip": draw(nets, n_columns, 1, scale=0.0),
    }


def _row_weights(keys: np.ndarray, nets: int, seed: int) -> np.ndarray:
    """`(nets, n_rows)` weight of each row in each net's loss, summing to 1; whole groups are left out at random."""
    names, position = np.unique(keys, return_inverse=True)
    generator = np.random.default_rng(seed)
    share = np.ones((nets, len(keys)))
    if len(names) >= 5:
        for net in range(nets):
            dropped = generator.permutation(len(names))[: len(names) // 5]
            share[net, np.isin(position, dropped)] = 0.0
    return share / share.sum(axis=1, keepdims=True)
