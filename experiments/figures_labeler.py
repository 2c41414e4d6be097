"""Figures of the labeler: how it orders units beside every criterion, what it predicted, how wide its intervals are."""

from collections.abc import Mapping
from typing import Any

import numpy as np
from matplotlib.figure import Figure

from experiments.figure_style import BAD, INK, MANY_MARKS, MUTED, SERIES, log_like, new_figure, plain_rows
from experiments.run_files import RunFiles, number, pick


def ranked_scores(run: RunFiles) -> list[dict[str, Any]]:
    """The scores of `labeler.json` that have a held-out rank correlation, the best first.

    Each has `name`, `kind` (`"labeler"` or `"criterion"`), `n`, `spearman`, its interval `lower` and `upper`, and
    `within_group`, None where unknown.
    """
    scores = [
        {
            "name": str(pick(score, "name")),
            "kind": pick(score, "kind"),
            "n": number(score, "n"),
            "spearman": number(score, "spearman"),
            "lower": _first(number(score, "lower"), number(score, "spearman_low")),
            "upper": _first(number(score, "upper"), number(score, "spearman_high")),
            "within_group": _first(number(score, "within_group"), number(score, "within")),
        }
        for score in pick(run.labeler, "held_out") or ()
        if number(score, "spearman") is not None
    ]
    return sorted(scores, key=lambda score: -score["spearman"])


def draw_agreement(run: RunFiles) -> Figure | None:
    """Rank correlation with the measured damage and its interval: the labeler, then every criterion."""
    scores = ranked_scores(run)
    if not scores:
        return None
    figure = new_figure(0.9 + 0.26 * len(scores))
    axes = figure.subplots()
    for row, score in enumerate(scores):
        colour = SERIES[0] if score.get("kind") == "labeler" else MUTED
        value, low, high = (number(score, key) for key in ("spearman", "lower", "upper"))
        if low is not None and high is not None:
            axes.plot([low, high], [row, row], color=colour, linewidth=2.0, alpha=0.55, solid_capstyle="round")
        axes.scatter([value], [row], color=colour, s=36, zorder=3, label="all units" if row == 0 else None)
        within = number(score, "within_group")
        if within is not None:
            axes.scatter(
                [within],
                [row],
                marker="|",
                s=70,
                color=colour,
                linewidths=1.6,
                zorder=3,
                label="within a group (median)" if row == 0 else None,
            )
    axes.set_yticks(range(len(scores)), [score.get("name", "?") for score in scores])
    axes.axvline(0, color=INK, linewidth=0.8)
    axes.set_xlim(right=1.02)
    plain_rows(axes, len(scores))
    for label, score in zip(axes.get_yticklabels(), scores, strict=False):
        label.set_fontweight("bold" if score["kind"] == "labeler" else "normal")
    axes.set_xlabel("Spearman with the measured damage (bar: 95 % interval)")
    figure.legend(loc="outside upper right", ncols=2)
    return figure


def draw_scatter(run: RunFiles) -> Figure | None:
    """Measured damage of each unit against the prediction of labelers that had not seen its group."""
    pairs = held_out_pairs(run)
    if len(pairs) < 2:
        return None
    measured, predicted = pairs[:, 0], pairs[:, 1]
    figure = new_figure(4.2, 4.8)
    axes = figure.subplots()
    axes.scatter(
        predicted, measured, s=11, color=SERIES[0], alpha=0.55, linewidths=0, rasterized=len(pairs) > MANY_MARKS
    )
    both = np.concatenate([measured, predicted])
    log_like(axes, both, axis="both")
    axes.axline((0.0, 0.0), (both.max() or 1.0, both.max() or 1.0), color=INK, linewidth=0.9, linestyle=(0, (4, 3)))
    axes.set_xlabel("predicted damage, group held out")
    axes.set_ylabel("measured damage")
    return figure


def draw_calibration(run: RunFiles) -> Figure | None:
    """Held-out intervals in the order of the prediction, and the measured damages inside or outside of them."""
    known = held_out_pairs(run)
    known = known[np.isfinite(known).all(axis=1)]
    if len(known) < 2:
        return None
    known = known[np.argsort(known[:, 1], kind="stable")]
    measured, predicted, lower, upper = known.T
    outside = (measured < lower) | (measured > upper)
    place = np.arange(len(known))
    figure = new_figure(3.3)
    axes = figure.subplots()
    axes.fill_between(place, lower, upper, step="mid", color=SERIES[0], alpha=0.18, linewidth=0, label="interval")
    axes.plot(place, predicted, color=SERIES[0], linewidth=1.2, label="predicted")
    many = len(known) > MANY_MARKS
    axes.scatter(place[~outside], measured[~outside], s=7, color=MUTED, label="measured, inside", rasterized=many)
    axes.scatter(
        place[outside],
        measured[outside],
        s=14,
        color=BAD,
        marker="X",
        label="measured, outside",
        zorder=4,
        rasterized=many,
    )
    log_like(axes, np.concatenate([measured, predicted]))
    axes.set_xlabel("measured units, in the order of the prediction")
    axes.set_ylabel("damage (loss per example)")
    figure.legend(loc="outside upper right", ncols=4)
    return figure


def held_out_pairs(run: RunFiles) -> np.ndarray:
    """`(n, 4)`: measured, held-out prediction, its lower and its upper end, of the units that have the first two."""
    labels, held = run.labels, run.held_out
    if labels is None or held is None or "removed" not in labels.choices or "removed" not in held.choices:
        return np.empty((0, 4))
    column, own = held.choices.index("removed"), labels.choices.index("removed")
    place = {unit: row for row, unit in enumerate(held.unit_ids)}
    pairs = [
        (labels.damage[row, own], *(table[place[unit], column] for table in (held.damage, held.lower, held.upper)))
        for row, unit in enumerate(labels.unit_ids)
        if unit in place and labels.source[row] == "measured"
    ]
    pairs = np.array(pairs, dtype=np.float64).reshape(-1, 4)
    return pairs[np.isfinite(pairs[:, :2]).all(axis=1)]


def _first(value: float | None, other: float | None) -> float | None:
    return other if value is None else value


def draw_reasons(run: RunFiles) -> Figure | None:
    """What features did to the labels of a few units: one panel for each unit."""
    return draw_explanations(run.explanations or {})


def draw_explanations(explanations: Mapping[str, Mapping[str, Any]]) -> Figure | None:
    """One panel for each of some units, by the words above it; None if no feature moved any of them.

    Args:
        explanations: words -> fields of an `Explanation`.
    """
    told = {words: found for words, found in explanations.items() if found["reasons"]}
    if not told:
        return None
    lines = sum(len(found["reasons"]) for found in told.values())
    figure = new_figure(0.5 + 0.62 * len(told) + 0.2 * lines)
    ratios = [len(found["reasons"]) for found in told.values()]
    panels = figure.subplots(len(told), 1, squeeze=False, gridspec_kw={"height_ratios": ratios})[:, 0]
    for axes, (words, found) in zip(panels, told.items(), strict=True):
        reasons = found["reasons"]
        amounts = [reason["amount"] for reason in reasons]
        axes.barh(range(len(reasons)), amounts, height=0.66, color=[BAD if a > 0 else SERIES[0] for a in amounts])
        axes.set_yticks(range(len(reasons)), [f"{r['name']} (above {r['above']:.0%} of units)" for r in reasons])
        axes.axvline(0, color=INK, linewidth=0.8)
        plain_rows(axes, len(reasons))
        axes.set_title(f"{words}: {found['unit_id']}, {found['damage']:.3g}", loc="left", fontsize=9)
        axes.ticklabel_format(axis="x", style="sci", scilimits=(-2, 3))
    panels[-1].set_xlabel("change of the predicted damage, loss per example")
    return figure
