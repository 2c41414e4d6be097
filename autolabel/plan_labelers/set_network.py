"""A small network that sees a plan as the set of its groups."""

from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import ClassVar

import numpy as np
import safetensors.torch
import torch
from safetensors import SafetensorError
from torch import Tensor, nn
from torch.nn import functional as F

from autolabel.plan_board import PlanBoard
from autolabel.plan_labeler_files import load_members, save_members
from autolabel.plan_summary import PlanSummary
from compress.errors import ArtifactError, CompressError


class _SetNet(nn.Module):
    """Groups of a plan, each in the light of the others, to one number."""

    def __init__(self, n_columns: int, n_plan_columns: int, width: int, heads: int, dropout: float) -> None:
        super().__init__()
        self.enter = nn.Linear(n_columns, width)
        self.mix = nn.TransformerEncoderLayer(
            width, heads, 2 * width, dropout, activation="gelu", batch_first=True, norm_first=True
        )
        self.gate = nn.Linear(width, 1)
        self.plan = nn.Linear(n_plan_columns, width)
        self.leave = nn.Sequential(
            nn.Dropout(dropout), nn.Linear(4 * width, width), nn.GELU(), nn.Dropout(dropout), nn.Linear(width, 1)
        )

    def forward(self, groups: Tensor, plan: Tensor) -> Tensor:
        x = self.mix(F.gelu(self.enter(groups)))
        weighted = (x * torch.softmax(self.gate(x), dim=1)).sum(dim=1)
        pooled = torch.cat([x.mean(dim=1), x.amax(dim=1), weighted, F.gelu(self.plan(plan))], dim=1)
        return self.leave(pooled).squeeze(1)


@dataclass(eq=False)
class SetPlanLabeler:
    """Attention over the groups of a plan (Lee et al. 2019, "Set Transformer"), learned from pairs of one board.

    Args:
        members: size of the ensemble; each starts from other weights and leaves out other networks.
        width, heads, dropout: of the network.
        epochs, lr, weight_decay: of its training.
        seed: of everything random.
    """

    name: ClassVar[str] = "set_network"

    members: int = 3
    width: int = 48
    heads: int = 4
    dropout: float = 0.1
    epochs: int = 40
    lr: float = 2e-3
    weight_decay: float = 0.02
    seed: int = 0
    _models: list[_SetNet] = field(default_factory=list, repr=False)
    _names: tuple[str, ...] = field(default=(), repr=False)

    def fit(self, boards: Sequence[PlanBoard], moment: str = "finetuned") -> "SetPlanLabeler":
        """See `PlanLabeler`."""
        if not boards:
            raise CompressError("A plan labeler needs at least one board to learn from. Got none.")
        self._names = boards[0].summary.names + boards[0].summary.plan_names
        data = [(*_tensors(b.summary), torch.from_numpy(b.target(moment)).float()) for b in boards]
        self._models = []
        for member in range(self.members):
            rng = np.random.default_rng([self.seed, member])
            chosen = [i for i in range(len(data)) if self.members == 1 or rng.random() < 0.85] or [0]
            with torch.random.fork_rng():
                torch.manual_seed(self.seed * 1000 + member)
                self._models.append(self._train([data[i] for i in chosen], rng))
        return self

    def _train(self, data: list[tuple[Tensor, Tensor, Tensor]], rng: np.random.Generator) -> _SetNet:
        net = _SetNet(data[0][0].shape[2], data[0][1].shape[1], self.width, self.heads, self.dropout)
        optimizer = torch.optim.AdamW(net.parameters(), lr=self.lr, weight_decay=self.weight_decay)
        boards_per_step = 4
        steps = self.epochs * max(len(data) // boards_per_step, 1)
        schedule = torch.optim.lr_scheduler.OneCycleLR(optimizer, self.lr, total_steps=steps + 1)
        net.train()
        for _ in range(self.epochs):
            order = rng.permutation(len(data))
            for start in range(0, max(len(data) // boards_per_step, 1)):
                batch = order[start * boards_per_step : (start + 1) * boards_per_step]
                loss = sum(_board_loss(net(data[i][0], data[i][1]), data[i][2]) for i in batch) / len(batch)
                optimizer.zero_grad()
                loss.backward()
                nn.utils.clip_grad_norm_(net.parameters(), 1.0)
                optimizer.step()
                schedule.step()
        return net.eval()

    def _read(self, state: dict[str, Tensor]) -> _SetNet:
        columns = state["enter.weight"].shape[1], state["plan.weight"].shape[1]
        net = _SetNet(*columns, self.width, self.heads, self.dropout)
        net.load_state_dict(state)
        return net.eval()

    def predict(self, summary: PlanSummary, reference: PlanSummary | None = None) -> tuple[np.ndarray, np.ndarray]:
        """See `PlanLabeler`."""
        if not self._models:
            raise CompressError("This plan labeler was not fitted. Call fit first.")
        if summary.names + summary.plan_names != self._names:
            raise CompressError(
                "This plan labeler was fitted on other columns. Summarise plans with the same criteria."
            )
        groups, plan = _tensors(summary, reference)
        with torch.no_grad():
            found = torch.stack([net(groups, plan) for net in self._models])
            known = found if reference is None else torch.stack([net(*_tensors(reference)) for net in self._models])
        mean, deviation = known.mean(dim=1, keepdim=True), known.std(dim=1, keepdim=True, correction=0)
        scaled = ((found - mean) / deviation.clamp_min(1e-9)).double().numpy()
        return scaled.mean(axis=0), scaled.std(axis=0)

    def save(self, path: str | Path) -> None:
        """See `PlanLabeler`."""
        if not self._models:
            raise CompressError("This plan labeler was not fitted. Call fit first.")
        members = [("safetensors", safetensors.torch.save(dict(net.state_dict()))) for net in self._models]
        save_members(path, self, self._names, members)

    @classmethod
    def load(cls, path: str | Path) -> "SetPlanLabeler":
        """See `PlanLabeler`."""
        settings, names, members = load_members(path, cls.name)
        try:
            labeler = cls(**settings)
            labeler._models = [labeler._read(safetensors.torch.load(content)) for content in members]
        except (TypeError, ValueError, KeyError, IndexError, RuntimeError, SafetensorError) as error:
            raise ArtifactError(f"{path} is not a valid plan labeler ({error}). Fit and save it again.") from error
        labeler._names = names
        return labeler


def _board_loss(score: Tensor, target: Tensor) -> Tensor:
    """One minus the correlation within the board: only the order matters, on no scale of its own."""
    score, target = score - score.mean(), target - target.mean()
    return 1 - (score * target).sum() / (score.norm() * target.norm() + 1e-6)


def _tensors(summary: PlanSummary, reference: PlanSummary | None = None) -> tuple[Tensor, Tensor]:
    """`(n_plans, n_groups, n_columns)` and `(n_plans, n_plan_columns)`, as they are and compared with the reference."""
    groups, plan = torch.asinh(torch.from_numpy(summary.values)), torch.from_numpy(summary.plan_values)
    others = groups if reference is None else torch.asinh(torch.from_numpy(reference.values))
    other_plans = plan if reference is None else torch.from_numpy(reference.plan_values)
    # Compared group by group, and over plans and groups together, so that a group stays unlike another.
    within, overall = _standard(groups, others, (0,)), _standard(groups, others, (0, 1))
    return torch.cat([groups.clamp(-5, 5), within, overall], dim=2), _standard(plan, other_plans, (0,))


def _standard(x: Tensor, others: Tensor, dims: tuple[int, ...]) -> Tensor:
    deviation = others.std(dim=dims, keepdim=True, correction=0)
    found = (x - others.mean(dim=dims, keepdim=True)) / deviation.clamp_min(1e-6)
    return torch.where(deviation > 1e-6, found, 0.0).clamp(-5, 5)
