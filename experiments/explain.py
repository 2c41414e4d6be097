"""Why a unit of a run got its label, in words and as a figure: what its labeler saw, and measured units most alike.

    python -m experiments.explain RUN UNIT [--figure unit.svg]

UNIT is the id of a channel, head or layer, as the report and `labels.npz` name it.
"""

import argparse
import sys
from dataclasses import asdict
from pathlib import Path

from rich.console import Console

from autolabel import labelers
from autolabel.explanation import Explanation, explain
from autolabel.tables import FeatureTable, LabelTable
from autolabel.tabular import INDEX_FILE, TabularLabeler
from compress.errors import CompressError
from compress.files import read_json, write_atomic
from experiments.figure_style import figure_style, render_file_svg
from experiments.figures_labeler import draw_explanations


def explain_unit(run: Path, unit_id: str, choice: str | None = None) -> Explanation:
    """The predicted damage of one unit of the run in this folder, whether it was measured or not.

    Raises:
        ArtifactError: if the folder is no run that learned labels, or a file of it is damaged.
        CompressError: for a unit or choice that is not there.
    """
    features, labels = FeatureTable.load(run / "features.npz"), LabelTable.load(run / "labels.npz")
    return explain(_read_labeler(run / "labeler"), features, unit_id, choice, measured=labels)


def _read_labeler(folder: Path) -> TabularLabeler:
    """The labeler that a run saved."""
    kinds = {kind.name: kind for kind in (getattr(labelers, name) for name in labelers.__all__)}
    name = read_json(folder / INDEX_FILE).get("labeler")
    kind = kinds.get(name)
    if kind is None or not issubclass(kind, TabularLabeler):
        raise CompressError(f"A labeler of kind {name!r} says the same of all units: there is nothing to explain.")
    return kind.load(folder)


def main() -> None:
    """Explain the unit on the command line and exit."""
    parser = argparse.ArgumentParser(description="Why a unit of a run got its label.")
    parser.add_argument("run", type=Path, help="folder of a run")
    parser.add_argument("unit", help="id of a channel, head or layer, as the report names it")
    parser.add_argument("--choice", default=None, help="of a layer, a way to store it; the labeler's first by default")
    parser.add_argument("--figure", type=Path, default=None, help="also draw what features did, as this SVG file")
    arguments = parser.parse_args()
    try:
        found = explain_unit(arguments.run, arguments.unit, arguments.choice)
        if arguments.figure is not None:
            with figure_style():
                figure = draw_explanations({found.choice: asdict(found)})
            if figure is None:
                raise CompressError(f"No feature moved the label of {found.unit_id!r}: there is nothing to draw.")
            svg = render_file_svg(figure)
            write_atomic(arguments.figure, lambda file: file.write(svg))
    except CompressError as error:
        Console(stderr=True).print(f"Error: {error}", style="red", markup=False, soft_wrap=True)
        raise SystemExit(1) from None
    sys.stdout.write(f"{found}\n")


if __name__ == "__main__":
    main()
