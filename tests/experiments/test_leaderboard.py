"""The leaderboard: read from its raw table, told as a page, drawn as a figure."""

import csv
import dataclasses
import json

import numpy as np
import pytest

from compress.errors import ArtifactError
from experiments.figure_style import figure_style, render_file_svg
from experiments.label_economy import STRATEGIES, EconomyRow
from experiments.leaderboard import draw_economy, draw_plans, write_ingredients, write_others, write_page
from experiments.prediction_goals import difference, write_goals
from experiments.raw_table import read_raw
from experiments.results import collect_table
from experiments.run_dir import RunDir
from experiments.who_predicts import COLUMNS, Row

ROWS = [
    Row("finetuned", "plans", family, "t", f"{family}{i}", predictor, split, value, value - 0.1, regret)
    for predictor, split, value, regret in (
        ("fisher", "", 0.5, 3.0),
        ("labeler/gbdt", "family_and_task", 0.8, 1.0),
        ("loss_refitted", "measured", 0.9, 0.5),
    )
    for family in ("mlp", "conv")
    for i in range(3)
]
ROWS += [Row("repaired", "within_layers", "mlp", "t", f"mlp{i}", "taylor", "", 0.3, 0.2, None) for i in range(3)]


def write_table(path, rows):
    path.parent.mkdir(parents=True, exist_ok=True)
    with path.open("w", newline="") as file:
        writer = csv.DictWriter(file, COLUMNS)
        writer.writeheader()
        writer.writerows(dataclasses.asdict(row) for row in rows)


def test_a_row_that_would_count_twice_is_refused():
    with pytest.raises(ArtifactError, match="holds 2 rows"):
        write_page([*ROWS, ROWS[0]], "`command`")


def test_the_table_is_read_as_it_was_written(tmp_path):
    write_table(tmp_path / "raw.csv", ROWS)
    assert read_raw(tmp_path / "raw.csv", Row) == ROWS


def test_the_page_tells_the_best_first():
    page = write_page(ROWS, "`command`")
    lines = [line for line in page.splitlines() if line.startswith("| ")]
    assert [line.split(" | ")[0] for line in lines] == ["| predictor", "| loss_refitted", "| labeler/gbdt", "| fisher",
                                                       "| predictor", "| taylor"]  # fmt: skip
    assert (
        "| labeler/gbdt | new family and task | 0.80 | 0.80 to 0.80 | 0.80 | 0.80 (conv) | 0.70 | 1.0 | 1.0 |" in page
    )
    assert "Units within layers: damage in thinned company after a refit" in page


def test_goals_are_told_beside_what_was_found():
    rows = [
        dataclasses.replace(row, predictor="labeler/blend") if row.predictor == "labeler/gbdt" else row for row in ROWS
    ]
    known = [dataclasses.replace(row, zero_shot="network", spearman=0.95, regret=0.2)
             for row in rows if row.predictor == "labeler/blend"]  # fmt: skip
    rows += known
    page = write_goals(rows)
    assert page in write_page(rows, "`command`")
    assert "| median over networks, new family and task | >= 0.85 | 0.80 | **missed** |" in page
    assert "| worst family (conv) | >= 0.75 | 0.80 | reached |" in page
    assert "| median over networks, known families | >= 0.93 | 0.95 | reached |" in page
    assert "| <= 0.5 on every family | conv 1.00, mlp 1.00 | **missed** |" in page
    assert "| none | loss_refitted 0.90 | **missed** |" in page
    assert (
        "`labeler/blend` is +0.300 ahead of it (95 % by resampling networks within families: +0.300 to +0.300)" in page
    )
    assert "| predictor | t |\n|---|---|\n| loss_refitted | 0.90 |\n| labeler/blend | 0.80 |\n| fisher | 0.50 |" in page
    assert "| predictor | mlp | conv |\n|---|---|---|\n| loss_refitted | 0.90 | 0.90 |\n" in page
    assert write_goals(ROWS) == ""


def test_networks_that_no_setting_was_chosen_on_have_their_own_table():
    formulas = [dataclasses.replace(row, predictor=f"formula{i}", spearman=0.1 * i)
                for row in ROWS if row.predictor == "fisher" for i in range(7)]  # fmt: skip
    page = write_others([row for row in ROWS if row.predictor != "fisher"] + formulas)
    assert "these 6 networks" in page
    told = [line.split(" | ")[0] for line in page.splitlines() if line.startswith("| ")]
    assert told == ["| predictor", "| loss_refitted", "| labeler/gbdt", *(f"| formula{i}" for i in (6, 5, 4, 3, 2))]


def test_the_interval_of_a_difference_is_that_of_pairs():
    """Networks differ much and the two predictors little: their difference is as certain as it is alike."""
    values = np.random.default_rng(0).normal(size=40)
    rows = [Row("finetuned", "plans", "mlp", "t", f"n{i}", name, "", value + gap, 0.0, 0.0)
            for i, value in enumerate(values) for name, gap in (("a", 0.1), ("b", 0.0))]  # fmt: skip
    assert difference(rows, ("a", ""), ("b", "")) == pytest.approx((0.1, 0.1))
    low, high = difference(rows, ("a", ""), ("a", ""))
    assert low == high == 0


def test_label_cost_is_drawn_against_quality():
    rows = [EconomyRow("mlp", "t", f"n{i}", predictor, strategy, measured, 0.01 * measured, 90.0, 91.0)
            for i in range(3) for predictor in ("labeler/blend", "chance") for strategy in STRATEGIES
            for measured in (1, 5, 30)]  # fmt: skip
    figure = draw_economy(rows)
    for axes in figure.axes:
        lines = {line.get_label(): line for line in axes.lines}
        # A favourite that nothing is measured for costs nothing: it has no place on a logarithmic axis.
        assert lines["labeler/blend"].get_xdata() == pytest.approx([5.0, 30.0])
        assert lines["chance"].get_ydata() == pytest.approx([100 * 90 / 91] * 2)


def test_what_an_ingredient_is_worth_has_a_part_of_its_own():
    whole = [row for row in ROWS if row.predictor == "labeler/gbdt"]
    without = [dataclasses.replace(row, predictor="labeler/gbdt without trees", spearman=row.spearman - 0.1)
               for row in whole]  # fmt: skip
    shots = [dataclasses.replace(row, zero_shot="family_and_task+8 refitted", spearman=0.85) for row in whole]
    stored = [Row("stored", "configs", "mlp", "t", "mlp0", "damage_alone", "measured", 0.9, 0.8, None)]
    # Of another truth, which is not told there.
    other = [dataclasses.replace(row, truth="refitted", spearman=0.1) for row in [*whole, *shots]]
    rows = [*ROWS, *without, *shots, *stored, *other]
    page = write_ingredients(rows)
    assert "| labeler/gbdt | 0.800 | 0.800 |  |" in page
    assert "| labeler/gbdt without trees | 0.700 | 0.700 | -0.100 |" in page
    assert "| labeler/gbdt | new family and task, 8 plans measured after repair | 0.85 |" in page
    assert "| damage_alone | measured | 0.90 |" in page
    assert "| 0.10 |" not in page
    assert "| fisher |" not in page
    assert "without trees" not in write_page(rows, "`command`")
    with figure_style():
        assert "without" not in render_file_svg(draw_plans(rows)).decode()


def test_the_figure_names_every_predictor():
    with figure_style():
        svg = render_file_svg(draw_plans(ROWS)).decode()
    for name in ("fisher (formula)", "labeler/gbdt (new family and task)", "loss_refitted (measured)"):
        assert name in svg


def test_a_table_that_is_none_is_named(tmp_path):
    with pytest.raises(ArtifactError, match="Cannot read"):
        read_raw(tmp_path / "raw.csv", Row)
    (tmp_path / "raw.csv").write_text("a,b\n1,2\n")
    with pytest.raises(ArtifactError, match="is not a table of Row"):
        read_raw(tmp_path / "raw.csv", Row)


def test_a_table_is_collected_with_what_made_it(tmp_path):
    record = {"command": "python -m experiments.run experiment=who_predicts job.bank=/a/b hydra.run.dir=/x",
              "config": {"job": {"truths": ["finetuned"], "bank": "/a/b.npz"}}, "seeds": {"seed": 0}}  # fmt: skip
    with RunDir(tmp_path / "run", record) as run_dir:
        write_table(run_dir.file("who_predicts.csv"), ROWS)
        with pytest.raises(ArtifactError, match="is running, not finished"):
            collect_table(tmp_path / "run", "who_predicts.csv", tmp_path / "raw.csv")
    assert collect_table(tmp_path / "run", "who_predicts.csv", tmp_path / "out" / "raw.csv") == len(ROWS)
    assert read_raw(tmp_path / "out" / "raw.csv", Row) == ROWS
    made = json.loads((tmp_path / "out" / "made.json").read_text())
    assert made["command"] == "python -m experiments.run experiment=who_predicts"
    assert made["job"] == {"truths": ["finetuned"], "bank": "b.npz"}
    assert made["libraries"]
    # What made a second table does not hide what made the first.
    assert collect_table(tmp_path / "run", "who_predicts.csv", tmp_path / "out" / "more.csv") == len(ROWS)
    assert sorted(path.name for path in (tmp_path / "out").glob("made*.json")) == ["made.json", "made_more.json"]
    with pytest.raises(ArtifactError, match=r"no\.csv"):
        collect_table(tmp_path / "run", "no.csv", tmp_path / "raw.csv")
