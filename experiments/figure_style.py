"""How figures look: one palette, SVG that follows a page's light or dark colours, PNG for trackers."""

import io
import re
from collections.abc import Iterator, Sequence
from contextlib import contextmanager

import matplotlib
import numpy as np
from matplotlib.axes import Axes
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.backends.backend_svg import FigureCanvasSVG
from matplotlib.figure import Figure

# name -> (light, dark). In a page every colour is a CSS variable of this name.
COLOURS = {
    "ink": ("#1d232b", "#e8ebef"),
    "muted": ("#626b77", "#a3adb9"),
    "line": ("#d4d9e0", "#3a434e"),
    "faint": ("#aab3bf", "#5f6b79"),
    "panel": ("#fdfdfe", "#171c22"),
    "s0": ("#2a78d6", "#4a94ea"),
    "s1": ("#d9661f", "#e5803f"),
    "s2": ("#178a63", "#2fb185"),
    "s3": ("#6a4fc2", "#9a86ea"),
    "s4": ("#c23f7a", "#e06c9f"),
    "s5": ("#a87a00", "#cf9f24"),
    "s6": ("#22899c", "#46b3c7"),
    "s7": ("#8a5a3c", "#bb8a68"),
    "bad": ("#c9372f", "#ee6a61"),
}
INK, MUTED, LINE, FAINT, PANEL = (COLOURS[name][0] for name in ("ink", "muted", "line", "faint", "panel"))
BAD = COLOURS["bad"][0]
SERIES = tuple(COLOURS[f"s{i}"][0] for i in range(8))
MARKERS = ("o", "s", "^", "D", "v", "P", "X", "<")
WIDTH = 10.0
# More marks than this are drawn as pixels inside the SVG, or the page grows by megabytes.
MANY_MARKS = 1500

_STYLE = {
    "font.family": "sans-serif",
    "font.sans-serif": ["DejaVu Sans"],
    "font.size": 9.0,
    "axes.titlesize": 9.5,
    "axes.titleweight": "bold",
    "axes.titlelocation": "left",
    "axes.labelsize": 9.0,
    "xtick.labelsize": 8.5,
    "ytick.labelsize": 8.5,
    "legend.fontsize": 8.5,
    "legend.frameon": False,
    "text.color": INK,
    "axes.labelcolor": INK,
    "axes.titlecolor": INK,
    "axes.edgecolor": FAINT,
    "xtick.color": FAINT,
    "ytick.color": FAINT,
    "xtick.labelcolor": MUTED,
    "ytick.labelcolor": INK,
    "axes.spines.top": False,
    "axes.spines.right": False,
    "axes.grid": True,
    "axes.axisbelow": True,
    "grid.color": LINE,
    "grid.linewidth": 0.7,
    "axes.facecolor": "none",
    "figure.facecolor": "none",
    "svg.hashsalt": "report",
    "svg.image_inline": True,
}


@contextmanager
def figure_style(text_as_paths: bool = False) -> Iterator[None]:
    """Draw and save within this: matplotlib's settings are as before afterwards."""
    with matplotlib.rc_context({**_STYLE, "svg.fonttype": "path" if text_as_paths else "none"}):
        yield


def new_figure(height: float, width: float = WIDTH) -> Figure:
    """An empty figure of this size in inches, apart from matplotlib's global list of figures."""
    return Figure(figsize=(width, height), layout="constrained")


def plain_rows(axes: Axes, count: int) -> None:
    """Leave out the vertical axis of a chart of `count` named rows, at heights 0, 1, ..., the first on top."""
    axes.spines["left"].set_visible(False)
    axes.tick_params(axis="y", length=0)
    axes.grid(visible=False, axis="y")
    axes.set_ylim(count - 0.4, -0.6)


def dots_and_mean(axes: Axes, row: int, values: Sequence[float], colour: str) -> None:
    """One row of such a chart: a faint dot for every value, a strong one at their mean."""
    axes.scatter(values, np.full(len(values), row), s=9, color=colour, alpha=0.55, linewidths=0)
    axes.scatter([np.mean(values)], [row], s=34, color=colour, edgecolors=INK, linewidths=0.6, zorder=3)


def log_like(axes: Axes, values: np.ndarray, axis: str = "y") -> None:
    """Make `axis` (`"y"` or `"both"`) logarithmic away from zero, if `values` span more than a factor of 30."""
    sizes = np.abs(values[np.isfinite(values)])
    sizes = sizes[sizes > 0]
    if not sizes.size or sizes.max() <= 30 * np.median(sizes):
        return
    threshold = float(max(np.median(sizes), sizes.max() * 1e-4))
    for set_scale in (axes.set_yscale, axes.set_xscale)[: 2 if axis == "both" else 1]:
        set_scale("symlog", linthresh=threshold)


def render_page_svg(figure: Figure) -> str:
    """An `<svg>` element for a page: colours are CSS variables, text is text, and nothing outside is needed."""
    svg = _svg(figure)
    svg = svg[svg.index("<svg") :]
    svg = re.sub(r"<metadata>.*?</metadata>", "", svg, flags=re.S)
    # Names of groups would repeat over the figures of a page; what is referred to lies in <defs> or has a hash.
    svg = re.sub(r'<g id="[^"]*">', "<g>", svg)
    for name, (light, _) in COLOURS.items():
        svg = re.sub(rf"{light}\b", f"var(--{name})", svg)
    return svg.replace("'DejaVu Sans'", "system-ui, 'DejaVu Sans'")


def render_file_svg(figure: Figure) -> bytes:
    """A whole SVG file in light colours on a light ground."""
    figure.set_facecolor(PANEL)
    return _svg(figure).encode()


def render_png(figure: Figure) -> bytes:
    """PNG in light colours on a light ground."""
    figure.set_facecolor(PANEL)
    buffer, dpi = io.BytesIO(), figure.dpi
    figure.set_dpi(150)
    FigureCanvasAgg(figure).print_png(buffer)
    figure.set_dpi(dpi)
    figure.set_layout_engine("none")
    return buffer.getvalue()


def _svg(figure: Figure) -> str:
    # The canvas's own method: `savefig` would draw everything twice.
    buffer, dpi = io.StringIO(), figure.dpi
    FigureCanvasSVG(figure).print_svg(buffer, metadata={"Date": None})
    figure.set_dpi(dpi)
    # Laying out takes almost half of the time; another format takes it over.
    figure.set_layout_engine("none")
    return buffer.getvalue()
