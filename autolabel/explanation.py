"""Why a unit got its label: which features mattered, by LightGBM's own SHAP values where there are trees."""

from dataclasses import dataclass

import numpy as np
from scipy.stats import spearmanr

from autolabel.regressor import AdditiveRegressor
from autolabel.tables import FeatureTable
from autolabel.tabular import FittedProblem, TabularLabeler
from compress.errors import CompressError


@dataclass(frozen=True)
class FeatureWeight:
    """What one feature did to the predictions.

    Attributes:
        name: the feature; `"bits"` is the bit-width itself, a name with `own` in it the value at that bit-width.
        share: its part of all absolute contributions, in [0, 1].
        direction: +1 if high values go with more predicted damage, -1 with less, 0 if neither.
    """

    name: str
    share: float
    direction: int


def top_features(
    labeler: TabularLabeler, features: FeatureTable, choice: str = "removed", n: int = 10
) -> tuple[FeatureWeight, ...]:
    """The `n` features that moved the predictions of `choice` most, the largest first; fewer if fewer moved any.

    Raises:
        CompressError: if the labeler learned nothing of `choice`, or no unit can have it.
    """
    fitted = labeler.problem_of(choice)
    rows = np.flatnonzero(fitted.applies_to(features))
    if not rows.size:
        raise CompressError(f"No unit of the feature table can have the choice {choice!r}.")
    of_choices = [fitted.problem.rows(features.values[rows], labeler.feature_names, c) for c in fitted.problem.choices]
    x = np.concatenate(of_choices)
    split = _contributions(fitted, x)[:, :-1]
    size = np.abs(split).mean(axis=0)
    order = [i for i in np.argsort(-size, kind="stable")[:n] if size[i] > 0.0]
    return tuple(
        FeatureWeight(fitted.problem.columns[i], float(size[i] / size.sum()), _direction(x[:, i], split[:, i]))
        for i in order
    )


def explain(
    labeler: TabularLabeler, features: FeatureTable, unit_id: str, choice: str | None = None, n: int = 5
) -> str:
    """Words: the predicted damage of one unit, and the `n` features that moved it most away from the average.

    Each feature's amount is the predicted damage minus what it would be without that contribution; on a logarithmic
    scale such amounts do not add up.

    Args:
        labeler: fitted.
        features: a table that holds the unit; other units give its values their rank.
        unit_id: which unit.
        choice: which choice; by default the first that the labeler knows for this unit.
        n: how many features to name.

    Raises:
        CompressError: for a unit or choice that is not there.
    """
    if unit_id not in features.unit_ids:
        raise CompressError(f"The feature table has no unit {unit_id!r}. Known ids look like {features.unit_ids[:2]}.")
    row = features.unit_ids.index(unit_id)
    label = labeler.predict(features.select(np.array([row])))
    known = [c for i, c in enumerate(label.choices) if np.isfinite(label.damage[0, i])]
    if not known or choice not in (None, *known):
        raise CompressError(f"The labeler predicts {known or 'nothing'} for {unit_id!r}. Got choice {choice!r}.")
    choice = known[0] if choice is None else choice
    column, fitted = label.choices.index(choice), labeler.problem_of(choice)
    x = fitted.problem.rows(features.values, labeler.feature_names, choice)
    peers = x[fitted.applies_to(features)]
    split = _contributions(fitted, x[[row]])[0, :-1]
    z = fitted.transformed(features.select(np.array([row])), choice)[0]
    lines = [
        f"{unit_id}, {choice}: predicted damage {label.damage[0, column]:.3g} "
        f"({labeler.coverage:.0%} interval {label.lower[0, column]:.3g} to {label.upper[0, column]:.3g})."
    ]
    for i in np.argsort(-np.abs(split), kind="stable")[:n]:
        if split[i] == 0.0:
            break
        amount = float(fitted.transform.inverse(z) - fitted.transform.inverse(z - split[i]))
        below = float((peers[:, i] < x[row, i]).mean())
        lines.append(
            f"  {'+' if amount >= 0 else '-'}{abs(amount):.3g}  {fitted.problem.columns[i]} = {x[row, i]:.4g}, "
            f"higher than in {below:.0%} of {len(peers)} units."
        )
    if len(lines) == 1:
        lines.append("  No feature moved it: this is the average of the labels.")
    return "\n".join(lines)


def _contributions(fitted: FittedProblem, x: np.ndarray) -> np.ndarray:
    """`(n_rows, n_columns + 1)` transformed contributions, by occlusion where there are none of its own."""
    if isinstance(fitted.regressor, AdditiveRegressor):
        return fitted.regressor.contributions(x)
    whole, typical = fitted.regressor.predict(x), np.median(x, axis=0)
    split = np.zeros((len(x), x.shape[1] + 1))
    for column in range(x.shape[1]):
        hidden = x.copy()
        hidden[:, column] = typical[column]
        split[:, column] = whole - fitted.regressor.predict(hidden)
    split[:, -1] = whole - split[:, :-1].sum(axis=1)
    return split


def _direction(values: np.ndarray, contribution: np.ndarray) -> int:
    if len(values) < 3 or np.ptp(values) == 0.0 or np.ptp(contribution) == 0.0:
        return 0
    return int(np.sign(np.round(spearmanr(values, contribution).statistic, 1)))
