"""Write the raw table of a run:  python scripts/collect_results.py RUN results/cifar10_resnet20/raw.csv"""

import sys

from experiments.results import collect_results

if __name__ == "__main__":
    if len(sys.argv) != 3:
        sys.exit(__doc__)
    print(f"{collect_results(sys.argv[1], sys.argv[2])} rows")
