"""Figures of the compared methods, of file sizes and of training."""

from collections.abc import Sequence

import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import MaxNLocator

from experiments.figure_style import FAINT, INK, MARKERS, MUTED, PANEL, SERIES, WIDTH, new_figure, plain_rows
from experiments.methods import LABELER, Method, compared_stages, gather_methods
from experiments.quantities import STAGE_WORDS, file_name, format_bytes, metric_words, shorten
from experiments.run_files import RunFiles, number, pick

_CURVES = 4


def draw_comparison(run: RunFiles) -> Figure | None:
    """Metric of every method after each stage: a dot a seed, the mean, and one standard deviation."""
    methods, stages = _compared(run)
    if not methods:
        return None
    figure = new_figure(1.1 + 0.27 * len(methods))
    panels = figure.subplots(1, len(stages), sharey=True, squeeze=False)[0]
    for axes, stage in zip(panels, stages, strict=True):
        _draw_stage(axes, methods, stage, run)
    return figure


def draw_accuracy_against_macs(run: RunFiles) -> Figure | None:
    """Metric against MACs, a dot for each seed and method, the dense model beside them."""
    methods, stages = _compared(run)
    trials = [t for t in run.comparison or () if t.metric is not None and t.macs is not None and t.stage in stages]
    if not trials:
        return None
    rows = -(-len(methods) // 4)
    figure = new_figure(3.3 + 0.2 * rows)
    panels = figure.subplots(1, len(stages), squeeze=False)[0]
    bases = _bases(methods)
    dense = number(run.dense, "test", "metric"), number(run.dense, "macs")
    for axes, stage in zip(panels, stages, strict=True):
        for method in methods:
            points = [(t.macs / 1e6, t.metric) for t in trials if t.method == method.name and t.stage == stage]
            if points:
                look = {**_look(method.name, bases), "label": method.name, "zorder": 4 if method.learned else 3}
                axes.scatter(*np.array(points).T, s=30, linewidths=1.3, **look)
        if None not in dense:
            axes.scatter([dense[1] / 1e6], [dense[0]], marker="*", s=110, color=INK, label="dense", zorder=4)
        axes.set_title(STAGE_WORDS[stage])
        axes.set_xlabel("MACs of one example (millions)")
        axes.margins(0.1)
    panels[0].set_ylabel(_metric_name(run))
    handles = dict(zip(*reversed(panels[0].get_legend_handles_labels()), strict=True))
    for axes in panels[1:]:
        handles |= dict(zip(*reversed(axes.get_legend_handles_labels()), strict=True))
    figure.legend(handles.values(), handles.keys(), loc="outside lower center", ncols=min(4, len(handles)))
    return figure


def draw_sizes(run: RunFiles) -> Figure | None:
    """Bytes of every exported file that was found good, beside the dense one."""
    bars = _file_sizes(run)
    if len(bars) < 2:
        return None
    figure = new_figure(0.75 + 0.34 * len(bars))
    _draw_sizes(figure.subplots(), bars)
    return figure


def draw_training(run: RunFiles) -> Figure | None:
    """Losses during fine-tuning, one panel each."""
    names = [
        name
        for name, points in run.curves.items()
        if name.endswith("/loss") and not name.startswith(("compare/", "train/")) and len(points) > 1
    ][:_CURVES]
    if not names:
        return None
    figure = new_figure(2.5)
    for axes, name in zip(figure.subplots(1, len(names), squeeze=False)[0], names, strict=True):
        steps, values = np.array(run.curves[name]).T
        axes.plot(steps, values, color=SERIES[0], linewidth=1.4)
        axes.set_title(name)
        axes.set_xlabel("step")
    return figure


def draw_overview(run: RunFiles) -> Figure | None:
    """For a front page: methods after recovery and after the last training, and sizes of the files."""
    methods, stages = _compared(run)
    stages = [stage for stage in stages if stage != "pruned"] or list(stages)
    bars = _file_sizes(run)
    if not methods and len(bars) < 2:
        return None
    widths = [1.0] * len(stages if methods else []) + ([0.95] if len(bars) > 1 else [])
    figure = new_figure(max(2.4, 1.1 + 0.25 * len(methods)), WIDTH + 1.2)
    panels = figure.subplots(1, len(widths), width_ratios=widths, squeeze=False)[0]
    for i, (axes, stage) in enumerate(zip(panels, stages if methods else [], strict=False)):
        _draw_stage(axes, methods, stage, run)
        if i:
            axes.tick_params(axis="y", labelleft=False)
    if len(bars) > 1:
        _draw_sizes(panels[-1], bars)
        panels[-1].set_title("file size")
    return figure


def _compared(run: RunFiles) -> tuple[tuple[Method, ...], tuple[str, ...]]:
    higher = pick(run.dense, "higher_is_better") is not False
    methods = tuple(m for m in gather_methods(run.comparison or (), higher) if any(s.values for s in m.stages.values()))
    return methods, compared_stages(methods)


def _metric_name(run: RunFiles) -> str:
    return f"test {metric_words(pick(run.dense, 'metric_name'))}"


def _draw_stage(axes: Axes, methods: Sequence[Method], stage: str, run: RunFiles) -> None:
    for row, method in enumerate(methods):
        sample = method.stages.get(stage)
        if sample is None or not sample.values:
            continue
        colour = SERIES[0] if method.learned else MUTED
        if sample.std is not None:
            axes.plot(
                [sample.mean - sample.std, sample.mean + sample.std],
                [row, row],
                color=colour,
                linewidth=2.0,
                alpha=0.55,
                solid_capstyle="round",
            )
        axes.scatter(
            sample.values,
            [row] * len(sample.values),
            s=13,
            facecolors=PANEL,
            edgecolors=colour,
            linewidths=1.0,
            zorder=3,
        )
        axes.scatter([sample.mean], [row], s=34, color=colour, zorder=4)
    dense = number(run.dense, "test", "metric")
    if dense is not None:
        axes.axvline(dense, color=INK, linewidth=1.0, linestyle=(0, (4, 3)))
        higher = pick(run.dense, "higher_is_better") is not False
        axes.annotate(
            "dense",
            (dense, 0),
            xycoords=("data", "axes fraction"),
            xytext=(-3 if higher else 3, 3),
            textcoords="offset points",
            ha="right" if higher else "left",
            fontsize=8,
            color=MUTED,
        )
    axes.set_yticks(range(len(methods)), [method.name for method in methods])
    plain_rows(axes, len(methods))
    for label, method in zip(axes.get_yticklabels(), methods, strict=False):
        label.set_fontweight("bold" if method.learned else "normal")
    axes.set_title(STAGE_WORDS[stage])
    axes.set_xlabel(_metric_name(run))
    axes.xaxis.set_major_locator(MaxNLocator(5, steps=[1, 2, 5, 10]))
    axes.margins(x=0.08)


def _bases(methods: Sequence[Method]) -> list[str]:
    names = [method.name.split("/")[0] for method in methods]
    return [LABELER, *sorted({name for name in names if name != LABELER})]


def _look(name: str, bases: Sequence[str]) -> dict[str, object]:
    """Colour and marker of a method: variants look like their base, but hollow (`taylor/mac`) or pale (others)."""
    base, _, variant = name.partition("/")
    place = bases.index(base)
    colour = SERIES[place] if place < len(SERIES) else FAINT
    face = (colour, 0.9) if not variant else "none" if variant == "mac" else (colour, 0.3)
    return {"edgecolors": colour, "facecolors": [face], "marker": MARKERS[place % len(MARKERS)]}


def _file_sizes(run: RunFiles) -> list[tuple[str, float, str]]:
    """`(name, bytes, colour)`, the dense file first."""
    dense = number(run.export, "dense_file", "file_bytes") or number(run.dense, "file_bytes")
    bars = [("dense", dense, MUTED)] if dense is not None else []
    for entry in pick(run.export, "files") or ():
        size = number(entry, "file_bytes")
        if size is not None and pick(entry, "ok") is True:
            name = pick(entry, "format") or file_name(pick(entry, "path"))
            bars.append((f"compressed {name}", size, SERIES[0]))
    return bars


def _draw_sizes(axes: Axes, bars: Sequence[tuple[str, float, str]]) -> None:
    biggest = max(size for _, size, _ in bars)
    for row, (_, size, colour) in enumerate(bars):
        axes.barh(row, size / 1e3, height=0.5, color=colour)
        times = "" if row == 0 else f"  ({bars[0][1] / size:.3g}x smaller)" if size < bars[0][1] else "  (not smaller)"
        axes.annotate(
            format_bytes(size) + times,
            (size / 1e3, row),
            xytext=(4, 0),
            textcoords="offset points",
            va="center",
            fontsize=8.5,
        )
    axes.set_yticks(range(len(bars)), [shorten(name) for name, _, _ in bars])
    axes.set_xlim(0, biggest / 1e3 * 1.45)
    plain_rows(axes, len(bars))
    axes.set_xlabel("bytes of one self-contained file (kB)")
