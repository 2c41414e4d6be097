"""Scores: what a criterion or a labeler says of every unit and choice."""

from dataclasses import dataclass

import numpy as np

from compress.errors import CompressError

SCALES = ("nats", "order")


@dataclass(frozen=True, eq=False)
class Scores:
    """How much each choice hurts, higher is worse.

    Attributes:
        unit_ids: ids of the scored units.
        choices: names of the columns: `"removed"` for channels and heads, `"8bit"`, `"4bit"`, ... for layers.
        values: `(n_units, n_choices)` float64; NaN where a choice does not apply to a unit.
        scale: `"nats"` if the values are damages that may be added over units, `"order"` if only their order
            within a group means anything.
    """

    unit_ids: tuple[str, ...]
    choices: tuple[str, ...]
    values: np.ndarray
    scale: str

    def __post_init__(self) -> None:
        shape = (len(self.unit_ids), len(self.choices))
        if self.values.shape != shape:
            raise CompressError(
                f"Scores.values must have shape (n_units, n_choices) = {shape}. Got {self.values.shape}."
            )
        if self.scale not in SCALES:
            raise CompressError(f"Scores.scale must be one of {SCALES}. Got {self.scale!r}.")
        if np.isinf(self.values).any():
            bad = self.unit_ids[int(np.argwhere(np.isinf(self.values))[0][0])]
            raise CompressError(f"Scores must be finite (or NaN where a choice does not apply). {bad} is infinite.")

    @property
    def removal(self) -> np.ndarray:
        """`(n_units,)`: the column of the choice `"removed"`."""
        return self.values[:, self.choices.index("removed")]


def as_damage(scores: Scores, damages: Scores) -> Scores:
    """Scores that only order, to be spent as if they were damages: all of them times one factor.

    With it the geometric means of what is positive are equal, so that a criterion's own unit (a norm, a count, a
    gradient) decides nothing where removals are weighed against formats, whose damages are in nats.

    Args:
        scores: of any scale, with the choice `"removed"`.
        damages: of the same units in nats, with the choice `"removed"`.
    """
    own, wanted = (np.log(values[values > 0]) for values in (scores.removal, damages.removal))
    factor = np.exp(wanted.mean() - own.mean()) if len(own) and len(wanted) else 1.0
    return Scores(scores.unit_ids, scores.choices, scores.values * factor, "nats")
