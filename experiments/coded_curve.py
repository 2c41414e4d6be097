"""Metric against bytes of the coded file, for several ways to spend the same bytes: the table, its page, its figure."""

import math
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from itertools import groupby
from statistics import fmean, stdev
from typing import Any

import numpy as np
from matplotlib.figure import Figure
from matplotlib.ticker import FuncFormatter, LogLocator, NullFormatter

from experiments.figure_style import FAINT, MARKERS, SERIES, new_figure


@dataclass(frozen=True)
class CurveRow:
    """One file.

    Attributes:
        network: the experiment that every arm begins with.
        arm: how the bytes are spent.
        point: overrides that set its size.
        metric_name: of `metric` and `dense`, which are of the test part.
        dense, metric: of the dense network and of the file.
        file_bytes: its size; dense_bytes: of the dense network's parameters in float32.
        chosen: the plan that validation took, by the name of its method; empty in tables from before it was told.
    """

    network: str
    arm: str
    point: str
    seed: int
    metric_name: str
    dense: float
    metric: float
    file_bytes: int
    dense_bytes: int
    macs: float
    command: str
    commit: str
    versions: str
    chosen: str = ""


_ABOUT = """Every file holds a whole model, entropy coded, and is decoded before it is scored. Within a network,
seed and machine all arms share the dense network, its labels, the repair without labels, and the same training (none
for MiniLM); an arm says how the bytes are spent."""
_ARMS = {
    "joint": "channels, the bits of every layer and which part of its weights stays, in one solve; the plan of several "
    "that has the lowest validation loss in its formats, most after a short trial, bits and masks alone among them",
    "joint without masks": "the same without leaving out single weights",
    "joint with ranks": "layers may become two of low rank too",
    "joint of fewer plans": "*joint* before it had plans without masks to choose from",
    "as measured": "damages of formats count as they were measured, of labels or of Fisher; chosen after the repair",
    "as measured with masks": "the same with single weights left out",
    "fisher as measured": "*as measured*, of Fisher alone",
    "labels after the repair": "labels of layers whose weights made up for what goes and for their rounding "
    "(`oracle@oracles.layer_choice=repaired_layer_choice`); chosen after the repair",
    "labels after the repair and updated weights": "the same, and weights make up for it in the plan too",
    "masks alone": "single weights, the others in 8 bits, all channels",
    "channels alone": "channels, the others in 8 bits; one plan of labels, one of Fisher, chosen after the repair",
    "bits alone": "the bits of every layer, 2 to 8",
    "fisher": "*joint without masks* on Fisher scores alone, three plans",
    "magnitude": "*joint without masks* on magnitudes alone, three plans",
    "uniform bits": "the same bits in every layer",
}
_NOTES = """What to know before comparing:

- The choice favours *joint*: it takes the best of five to eight plans by validation loss after 100 steps of training
  (400 of the LeNets; of MiniLM in their formats, untrained), where one way alone has one plan, or two, and no trial.
  What few bits damage heals in training, what was removed does so less: in most of its plans damages of formats count
  a tenth or less of what was measured.
- Of ResNet-20 at 19x two of its plans leave no single weight out (`/unmasked`). They were added after *fisher* had come
  out ahead on test examples; which plan is taken validation decides. Its other sizes were made before, at 37x two seeds
  without bits alone and masks alone among the plans. *joint of fewer plans* is what it was at 19x.
- Where bits or masks alone are best, *joint* is meant to be equal to them but for the noise of the choice. MiniLM at
  8.4x took bits alone, on another processor than the arm of that name, and is ahead of it by that.
- An arm has no file of a size that it cannot come to with what is offered to it, or that was not made. *masks alone*
  may leave a hundredth of a layer's weights on the LeNets, 3 % on ResNet-20 (a tenth in its files of 5x to 19x), a
  tenth on MiniLM; *joint* a twentieth, a quarter and a half. 2 bits are the least, and no arm chooses among number
  formats.
- Plans are made before training; what it does to the entropy of symbols is why files are not of the bytes asked for.
- Rows of the LeNets were made on two machines, whose dense networks differ by up to .03 (LeNet-300-100) and .06
  (LeNet-5, better where *masks alone* were made).
- Times smaller are those of the mean bytes. The figure leaves out arms of single questions (*as measured*, *after the
  repair*, *of fewer plans*)."""
_MADE = """Drawn from `results/coded_curve/raw.csv`; `layers.csv` beside it has the layers of the files made last.

```console
$ python -m experiments.run -m experiment=coded_curve_lenet300 seed=0,1,2   # coded_curve_lenet5, coded_curve_minilm
$ python -m experiments.run -m experiment=coded_curve seed=0,1,2            # ResNet-20
```"""


# Arms that are told, and not drawn.
_TOLD = ("as measured", "after the repair", "of fewer plans")
# What must be beaten at the same bytes.
_JOINT, _ALONE = "joint", " alone"
_ALIKE = 1.05
# How arms are drawn for which no colour is left: the colours come again.
_AGAIN = {"linestyle": "--", "markerfacecolor": "white"}


def _is_drawn(arm: str) -> bool:
    return not any(words in arm for words in _TOLD)


def write_page(rows: Sequence[CurveRow]) -> str:
    """Markdown: of each network the arms at every size, mean and standard deviation over seeds."""
    page = [
        "# The same bytes, spent in several ways",
        "",
        _ABOUT,
        "",
        "![Metric against bytes](coded_curve.svg)",
        "",
        "| arm | how the bytes are spent |",
        "|---|---|",
        *(f"| {arm} | {_ARMS.get(arm, '')} |" for arm, _ in _grouped(rows, lambda row: row.arm)),
        "",
        _NOTES,
        "",
        _MADE,
        "",
    ]
    for network, own in _grouped(rows, lambda row: row.network):
        seeds = sorted({row.seed for row in own})
        dense = fmean({row.seed: row.dense for row in own}.values())
        page += [f"## {network}", "", f"Dense: {dense:.2f} ({own[0].metric_name}), "
                 f"{own[0].dense_bytes:,} bytes. Seeds: {', '.join(map(str, seeds))}.", "",
                 "| arm | times smaller | bytes | metric | sd | seeds |", "|---|---|---|---|---|---|"]  # fmt: skip
        for arm, of_arm in _grouped(own, lambda row: row.arm):
            for mean in _points(of_arm):
                spread = f"{mean.deviation:.2f}" if mean.seeds > 1 else "-"
                page.append(
                    f"| {arm} | {mean.ratio:.1f} | {mean.file_bytes:,.0f} | {mean.metric:.2f} | {spread} | "
                    f"{mean.seeds} |"
                )
        page += ["", *_at_equal_bytes(own), *_chosen(own)]
    return "\n".join(page).rstrip() + "\n"


def _at_equal_bytes(rows: Sequence[CurveRow]) -> list[str]:
    """Markdown: what every drawn arm comes to at the sizes of the joint arm, and where that is ahead of all others."""
    arms = {name: _points(own) for name, own in _grouped(rows, lambda row: row.arm) if _is_drawn(name)}
    others = {name: points for name, points in arms.items() if name.endswith(_ALONE)}
    if _JOINT not in arms or not others:
        return []
    joint = sorted(arms[_JOINT], key=lambda point: -point.file_bytes)
    page = ["At equal bytes (between two sizes of an arm, in proportion to the logarithm of the bytes; an arm whose "
            "files are all smaller counts with its largest, as >=; one whose files are all more than 5 % larger has "
            "none, and is told with its smallest):", "",
            "| times smaller | joint | " + " | ".join(others) + " | joint against the best that comes to it |",
            "|---" * (len(others) + 3) + "|"]  # fmt: skip
    for point in joint:
        found = {name: metric_at(points, point.file_bytes) for name, points in others.items()}
        known = {name: metric for name, metric in found.items() if metric is not None}
        best = max(known, key=lambda name: known[name], default=None)
        ahead = "-"
        if best is not None:
            gap = point.metric - known[best]
            ahead = f"{gap:+.2f} ({best}{_chance(gap, point, others[best])})"
        cells = [_cell(points, found[name], point.file_bytes) for name, points in others.items()]
        page.append("| " + " | ".join([f"{point.ratio:.1f}", f"{point.metric:.2f}", *cells, ahead]) + " |")
    return [*page, ""]


def _chance(gap: float, point: "CurvePoint", other: Sequence["CurvePoint"]) -> str:
    """In words, where a gap is no larger than seeds make it; of the other arm the file of the nearest size counts."""
    nearest = min(other, key=lambda own: abs(math.log(own.file_bytes / point.file_bytes)))
    if point.error is None or nearest.error is None:
        return ""
    return "; within two standard errors" if abs(gap) <= 2 * math.hypot(point.error, nearest.error) else ""


def _chosen(rows: Sequence[CurveRow]) -> list[str]:
    """Markdown: whose plans the joint arm took at each size, where that is known."""
    sizes = []
    for _, own in _grouped([row for row in rows if row.arm == _JOINT], lambda row: row.point):
        (mean,) = _points(own)
        taken = Counter(row.chosen for row in own if row.chosen).most_common()
        if taken:
            names = ", ".join(f"`{name}` {count}" for name, count in taken)
            sizes.append((mean.ratio, f"at {mean.ratio:.1f}x {names}"))
    if not sizes:
        return []
    told = "; ".join(words for _, words in sorted(sizes))
    kinds = "`/unmasked`: no masks; `/bits`: bits and masks, no channel; `/masks`: masks alone; `/widths`: bits alone"
    return [f"Plans that *{_JOINT}* took, of seeds where it is known: {told} ({kinds}).", ""]


def _cell(points: Sequence["CurvePoint"], metric: float | None, file_bytes: float) -> str:
    """A metric at so many bytes; of an arm that does not come to so few, its smallest file."""
    if metric is None:
        least = min(points, key=lambda point: point.file_bytes)
        return f"none ({least.metric:.2f} at {least.ratio:.1f}x)"
    return f"{'>= ' if file_bytes > max(point.file_bytes for point in points) else ''}{metric:.2f}"


def metric_at(points: Sequence["CurvePoint"], file_bytes: float) -> float | None:
    """What an arm comes to in so many bytes, linear in their logarithm between two of its files.

    Where all of them are smaller it is that of the largest, where all are larger that of the smallest, or None if it is
    by more than 5 %: files are not of the bytes asked for.
    """
    known = sorted((point.file_bytes, point.metric) for point in points)
    if file_bytes * _ALIKE < known[0][0]:
        return None
    sizes, metrics = np.array(known).T
    return float(np.interp(math.log(file_bytes), np.log(sizes), metrics))


def draw_curves(rows: Sequence[CurveRow]) -> Figure:
    """One panel for each network: the metric against how many times smaller the file is."""
    rows = [row for row in rows if _is_drawn(row.arm)]
    networks = _grouped(rows, lambda row: row.network)
    # An arm looks the same in every panel.
    places = {arm: place for place, (arm, _) in enumerate(_grouped(rows, lambda row: row.arm))}
    lines = 1 if len(networks) < 4 else 2
    figure = new_figure(0.6 + 3.2 * lines)
    panels = figure.subplots(lines, math.ceil(len(networks) / lines), squeeze=False).flat
    handles: dict[str, Any] = {}
    for axes, (network, own) in zip(panels, networks, strict=False):
        axes.axhline(fmean(row.dense for row in own), color=FAINT, linewidth=1, linestyle=":")
        for arm, of_arm in _grouped(own, lambda row: row.arm):
            place = places[arm]
            points = sorted(_points(of_arm), key=lambda point: point.ratio)
            axes.errorbar([p.ratio for p in points], [p.metric for p in points], [p.deviation for p in points],
                          marker=MARKERS[place % len(MARKERS)], markersize=4.5, linewidth=1.4, capsize=2,
                          color=SERIES[place % len(SERIES)], label=arm, zorder=10 - place,
                          **(_AGAIN if place >= len(SERIES) else {}))  # fmt: skip
        axes.set(xscale="log", xlabel="times smaller than float32", title=network)
        axes.xaxis.set_major_locator(LogLocator(subs=(1, 2, 4, 6)))
        axes.xaxis.set_major_formatter(FuncFormatter(lambda value, _: f"{value:g}"))
        axes.xaxis.set_minor_formatter(NullFormatter())
        axes.set_ylabel(own[0].metric_name.replace("_", " "))
        handles |= {arm: handle for handle, arm in zip(*axes.get_legend_handles_labels(), strict=True)}
    figure.legend(handles.values(), handles.keys(), loc="outside lower center", ncols=min(4, len(handles)))
    for axes in panels:  # one that is left over
        axes.set_visible(False)
    return figure


@dataclass(frozen=True)
class CurvePoint:
    """Means over seeds at one size.

    Attributes:
        ratio: how many times smaller, of the mean bytes.
        error: standard error of the metric, None for one seed.
    """

    ratio: float
    file_bytes: float
    metric: float
    deviation: float
    seeds: int
    error: float | None


def _points(rows: Sequence[CurveRow]) -> list[CurvePoint]:
    found = []
    for _, own in _grouped(rows, lambda row: row.point):
        metrics, size = [row.metric for row in own], fmean(row.file_bytes for row in own)
        deviation = stdev(metrics) if len(metrics) > 1 else 0.0
        found.append(CurvePoint(fmean(row.dense_bytes for row in own) / size, size, fmean(metrics),
                            deviation, len(metrics),
                            deviation / math.sqrt(len(metrics)) if len(metrics) > 1 else None))  # fmt: skip
    return found


def _grouped(rows: Sequence[CurveRow], key: Any) -> list[tuple[str, list[CurveRow]]]:
    """Groups in the order in which their keys first come."""
    order = list(dict.fromkeys(map(key, rows)))
    return [(name, list(own)) for name, own in groupby(sorted(rows, key=lambda row: order.index(key(row))), key)]
