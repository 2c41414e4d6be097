"""Write what the packed files of runs hold:  python scripts/collect_coded.py RUN... results/record_lenet5/raw.csv"""

import sys

from experiments.coded_table import collect_coded

if __name__ == "__main__":
    if len(sys.argv) < 3:
        sys.exit(__doc__)
    print(f"{collect_coded(sys.argv[1:-1], sys.argv[-1])} rows")
