"""Write the tables of several runs into one:  python scripts/collect_curves.py RUN... results/coded_curve/raw.csv"""

import sys

from experiments.coded_curve import CurveRow
from experiments.results import collect_rows

if __name__ == "__main__":
    if len(sys.argv) < 3:
        sys.exit(__doc__)
    print(f"{collect_rows(sys.argv[1:-1], 'coded_curve.csv', CurveRow, sys.argv[-1])} rows")
