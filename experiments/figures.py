"""The figures of a run: which there are, and how they leave it."""

from collections.abc import Callable, Mapping
from pathlib import Path

from matplotlib.figure import Figure

from compress.errors import ArtifactError
from compress.files import write_atomic
from experiments.figure_style import figure_style, render_file_svg, render_page_svg, render_png
from experiments.figures_front import draw_front
from experiments.figures_labeler import draw_agreement, draw_calibration, draw_reasons, draw_scatter
from experiments.figures_methods import (
    draw_accuracy_against_macs,
    draw_comparison,
    draw_overview,
    draw_sizes,
    draw_training,
)
from experiments.figures_units import (
    draw_bits,
    draw_damage,
    draw_group_sensitivity,
    draw_layer_sensitivity,
    draw_removed,
)
from experiments.run_files import FIGURES, RunFiles, read_run

DRAWINGS: Mapping[str, Callable[[RunFiles], Figure | None]] = {
    "comparison": draw_comparison,
    "accuracy_against_macs": draw_accuracy_against_macs,
    "agreement": draw_agreement,
    "scatter": draw_scatter,
    "calibration": draw_calibration,
    "reasons": draw_reasons,
    "group_sensitivity": draw_group_sensitivity,
    "layer_sensitivity": draw_layer_sensitivity,
    "removed": draw_removed,
    "bits": draw_bits,
    "damage": draw_damage,
    "front": draw_front,
    "sizes": draw_sizes,
    "training": draw_training,
}


def write_figures(run: RunFiles) -> dict[str, str]:
    """Name -> `<svg>` element of every figure for which the run has data; each is in `figures/` of its folder as PNG.

    Raises:
        ArtifactError: if a file of the run is damaged, or the folder cannot be written.
    """
    found = {}
    with figure_style():
        for name, draw in DRAWINGS.items():
            path, figure = run.folder / FIGURES / f"{name}.png", draw(run)
            if figure is None:
                path.unlink(missing_ok=True)
                continue
            found[name] = render_page_svg(figure)
            _write(path, render_png(figure))
    return found


def write_overview(folder: str | Path, path: str | Path) -> None:
    """Write one figure of a run for a front page, SVG or PNG by the ending of `path`.

    Raises:
        ArtifactError: if the run has neither a comparison nor exported files, or for another ending.
    """
    path = Path(path)
    if path.suffix not in (".svg", ".png"):
        raise ArtifactError(f"The figure must end in .svg or .png. Got {path}.")
    with figure_style(text_as_paths=True):
        figure = draw_overview(read_run(folder))
        if figure is None:
            raise ArtifactError(f"{folder} has neither comparison.csv nor export.json, so there is nothing to draw.")
        _write(path, render_file_svg(figure) if path.suffix == ".svg" else render_png(figure))


def _write(path: Path, content: bytes) -> None:
    write_atomic(path, lambda file: file.write(content))
