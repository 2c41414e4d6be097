"""Write the raw table of a run, of its comparison or of the job's own table:

python scripts/collect_results.py RUN results/cifar10_resnet20/raw.csv
python scripts/collect_results.py RUN results/cifar10_resnet20/raw.csv --add     (keeps rows of other runs)
python scripts/collect_results.py RUN results/who_predicts/raw.csv who_predicts.csv
"""

import sys

from experiments.results import collect_results, collect_table

if __name__ == "__main__":
    add = "--add" in sys.argv
    if len(sys.argv) == 3 + add:
        print(f"{collect_results(*sys.argv[1:3], add=add)} rows")
    elif len(sys.argv) == 4:
        print(f"{collect_table(sys.argv[1], sys.argv[3], sys.argv[2])} rows")
    else:
        sys.exit(__doc__)
