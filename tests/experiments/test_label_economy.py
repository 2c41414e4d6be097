"""Label economy: what is chosen and what it costs, by hand."""

import csv
import dataclasses

import numpy as np
import pytest

from autolabel.plan_board import PlanBoard
from compress.errors import ArtifactError
from experiments.label_economy import COLUMNS, EconomyRow, economy, summarize_economy
from experiments.leaderboard import write_economy
from experiments.raw_table import read_raw

LOSS = {"finetuned": np.array([0.3, 0.1, 0.2, 0.4]), "briefly_tuned": np.array([0.5, 0.9, 0.2, 0.8])}
METRIC = {"finetuned": np.array([88.0, 95.0, 92.0, 80.0])}
MACS = {"finetuned": np.full(4, 100.0), "briefly_tuned": np.full(4, 10.0)}
BOARD = PlanBoard("net", "mlp", "digits", None, LOSS, LOSS, METRIC, 0.1, MACS)


def test_the_best_of_the_measured_favourites_is_chosen():
    rows = economy(BOARD, "labeler", np.array([0.0, 3.0, 1.0, 2.0]), (1, 2, 9))
    found = {(row.strategy, row.measured): (row.metric, row.cost_share) for row in rows}
    assert {row.full_metric for row in rows} == {95.0}
    # One favourite needs no measurement; of the first two, plan 2 is better at both moments.
    assert found["finetuned", 1] == found["briefly_tuned", 1] == (88.0, 0.0)
    assert found["finetuned", 2] == (92.0, 0.5)
    assert found["briefly_tuned", 2] == (92.0, 0.05)
    assert found["finetuned", 4] == (95.0, 1.0)
    assert found["briefly_tuned", 4] == (92.0, 0.1)


def test_the_summary_by_hand():
    rows = economy(BOARD, "labeler", np.array([0.0, 3.0, 1.0, 2.0]), (2,))
    rows += economy(BOARD, "labeler", np.array([3.0, 0.0, 1.0, 2.0]), (2,))
    (line,) = [line for line in summarize_economy(rows) if line["strategy"] == "finetuned"]
    assert line["networks"] == 2
    assert line["mean_share"] == pytest.approx((92 / 95 + 1) / 2)
    assert line["at_least_99"] == 0.5
    assert line["cost_share"] == 0.5


def test_it_is_read_back_and_told(tmp_path):
    rows = economy(BOARD, "labeler", np.array([0.0, 3.0, 1.0, 2.0]), (1, 2))
    with (tmp_path / "raw.csv").open("w", newline="") as file:
        writer = csv.DictWriter(file, COLUMNS)
        writer.writeheader()
        writer.writerows(dataclasses.asdict(row) for row in rows)
    assert read_raw(tmp_path / "raw.csv", EconomyRow) == rows
    page = write_economy(rows)
    assert "| labeler | after fine-tuning | 2 | 50.0 % | 96.84 % | 96.8 % | 0 % of networks |" in page
    with pytest.raises(ArtifactError, match="Cannot read"):
        read_raw(tmp_path / "none.csv", EconomyRow)
    (tmp_path / "raw.csv").write_text("a,b\n1,2\n")
    with pytest.raises(ArtifactError, match="is not a table of EconomyRow"):
        read_raw(tmp_path / "raw.csv", EconomyRow)
