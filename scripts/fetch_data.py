#!/usr/bin/env python3
"""Download the data sets and trained weights of the experiments, and verify what is there.

python scripts/fetch_data.py                     everything
python scripts/fetch_data.py --only mnist stsb   some of it
python scripts/fetch_data.py --check             no download: only say what is there and what is missing
"""

import sys

try:
    from experiments.fetching import main
except ModuleNotFoundError as missing:
    sys.exit(f"The package {missing.name!r} is not installed. Run 'make setup', then '.venv/bin/python {sys.argv[0]}'.")

if __name__ == "__main__":
    sys.exit(main())
