"""Predicted against realised damage: what counts as within the factor, what is silent, what may be learned from."""

import dataclasses

import numpy as np
import pytest

from autolabel.plan_board import PlanBoard
from autolabel.plan_damage import COLUMNS, PlanDamage
from autolabel.plan_summary import PlanSummary
from experiments import plan_damages
from experiments.figure_style import figure_style, render_file_svg
from experiments.plan_damage_page import draw_damages, write_page
from experiments.plan_damages import DamageRow, judge_bank, summarize_damages

ROW = DamageRow("net", "mlp", "digits", "taylor", "refitted", 3, 0.2, 0.1, 0.4, 0.2)


def row(**changes):
    return dataclasses.replace(ROW, **changes)


def test_shares_by_hand():
    rows = [
        row(),
        row(realised=0.29),
        row(realised=0.31),
        row(realised=0.14, family="conv2d"),
        row(realised=0.13, family="conv2d"),
        row(realised=0.5, family="conv2d"),
        row(realised=0.001),
        row(realised=-0.2),
        row(measured=10, realised=0.0),
    ]
    line, silent = summarize_damages(rows)
    assert (line["plans"], line["silent"]) == (6, 2)
    assert line["within"] == 3 / 6
    assert (line["worst_family"], line["within_worst_family"]) == ("conv2d", 1 / 3)
    assert line["covered"] == 5 / 6
    assert line["width"] == pytest.approx(2.0)
    assert line["spearman"] is None
    assert silent == {"moment": "refitted", "measured": 10, "boards": 1, "plans": 0, "silent": 1}


def test_the_page_and_the_figure_tell_it():
    rows = [row(predicted=0.1 * (i + 1), realised=0.1 * (i + 1), measured=m) for i in range(4) for m in (0, 3)]
    page = write_page(rows, rows[:2])
    assert "| refitted | 3 | 4 | 0 | 100 % | 100 % (mlp) |" in page
    assert page.count("| after | measured plans |") == 2
    with figure_style(text_as_paths=True):
        assert b"<svg" in render_file_svg(draw_damages(rows))


def board(name, family, task):
    rng = np.random.default_rng([*map(ord, name)])
    values = rng.standard_normal((24, len(COLUMNS))).astype(np.float32)
    loss = 0.3 + np.exp(values[:, 0])
    summary = PlanSummary(("g",), (), np.zeros((24, 1, 0), np.float32), COLUMNS, values)
    return PlanBoard(name, family, task, summary, {"refitted": loss}, {"refitted": loss + 0.1}, {}, 0.3, {}, 0.4)


def test_nothing_like_the_judged_network_is_learned_from(monkeypatch):
    boards = [board(f"{f}{t}{i}", f, t) for f in ("mlp", "conv2d", "conv1d") for t in "abc" for i in range(2)]
    seen = []

    def fit(own, moment, real=PlanDamage.fit):
        seen.append([b.network for b in own])
        return real(own, moment)

    monkeypatch.setattr(plan_damages.PlanDamage, "fit", fit)
    rows = judge_bank(boards, [["drawn"] * 24] * len(boards), ("refitted",), numbers=(0, 3))
    assert len(seen) == 9
    cells = [(b.family, b.task) for b in boards[::2]]
    by_name = {b.network: b for b in boards}
    for (family, task), names in zip(cells, seen, strict=True):
        assert len(names) == 8
        assert all(by_name[n].family != family and by_name[n].task != task for n in names)
    # All plans before anything is measured, then those that were not.
    assert len(rows) == 18 * (24 + 21)
    lines = summarize_damages(rows)
    assert [line["measured"] for line in lines] == [0, 3]
    assert lines[1]["within"] > 0.9
    assert lines[1]["spearman"] > 0.9
