"""Draws the pages of results from their raw tables:  python scripts/write_results.py"""

import json
import sys
from collections.abc import Callable
from pathlib import Path
from typing import TypeVar

from matplotlib.figure import Figure

Kind = TypeVar("Kind")
ROOT = Path(__file__).resolve().parents[1]
sys.path.insert(0, str(ROOT))

from experiments import (  # noqa: E402
    coded_curve,
    comparison_page,
    leaderboard,
    mixed_precision_page,
    plan_damage_page,
    records_page,
    regret_page,
    whole_runs,
)
from experiments.coded_table import CodedRow  # noqa: E402
from experiments.figure_style import figure_style, render_file_svg  # noqa: E402
from experiments.label_economy import EconomyRow  # noqa: E402
from experiments.mixed_precision import AllocationRow, WidthRow  # noqa: E402
from experiments.plan_damages import DamageRow  # noqa: E402
from experiments.plan_intervals import IntervalRow  # noqa: E402
from experiments.raw_table import read_raw  # noqa: E402
from experiments.run_files import Trial, read_comparison  # noqa: E402
from experiments.unit_economy import UnitEconomyRow  # noqa: E402
from experiments.who_predicts import Row  # noqa: E402

RESULTS = ROOT / "results"
_WHO = ("raw", "trained", "formatted", "choices_repaired")
_PARTS = (("who_predicts_others", Row, leaderboard.write_others),
          ("label_economy", EconomyRow, leaderboard.write_economy),
          ("unit_economy", UnitEconomyRow, leaderboard.write_samplings),
          ("plan_intervals", IntervalRow, leaderboard.write_intervals))  # fmt: skip
RESNET20 = "ResNet-20 on CIFAR-10 at half the MACs", 91.73  # with the test accuracy of the dense network


def _raw(folder: str, kind: type[Kind], name: str = "raw") -> list[Kind]:
    return read_raw(RESULTS / folder / f"{name}.csv", kind)


def _command(name: str) -> str:
    return f"`{json.loads((RESULTS / name / 'made.json').read_text())['command']}`"


def _who_predicts() -> str:
    rows = [row for name in _WHO for row in _raw("who_predicts", Row, name)]
    page = leaderboard.write_page(rows, _command("who_predicts")) + "\n" + leaderboard.write_ingredients(rows) + "\n"
    for name, kind, write in _PARTS:
        page += write(_raw(name, kind)) + "\n"
    return page.rstrip("\n") + "\n"


def _boards() -> list[dict[str, str]]:
    return regret_page.read_rows(RESULTS / "no_regret" / "raw.csv")


def _no_regret() -> str:
    folder, page = RESULTS / "no_regret", regret_page
    return page.write_page(_boards(), _command("no_regret"), page.read_trained(folder), page.read_measured(folder),
                           page.read_rows(folder / "formatted.csv"), page.read_others(folder))  # fmt: skip


def _records() -> list[CodedRow]:
    return [row for name in records_page.OTHERS for row in _raw(name, CodedRow)]


def _resnet20_rows(name: str) -> tuple[Trial, ...]:
    return read_comparison(RESULTS / "cifar10_resnet20" / f"{name}.csv")


def _resnet20() -> str:
    rows, higher_rate, controls, float32 = map(_resnet20_rows, ("raw", "higher_rate", "controls", "float32"))
    others = {
        "Channels alone, rate 0.04, weight decay 5e-4, the best epoch instead of 0.01, none, the last": higher_rate,
        "Controls: the same part of every rank, but of the first and the last layer none; and channels alone": controls,
        "Seed 0 trained in float32, beside which the raw rows of seed 0 are of bfloat16": float32,
    }
    return comparison_page.write_page(rows, RESNET20[0], "cifar10_resnet20", RESNET20[1], others)


figures: dict[str, Callable[[], Figure]] = {  # name of the figure -> how it is drawn
    "records": lambda: records_page.draw_records(_records()),
    "who_predicts": lambda: leaderboard.draw_plans(_raw("who_predicts", Row)),
    "label_economy": lambda: leaderboard.draw_economy(_raw("label_economy", EconomyRow)),
    "no_regret": lambda: regret_page.draw_regret(_boards()),
    "coded_curve": lambda: coded_curve.draw_curves(_raw("coded_curve", coded_curve.CurveRow)),
    "cifar10_resnet20": lambda: comparison_page.draw_methods(_resnet20_rows("raw"), RESNET20[1]),
    "plan_damage": lambda: plan_damage_page.draw_damages(_raw("plan_damage", DamageRow)),
    "mixed_precision": lambda: mixed_precision_page.draw_widths(_raw("mixed_precision", WidthRow)),
}  # fmt: skip
pages: dict[str, Callable[[], str]] = {  # name of the page -> its Markdown
    "who_predicts": _who_predicts, "no_regret": _no_regret, "cifar10_resnet20": _resnet20,
    "mixed_precision": lambda: mixed_precision_page.write_page(
        _raw("mixed_precision", WidthRow), _raw("mixed_precision", AllocationRow, "allocations"),
        _command("mixed_precision")),
    "plan_damage": lambda: plan_damage_page.write_page(
        _raw("plan_damage", DamageRow), trained=_raw("plan_damage", DamageRow, "trained"),
        again=_raw("plan_damage", DamageRow, "again")),
    "records": lambda: records_page.write_page(_records(), _raw("records", records_page.KeptFile),
                                               _raw("records", records_page.TensorRow, "tensors")),
    "coded_curve": lambda: coded_curve.write_page(_raw("coded_curve", coded_curve.CurveRow)),
    "whole_runs": lambda: whole_runs.write_page(_raw("whole_runs", whole_runs.WholeRun)),
}  # fmt: skip


if __name__ == "__main__":
    for name in {**pages, **figures}:
        if name in pages:
            (ROOT / "docs" / f"{name}.md").write_text(pages[name](), encoding="utf-8")
        if name in figures:
            with figure_style(text_as_paths=True):
                (ROOT / "docs" / f"{name}.svg").write_bytes(render_file_svg(figures[name]()))
