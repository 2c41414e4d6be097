"""A small network that sees a unit among the units of its layer."""

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import ClassVar

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from autolabel.unit_board import UnitBoard, unit_matrix
from compress.errors import CompressError


class _Net(nn.Module):
    """Each unit, and the mean and the maximum over the units of its layer, to one number."""

    def __init__(self, n_columns: int, width: int, dropout: float) -> None:
        super().__init__()
        self.enter = nn.Sequential(nn.Linear(n_columns, width), nn.GELU(), nn.Dropout(dropout))
        self.mix = nn.Sequential(nn.Linear(3 * width, width), nn.GELU(), nn.Dropout(dropout), nn.Linear(width, 1))

    def forward(self, x: Tensor, group: Tensor, n_groups: int) -> Tensor:
        x = self.enter(x)
        counts = torch.bincount(group, minlength=n_groups).clamp_min(1)[:, None]
        mean = x.new_zeros(n_groups, x.shape[1]).index_add(0, group, x) / counts
        index = group[:, None].expand_as(x)
        most = torch.full_like(mean, -1e4).scatter_reduce(0, index, x, "amax")
        return self.mix(torch.cat([x, mean[group], most[group]], dim=1)).squeeze(1)


@dataclass(eq=False)
class SetUnitLabeler:
    """DeepSets over the units of each layer (Zaheer et al. 2017, arXiv:1703.06114), fitted to their normal scores.

    Args:
        width, dropout: of the network.
        epochs, lr, weight_decay: of its training; each step sees one network.
        seed: of everything random.
    """

    name: ClassVar[str] = "set_network"

    width: int = 48
    dropout: float = 0.2
    epochs: int = 12
    lr: float = 2e-3
    weight_decay: float = 0.05
    seed: int = 0
    _model: _Net | None = field(default=None, repr=False)
    _fitted_on: tuple[str, tuple[str, ...]] | None = field(default=None, repr=False)

    def fit(self, boards: Sequence[UnitBoard], moment: str) -> "SetUnitLabeler":
        """See `UnitLabeler`."""
        if not boards:
            raise CompressError("A unit labeler needs at least one board to learn from. Got none.")
        self._fitted_on = boards[0].scope, boards[0].names
        data = [(*_tensors(board), torch.from_numpy(board.target(moment)).float()) for board in boards]
        rng = np.random.default_rng(self.seed)
        with torch.random.fork_rng():
            torch.manual_seed(self.seed)
            net = _Net(data[0][0].shape[1], self.width, self.dropout)
            optimizer = torch.optim.AdamW(net.parameters(), self.lr, weight_decay=self.weight_decay)
            steps = self.epochs * len(data)
            schedule = torch.optim.lr_scheduler.OneCycleLR(optimizer, self.lr, total_steps=steps + 1)
            for _ in range(self.epochs):
                for i in rng.permutation(len(data)):
                    x, group, target = data[i]
                    loss = F.mse_loss(net(x, group, int(group.max()) + 1), target)
                    optimizer.zero_grad()
                    loss.backward()
                    optimizer.step()
                    schedule.step()
        self._model = net.eval()
        return self

    def predict(self, board: UnitBoard) -> np.ndarray:
        """See `UnitLabeler`."""
        if self._model is None:
            raise CompressError("This unit labeler was not fitted. Call fit first.")
        if (board.scope, board.names) != self._fitted_on:
            raise CompressError("This unit labeler was fitted on other features, or in another scope.")
        x, group = _tensors(board)
        with torch.no_grad():
            return self._model(x, group, int(group.max()) + 1).double().numpy()


def _tensors(board: UnitBoard) -> tuple[Tensor, Tensor]:
    return 3.0 * torch.from_numpy(unit_matrix(board)), torch.from_numpy(board.group)
