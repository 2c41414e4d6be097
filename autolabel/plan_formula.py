"""A formula in the place of a plan labeler: what a search finds with it, learning must beat."""

from dataclasses import dataclass

import numpy as np

from autolabel.plan_summary import PlanSummary
from compress.errors import CompressError


@dataclass(frozen=True)
class PlanFormula:
    """Orders plans by one of their numbers, see `PlanLabeler.predict`.

    Args:
        column: name of a column of whole plans, higher is worse. The default is the error in nats that a refit of the
            layers leaves, as a second-order expansion of the loss carries it to the end.
    """

    column: str = "refitted_loss_sum"

    @property
    def name(self) -> str:
        """For tables and plans."""
        return f"formula:{self.column}"

    def values(self, summary: PlanSummary) -> np.ndarray:
        """`(n_plans,)`. Raises CompressError if these plans were summarised without the column."""
        if self.column not in summary.plan_names:
            raise CompressError(f"These plans were summarised without {self.column!r}.")
        return summary.plan_values[:, summary.plan_names.index(self.column)].astype(np.float64)

    def predict(self, summary: PlanSummary, reference: PlanSummary | None = None) -> tuple[np.ndarray, np.ndarray]:
        """See `PlanLabeler`; the spread is zero."""
        others = self.values(summary if reference is None else reference)
        found = (self.values(summary) - others.mean()) / max(float(others.std()), 1e-9)
        return found, np.zeros(len(found))
