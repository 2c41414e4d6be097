"""Draws the pages of results from their raw tables:  python scripts/write_results.py"""

import sys
from collections.abc import Callable
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]
sys.path.insert(0, str(ROOT))

from experiments import leaderboard, regret_page  # noqa: E402
from experiments.figure_style import figure_style, render_file_svg  # noqa: E402
from experiments.label_economy import EconomyRow  # noqa: E402
from experiments.plan_intervals import IntervalRow  # noqa: E402
from experiments.raw_table import read_raw  # noqa: E402
from experiments.who_predicts import Row  # noqa: E402

RESULTS = ROOT / "results"


def _who_predicts() -> str:
    rows = read_raw(RESULTS / "who_predicts" / "raw.csv", Row)
    page = leaderboard.write_page(rows, "`python -m experiments.run experiment=who_predicts`")
    economy, intervals = (RESULTS / name / "raw.csv" for name in ("label_economy", "plan_intervals"))
    page += leaderboard.write_economy(read_raw(economy, EconomyRow)) + "\n" if economy.exists() else ""
    return page + (leaderboard.write_intervals(read_raw(intervals, IntervalRow)) if intervals.exists() else "")


def _no_regret() -> str:
    rows = regret_page.read_rows(RESULTS / "no_regret" / "raw.csv")
    return regret_page.write_page(rows, "`python -m experiments.run experiment=no_regret`")


# Name of the page -> its Markdown.
pages: dict[str, Callable[[], str]] = {"who_predicts": _who_predicts, "no_regret": _no_regret}


if __name__ == "__main__":
    for name, page in pages.items():
        if (RESULTS / name / "raw.csv").exists():
            (ROOT / "docs" / f"{name}.md").write_text(page(), encoding="utf-8")
    with figure_style(text_as_paths=True):
        plans = leaderboard.draw_plans(read_raw(RESULTS / "who_predicts" / "raw.csv", Row))
        (ROOT / "docs" / "who_predicts.svg").write_bytes(render_file_svg(plans))
        if (RESULTS / "no_regret" / "raw.csv").exists():
            boards = regret_page.draw_regret(regret_page.read_rows(RESULTS / "no_regret" / "raw.csv"))
            (ROOT / "docs" / "no_regret.svg").write_bytes(render_file_svg(boards))
