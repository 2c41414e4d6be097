"""Draws the leaderboard of who predicts what from its raw table:  python scripts/write_leaderboard.py"""

import sys
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]
sys.path.insert(0, str(ROOT))

from experiments.figure_style import figure_style, render_file_svg  # noqa: E402
from experiments.leaderboard import draw_plans, read_table, write_page  # noqa: E402

RAW = ROOT / "results" / "who_predicts" / "raw.csv"


def page() -> str:
    """The Markdown of `docs/who_predicts.md`."""
    return write_page(read_table(RAW), "`python -m experiments.run experiment=who_predicts`")


if __name__ == "__main__":
    (ROOT / "docs" / "who_predicts.md").write_text(page(), encoding="utf-8")
    with figure_style(text_as_paths=True):
        (ROOT / "docs" / "who_predicts.svg").write_bytes(render_file_svg(draw_plans(read_table(RAW))))
