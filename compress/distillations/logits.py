"""Soft targets: the teacher's class probabilities at a temperature."""

from dataclasses import dataclass
from typing import Any, ClassVar

from torch import Tensor, nn
from torch.nn import functional as F

from compress.distillation import Pairs, Said
from compress.errors import CompressError


@dataclass(frozen=True)
class LogitDistillation:
    """`T^2 KL(teacher || student)` of the class probabilities at temperature T, in nats.

    Hinton, Vinyals, Dean 2015, "Distilling the Knowledge in a Neural Network" (arXiv:1503.02531).

    Attributes:
        temperature: above 0; higher tells more of the unlikely classes.
    """

    name: ClassVar[str] = "logits"
    reads: ClassVar[str] = "outputs"
    pairs: ClassVar[Pairs | None] = None

    temperature: float = 4.0

    def __post_init__(self) -> None:
        if not 0 < self.temperature < float("inf"):
            raise CompressError(
                f"The 'temperature' parameter of LogitDistillation must be above 0. Got {self.temperature!r}."
            )

    def settings(self) -> dict[str, Any]:
        return {"temperature": self.temperature}

    def regressors(self, student: Said, teacher: Said) -> nn.ModuleList:
        return nn.ModuleList()

    def loss(self, student: Said, teacher: Said, regressors: nn.ModuleList) -> Tensor:
        if not isinstance(student.outputs, Tensor) or student.outputs.dim() < 2:
            raise CompressError("Distillation needs logits as outputs. Set 'alpha' to 0 for this task.")
        found = tuple(teacher.outputs.shape) if isinstance(teacher.outputs, Tensor) else type(teacher.outputs).__name__
        if found != tuple(student.outputs.shape):
            raise CompressError(
                f"The teacher gives {found}, the model logits of shape {tuple(student.outputs.shape)}. Give a teacher "
                "of the same classes, or set 'alpha' to 0."
            )
        return distillation_loss(student.outputs, teacher.outputs, self.temperature).mean()


def distillation_loss(outputs: Tensor, teacher_outputs: Tensor, temperature: float) -> Tensor:
    """`T^2 KL(teacher || model)` at this temperature, of each example, shape `(batch,)`, in nats."""
    expected = F.log_softmax(teacher_outputs / temperature, dim=-1)
    found = F.log_softmax(outputs / temperature, dim=-1)
    divergence = F.kl_div(found, expected, reduction="none", log_target=True).sum(-1) * temperature**2
    return divergence.reshape(divergence.shape[0], -1).mean(1)
