"""Why a unit got its label: which features mattered, by LightGBM's own SHAP values where there are trees."""

from dataclasses import dataclass

import numpy as np
from scipy.stats import rankdata, spearmanr

from autolabel.feature import describe_features
from autolabel.regressor import AdditiveRegressor
from autolabel.tables import FeatureTable, LabelTable
from autolabel.tabular import FittedProblem, TabularLabeler
from compress.costs import CostTable
from compress.errors import CompressError
from compress.units import UnitTable

_STEPS = (1, 2, 5, 10, 20, 50, 100, 200, 500, 1000)


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


@dataclass(frozen=True)
class Reason:
    """What one feature did to the label of one unit.

    Attributes:
        name: of the feature.
        value: of the unit.
        amount: predicted damage minus what it would be without this contribution; on a logarithmic scale such amounts
            do not add up.
        above: share of units with a lower value.
        means: what the feature is, see `describe_features`; empty for one that is not the package's own.
    """

    name: str
    value: float
    amount: float
    above: float
    means: str = ""


@dataclass(frozen=True)
class Relative:
    """A measured unit that is like another one.

    Attributes:
        unit_id: which.
        distance: root mean square difference of the features' ranks, 0 for twins, about 0.4 for strangers.
        damage: what was measured.
    """

    unit_id: str
    distance: float
    damage: float


@dataclass(frozen=True)
class Explanation:
    """Why a unit got its label.

    Attributes:
        unit_id, choice: which.
        damage, lower, upper: predicted, with its interval.
        coverage: of the interval.
        reasons: the features that moved the prediction most away from the average, the first the most.
        peers: number of units that features are compared with.
        relatives: measured units most alike.
    """

    unit_id: str
    choice: str
    damage: float
    lower: float
    upper: float
    coverage: float
    reasons: tuple[Reason, ...]
    peers: int
    relatives: tuple[Relative, ...] = ()

    def __str__(self) -> str:
        lines = [
            f"{self.unit_id}, {self.choice}: predicted damage {self.damage:.3g} "
            f"({self.coverage:.0%} interval {self.lower:.3g} to {self.upper:.3g})."
        ]
        lines += [
            f"  {'+' if reason.amount >= 0 else '-'}{abs(reason.amount):.3g}  {reason.name} = {reason.value:.4g}, "
            f"higher than in {reason.above:.0%} of {self.peers} units{f': {reason.means}' if reason.means else ''}."
            for reason in self.reasons
        ]
        if not self.reasons:
            lines.append("  No feature moved it: this is the average of the labels.")
        if self.relatives:
            lines.append("  Measured units most alike:")
        lines += [
            f"    {found.unit_id}: {found.damage:.3g} (features {found.distance:.2f} of the spread of all units away)"
            for found in self.relatives
        ]
        return "\n".join(lines)


def explain(
    labeler: TabularLabeler,
    features: FeatureTable,
    unit_id: str,
    choice: str | None = None,
    n: int = 5,
    measured: LabelTable | None = None,
) -> Explanation:
    """The predicted damage of one unit, and the `n` features that moved it most; `str` of it is words.

    What a layer or a group would cost with a bit or a channel less is told by `explain_layer`.

    Args:
        labeler: fitted.
        features: a table that holds the unit; other units give its values their rank.
        unit_id: which unit.
        choice: which choice; by default the first that the labeler knows for this unit.
        n: how many features to name, and how many relatives.
        measured: if given, the units most alike are named with the damage that was measured on them; predictions in it
            are passed over.

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
    means = describe_features()
    reasons = [
        Reason(
            fitted.problem.columns[i], float(x[row, i]),
            float(fitted.transform.inverse(z) - fitted.transform.inverse(z - split[i])),
            float((peers[:, i] < x[row, i]).mean()), means.get(fitted.problem.columns[i], ""),
        )
        for i in np.argsort(-np.abs(split), kind="stable")[:n] if split[i] != 0.0
    ]  # fmt: skip
    damage, lower, upper = (float(values[0, column]) for values in (label.damage, label.lower, label.upper))
    alike = () if measured is None else relatives(features, measured, unit_id, choice, n)
    return Explanation(unit_id, choice, damage, lower, upper, labeler.coverage, tuple(reasons), len(peers), alike)


def relatives(
    features: FeatureTable, measured: LabelTable, unit_id: str, choice: str = "removed", n: int = 5
) -> tuple[Relative, ...]:
    """The `n` measured units whose features are most like those of one unit, the nearest first.

    Raises:
        CompressError: for a unit that is not in the table, or a choice that was not measured.
    """
    if unit_id not in features.unit_ids:
        raise CompressError(f"The feature table has no unit {unit_id!r}. Known ids look like {features.unit_ids[:2]}.")
    if choice not in measured.choices:
        raise CompressError(f"The choice {choice!r} was not measured. Measured were {measured.choices}.")
    row = features.unit_ids.index(unit_id)
    values = np.where(measured.source == "measured", measured.damage[:, measured.choices.index(choice)], np.nan)
    damage = dict(zip(measured.unit_ids, values, strict=True))
    known = [i for i, name in enumerate(features.unit_ids) if i != row and np.isfinite(damage.get(name, np.nan))]
    if not known:
        return ()
    ranks = rankdata(features.values, axis=0) / len(features.values)
    distance = np.sqrt(((ranks[known] - ranks[row]) ** 2).mean(axis=1))
    order = np.argsort(distance, kind="stable")[:n]
    names = [features.unit_ids[known[i]] for i in order]
    return tuple(Relative(name, float(distance[i]), float(damage[name])) for name, i in zip(names, order, strict=True))


@dataclass(frozen=True)
class LayerStep:
    """What a coupled group would cost if some of its units went, the least harmful first.

    Attributes:
        less: how many go.
        damage: sum of their labels.
        macs_saved, bytes_saved: parts of the dense network's, in [0, 1].
    """

    less: int
    damage: float
    macs_saved: float
    bytes_saved: float


def layer_steps(units: UnitTable, costs: CostTable, labels: LabelTable, group: str) -> tuple[LayerStep, ...]:
    """One unit (channel or head) less of a group, two less, and so on in growing steps; one at least stays.

    Raises:
        CompressError: if there is no such group, or none of its units has a label.
    """
    rows = np.flatnonzero((units.group == group) & units.removable)
    if not len(rows):
        raise CompressError(f"There is no removable group {group!r}. Groups look like {list(units.groups)[:3]}.")
    damage = dict(zip(labels.unit_ids, labels.damage[:, labels.choices.index("removed")], strict=True))
    known = [row for row in rows if np.isfinite(damage.get(units.ids[row], np.nan))]
    if not known:
        raise CompressError(f"No unit of {group!r} has a label.")
    order = sorted(known, key=lambda row: damage[units.ids[row]])
    steps = []
    for less in (n for n in _STEPS if n < len(order)):
        mask = np.zeros(len(units), dtype=bool)
        mask[order[:less]] = True
        macs, weight_bytes = costs.total(mask)
        total = float(sum(damage[units.ids[row]] for row in order[:less]))
        steps.append(LayerStep(less, total, 1 - macs / costs.dense_macs, 1 - weight_bytes / costs.dense_weight_bytes))
    return tuple(steps)


def explain_layer(units: UnitTable, costs: CostTable, labels: LabelTable, name: str) -> str:
    """Words: of a coupled group what fewer units would cost, see `layer_steps`; of a layer what fewer bits would.

    Args:
        units, costs: of the network.
        labels: of its units; of its layers with the choices `"8bit"`, ... for a layer.
        name: of a group or of a layer.

    Raises:
        CompressError: if there is neither, or no label of it.
    """
    if name in units.ids and units.kind[units.ids.index(name)] == "layer":
        return _explain_widths(costs, labels, name)
    steps = layer_steps(units, costs, labels, name)
    lines = [f"{name}: {int(((units.group == name) & units.removable).sum())} units."]
    lines += [
        f"  {step.less} less: {step.damage:+.3g} predicted damage, {step.macs_saved:.2%} of the MACs and "
        f"{step.bytes_saved:.2%} of the bytes saved."
        for step in steps
    ]
    return "\n".join(lines)


def _explain_widths(costs: CostTable, labels: LabelTable, layer: str) -> str:
    """A line for each width that has a label, the widest first, with what the step from the one before costs."""
    row = labels.unit_ids.index(layer) if layer in labels.unit_ids else None
    known = [
        (float(costs.weight_bytes[costs.unit_ids.index(layer), costs.choices.index(choice)]), choice, damage)
        for choice, damage in zip(labels.choices, [] if row is None else labels.damage[row].tolist(), strict=False)
        if choice in costs.choices and choice != "removed" and np.isfinite(damage)
    ]
    if not known:
        raise CompressError(f"No width of {layer!r} has a label. Labels have the choices {labels.choices}.")
    lines, before = [f"{layer}: {len(known)} widths."], 0.0
    for saved, choice, damage in sorted(known):
        lines.append(
            f"  {choice}: {damage:+.3g} predicted damage ({damage - before:+.3g} against the width above), "
            f"{saved / costs.dense_weight_bytes:.2%} of the bytes saved."
        )
        before = damage
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
