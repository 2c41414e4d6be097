"""Repeats a run from its folder and compares: python scripts/reproduce.py RUN"""

import sys
from pathlib import Path

if __name__ == "__main__":
    sys.path.insert(0, str(Path(__file__).resolve().parents[1]))
    from experiments.reproduction import main

    main()
