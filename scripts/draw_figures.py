"""Draws the overview figure of a run: python scripts/draw_figures.py RUN OUT.svg"""

import argparse
import sys
from pathlib import Path

if __name__ == "__main__":
    sys.path.insert(0, str(Path(__file__).resolve().parents[1]))
    from compress.errors import CompressError
    from experiments.figures import write_overview

    parser = argparse.ArgumentParser(
        description="Metric of every method and size of the files of one run, as one figure."
    )
    parser.add_argument("run", type=Path, help="the folder of a run")
    parser.add_argument("out", type=Path, help="the figure to write, .svg or .png")
    given = parser.parse_args()
    try:
        write_overview(given.run, given.out)
    except CompressError as error:
        sys.exit(str(error))
