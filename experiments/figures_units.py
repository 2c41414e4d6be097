"""Figures of what is sensitive, what was removed where, and in how many bits the rest is kept."""

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
from matplotlib.figure import Figure

from compress.layer_choice import choice_of
from compress.quantizer import FLOAT_BITS
from experiments.figure_style import FAINT, INK, LINE, MARKERS, MUTED, SERIES, log_like, new_figure, plain_rows
from experiments.quantities import STAGES, shorten, stage_words
from experiments.run_files import RunFiles, number, pick

_HIGHLIGHTED = 6
_MOST_ROWS = 80


def told_choices(choices: tuple[str, ...]) -> list[tuple[str, int | None, int]]:
    """`(words, bits, column)` of the choices that are bit-widths, the most bits first; without any, of the ranks.

    Ranks are told in the most bits, with the most weights; all in the scheme that layers have in common.

    `bits` is None where it is no width that a plan's layer could be told to have.
    """
    known = [(choice_of(name), column) for column, name in enumerate(choices)]
    known = [(c, column) for c, column in known if c.scheme is None]
    widths = [(c.bits, column) for c, column in known if c.rank is None and c.density == 1]
    if widths:
        return [(f"{bits} bit", bits, column) for bits, column in sorted(widths, reverse=True)]
    most = max((c.bits for c, _ in known), default=0)
    fullest = max((c.density for c, _ in known), default=1.0)
    ranks = [(c.rank, col) for c, col in known if c.rank is not None and (c.bits, c.density) == (most, fullest)]
    return [(f"rank {rank:g}", None, column) for rank, column in sorted(ranks, reverse=True)]


def group_counts(run: RunFiles) -> list[tuple[str, int, int]]:
    """`(group, units, removed units)` in graph order; empty without units or plan."""
    if run.units is None or run.plan is None:
        return []
    removed = run.plan.removed_mask(run.units)
    rows = {group: run.units.group == group for group in run.units.groups}
    return [(group, int(mask.sum()), int((mask & removed).sum())) for group, mask in rows.items()]


def layer_bits(run: RunFiles) -> list[tuple[str, int]]:
    """`(layer, bits per weight)` in graph order, 32 where the plan leaves float32; empty without units or plan."""
    if run.units is None or run.plan is None:
        return []
    layers = [unit for unit, kind in zip(run.units.ids, run.units.kind, strict=True) if kind == "layer"]
    formats = run.plan.layer_formats
    return [(name, formats[name].bits if name in formats else FLOAT_BITS) for name in layers]


def draw_layer_sensitivity(run: RunFiles) -> Figure | None:
    """Damage of each layer alone at each bit-width, or rank; the most sensitive layers are named."""
    table = run.layer_labels
    told = told_choices(table.choices) if table is not None else []
    rows = [i for i in range(len(table.unit_ids)) if np.isfinite(table.damage[i]).any()] if told else []
    if not rows:
        return None
    columns = [column for *_, column in told]
    worst = sorted(rows, key=lambda i: -np.nanmax(table.damage[i, columns]))[:_HIGHLIGHTED]
    figure = new_figure(3.6)
    axes = figure.subplots()
    lines = {}
    for row in rows:
        look = _look(worst, row)
        lines[row] = axes.errorbar(
            range(len(columns)),
            table.damage[row, columns],
            yerr=np.nan_to_num(table.std_err[row, columns]),
            markersize=4.5,
            elinewidth=0.8,
            **look,
        )
    log_like(axes, table.damage[np.ix_(rows, columns)])
    many = len(told) > 8
    axes.set_xticks(range(len(columns)), [words.removeprefix("rank ") if many else words for words, *_ in told])
    if told[0][1] is None:
        axes.set_xlabel("rank, as a fraction of that at which two layers stop being smaller than one")
    axes.set_ylabel("damage (loss per example)")
    _name_worst(figure, {shorten(table.unit_ids[row]): lines[row] for row in worst}, len(rows))
    return figure


def draw_group_sensitivity(run: RunFiles) -> Figure | None:
    """Summed damage against the fraction of a group that is removed, its least harmful units first."""
    if run.units is None or run.labels is None or "removed" not in run.labels.choices:
        return None
    damage = dict(zip(run.labels.unit_ids, run.labels.damage[:, run.labels.choices.index("removed")], strict=True))
    curves = {}
    for group in run.units.groups:
        ids = [run.units.ids[i] for i in np.flatnonzero(run.units.group == group)]
        own = np.sort([damage[unit] for unit in ids if np.isfinite(damage.get(unit, np.nan))])
        if len(own) > 1:
            curves[group] = np.concatenate([[0.0], np.cumsum(own)])
    if not curves:
        return None
    worst = sorted(curves, key=lambda group: -_halfway(curves[group]))[:_HIGHLIGHTED]
    gone = {group: removed / total for group, total, removed in group_counts(run)}
    figure = new_figure(3.6)
    axes = figure.subplots()
    lines = {}
    for group, curve in curves.items():
        look = {**_look(worst, group), "marker": None}
        (lines[group],) = axes.plot(np.linspace(0, 100, len(curve)), curve, **look)
        if group in worst and gone.get(group):
            place = round(gone[group] * (len(curve) - 1))
            axes.scatter([100 * gone[group]], [curve[place]], color=look["color"], s=30, zorder=4)
    log_like(axes, np.concatenate(list(curves.values())))
    axes.set_xlabel("units of the group removed (%), least harmful first")
    axes.set_ylabel("sum of single damages")
    _name_worst(figure, {shorten(group): lines[group] for group in worst}, len(curves))
    return figure


def _look(worst: Sequence[Any], key: Any) -> dict[str, Any]:
    """A colour and marker of its own for one of the `worst`, a faint line for the others."""
    if key not in worst:
        return {"color": FAINT, "linewidth": 0.9, "marker": None, "zorder": 2}
    place = worst.index(key)
    return {"color": SERIES[place], "linewidth": 1.6, "marker": MARKERS[place], "zorder": 3}


def _name_worst(figure: Figure, lines: Mapping[str, Any], total: int) -> None:
    title = "most sensitive first" if len(lines) < total else None
    figure.legend(list(lines.values()), list(lines), loc="outside right center", title=title)


def draw_removed(run: RunFiles) -> Figure | None:
    """Kept and removed units of each group, in graph order."""
    counts = group_counts(run)[:_MOST_ROWS]
    if not counts:
        return None
    figure = new_figure(0.85 + 0.23 * len(counts))
    axes = figure.subplots()
    names, totals, gone = zip(*counts, strict=True)
    kept = np.array(totals) - np.array(gone)
    rows = np.arange(len(names))
    axes.barh(rows, kept, height=0.68, color=SERIES[0], label="kept")
    axes.barh(rows, gone, left=kept, height=0.68, color=LINE, edgecolor=FAINT, linewidth=0.6, label="removed")
    for row, (keep, total) in enumerate(zip(kept, totals, strict=True)):
        axes.annotate(
            f"{keep} of {total}",
            (total, row),
            xytext=(5, 0),
            textcoords="offset points",
            va="center",
            fontsize=8,
            color=MUTED,
        )
    axes.set_yticks(rows, [shorten(name) for name in names])
    axes.set_xlim(0, max(totals) * 1.12)
    plain_rows(axes, len(names))
    axes.set_xlabel("channels or heads of the group")
    figure.legend(loc="outside upper right", ncols=2)
    return figure


def draw_bits(run: RunFiles) -> Figure | None:
    """Bits per weight of each layer, in graph order, and its rank where it is two of low rank."""
    layers = layer_bits(run)[:_MOST_ROWS]
    if not layers:
        return None
    figure = new_figure(0.75 + 0.23 * len(layers))
    axes = figure.subplots()
    rows = np.arange(len(layers))
    # float32 is not four times as wide as all else: the widths that can be chosen end at 8.
    lengths = [min(bits, 10) for _, bits in layers]
    colours = [MUTED if bits == FLOAT_BITS else SERIES[0] for _, bits in layers]
    axes.barh(rows, lengths, height=0.68, color=colours)
    formats = run.plan.layer_formats if run.plan is not None else {}
    for row, (name, bits) in enumerate(layers):
        text = "float32" if bits == FLOAT_BITS else str(bits)
        if name in formats and formats[name].rank:
            text += f", rank {formats[name].rank}"
        if name in formats and formats[name].bits <= 8 and formats[name].scheme != "symmetric":
            text += f", {formats[name].scheme}"
        axes.annotate(text, (lengths[row], row), xytext=(4, 0), textcoords="offset points", va="center", fontsize=8)
    axes.set_yticks(rows, [shorten(name) for name, _ in layers])
    axes.set_xlim(0, 11)
    axes.set_xticks([0, 2, 3, 4, 6, 8])
    plain_rows(axes, len(layers))
    axes.set_xlabel("bits per weight (float32 bars are cut)")
    return figure


def realised_damages(run: RunFiles) -> dict[str, float]:
    """Damage of the whole plan: `pruned` before any repair, and after later stages where they are known."""
    found = pick(run.result, "realised_damage")
    found = found if isinstance(found, Mapping) else {"pruned": found}
    order = [
        *(stage for stage in (*STAGES, "final") if stage in found),
        *(s for s in found if s not in (*STAGES, "final")),
    ]
    return {stage: found[stage] for stage in order if number(found, stage) is not None}


def draw_damage(run: RunFiles) -> Figure | None:
    """Damage of the whole plan: the sum that was predicted, and what happened."""
    predicted, realised = number(run.result, "predicted_damage"), realised_damages(run)
    if predicted is None or not realised:
        return None
    bars = [("predicted (sum)", predicted, MUTED)]
    recovered = [number(run.plan_damage, end) for end in ("nats", "low", "high")]
    if None not in recovered:
        bars.append(("predicted after repair", recovered[0], MUTED))
    bars += [(f"realised, {stage_words(stage)}", value, SERIES[0]) for stage, value in realised.items()]
    figure = new_figure(0.75 + 0.3 * len(bars))
    axes = figure.subplots()
    for row, (_, value, colour) in enumerate(bars):
        axes.barh(row, value, height=0.6, color=colour)
        axes.annotate(
            f"{value:.3g}",
            (max(value, 0), row),
            xytext=(4, 0),
            textcoords="offset points",
            va="center",
            fontsize=8.5,
        )
    if None not in recovered:
        # Below the number beside the bar.
        axes.plot(recovered[1:], [1.2, 1.2], color=INK, linewidth=1.2, marker="|", markersize=5)
    axes.axvline(0, color=INK, linewidth=0.8)
    axes.set_yticks(range(len(bars)), [name for name, _, _ in bars])
    axes.margins(x=0.12)
    plain_rows(axes, len(bars))
    axes.set_xlabel("damage of the whole plan (loss per example)")
    return figure


def _halfway(curve: np.ndarray) -> float:
    return float(curve[(len(curve) - 1) // 2])
