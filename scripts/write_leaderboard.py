"""Draws the leaderboard of who predicts what from its raw table:  python scripts/write_leaderboard.py"""

import sys
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]

if __name__ == "__main__":
    sys.path.insert(0, str(ROOT))
    from experiments.figure_style import figure_style, render_file_svg
    from experiments.leaderboard import draw_plans, read_table, write_page

    rows = read_table(ROOT / "results" / "who_predicts" / "raw.csv")
    page = write_page(rows, "`python -m experiments.run experiment=who_predicts`")
    (ROOT / "docs" / "who_predicts.md").write_text(page, encoding="utf-8")
    with figure_style(text_as_paths=True):
        (ROOT / "docs" / "who_predicts.svg").write_bytes(render_file_svg(draw_plans(rows)))
