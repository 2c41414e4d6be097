"""Writes docs/features.md, docs/criteria.md and docs/methods.md from the code's own words and the raw table of methods:

python scripts/write_docs.py [FOLDER]
"""

import argparse
import inspect
import re
import sys
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]
FEATURES = """# Features

What a labeler sees of a unit: numbers known without measuring any damage. `features.npz` of a run holds those of
channels and heads. Every column is finite, on dead channels and constant activations too. Written by
`scripts/write_docs.py`.
"""
CRITERIA = """# Criteria

Classic formulas that order units: a higher score is more important. `criterion=NAME` chooses one;
`criterion.normalize=HOW` scales its scores within each coupled group (`mean`, `l2`, `max`, `rank`, `standard`).
Normalised scores are an order, whatever the formula gives. Written by `scripts/write_docs.py`.
"""
TITLES = {"removed": "Channels and heads", "bits": "Layers, at a number of bits"}


def features() -> str:
    """The page of all features, by group."""
    from autolabel.feature import CHOICES, feature_groups

    parts = [FEATURES]
    for choice in CHOICES:
        parts.append(f"## {TITLES[choice]}\n")
        for group in feature_groups(choice):
            rows = "\n".join(f"| `{name}` | {_cell(text)} |" for name, text in group.columns.items())
            summary = _plain(inspect.getdoc(type(group)) or "").partition("\n")[0]
            parts.append(f"### {group.name}\n\n{summary}\n\n| column | what it says |\n|---|---|\n{rows}\n")
    return "\n".join(parts)


def criteria() -> str:
    """The page of all criteria, by name."""
    from compress import criteria as package

    parts = [CRITERIA]
    for kind in sorted((getattr(package, name) for name in package.__all__), key=lambda kind: kind.name):
        text, _, attributes = _plain(inspect.getdoc(kind) or "").partition("\nAttributes:\n")
        settings = re.findall(r"^    (\w+): (.*(?:\n {8}.*)*)", attributes, re.MULTILINE)
        listed = "".join(f"- `{name}`: {' '.join(said.split())}\n" for name, said in settings)
        scale = kind().scale
        unit = "nats: it estimates damage" if scale == "nats" else "order only"
        needs = ", ".join(sorted(kind.needs)) or "nothing"
        parts.append(f"## {kind.name}\n\n{text.strip()}\n\n- scale: {unit}; reads: {needs}\n{listed}")
    return "\n".join(parts)


def methods() -> str:
    """The page of all methods, with what they did where that was measured."""
    from experiments.method_trials import MethodRow
    from experiments.methods_page import write_page
    from experiments.raw_table import read_raw

    files = [ROOT / "results" / name / "raw.csv" for name in ("methods", "methods_lenet5")]
    rows, lenet5 = (read_raw(file, MethodRow) if file.exists() else [] for file in files)
    command = "`python -m experiments.run experiment={}`".format
    return write_page(rows, command("methods"), lenet5, command("methods_lenet5"))


def _plain(text: str) -> str:
    return text.replace("``", "`")


def _cell(text: str) -> str:
    return text.replace("|", "\\|")


def main() -> None:
    """Write all pages."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("folder", type=Path, nargs="?", default=ROOT / "docs", help="where to (default: docs/)")
    folder = parser.parse_args().folder
    folder.mkdir(parents=True, exist_ok=True)
    for name, write in (("features.md", features), ("criteria.md", criteria), ("methods.md", methods)):
        (folder / name).write_text(write(), encoding="utf-8")
        print(folder / name)


if __name__ == "__main__":
    sys.path.insert(0, str(ROOT))
    main()
