"""Write what runs left into the raw tables of results/:

python scripts/collect_results.py comparison RUN results/cifar10_resnet20/raw.csv    every method, seed and stage
python scripts/collect_results.py table RUN results/methods/raw.csv --name methods.csv    a job's own table
python scripts/collect_results.py curve RUN... results/coded_curve/raw.csv           tables of several coded curves
python scripts/collect_results.py packed RUN... results/record_lenet5/raw.csv        what packed files hold, by layer
python scripts/collect_results.py whole RUN... results/whole_runs/raw.csv            one line for each run
"""

import argparse
import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from compress.errors import CompressError
from experiments.coded_curve import CurveRow
from experiments.coded_table import collect_coded
from experiments.results import collect_results, collect_rows, collect_table
from experiments.whole_runs import collect_runs

ONE = ("comparison", "table")


def main() -> int:
    """How many rows the table holds."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("what", choices=(*ONE, "curve", "packed", "whole"))
    parser.add_argument("runs", nargs="+", help="folders of runs; one of them for a comparison and a job's table")
    parser.add_argument("path", help="the CSV file to write")
    parser.add_argument("--add", action="store_true", help="of a comparison: keep rows of other runs")
    parser.add_argument("--name", help="of a job's table: the file in the run's folder")
    given = parser.parse_args()
    if given.what in ONE and len(given.runs) > 1:
        parser.error(f"{given.what} takes one run. Got {len(given.runs)}.")
    if (given.what == "table") != (given.name is not None):
        parser.error("--name goes with table, and with nothing else.")
    if given.add and given.what != "comparison":
        parser.error("--add goes with comparison, and with nothing else.")
    if given.what == "comparison":
        return collect_results(given.runs[0], given.path, add=given.add)
    if given.what == "table":
        return collect_table(given.runs[0], given.name, given.path)
    if given.what == "curve":
        return collect_rows(given.runs, "coded_curve.csv", CurveRow, given.path)
    return (collect_coded if given.what == "packed" else collect_runs)(given.runs, given.path)


if __name__ == "__main__":
    try:
        print(f"{main()} rows")
    except CompressError as error:
        sys.exit(str(error))
