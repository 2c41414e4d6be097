"""Intervals around plan scores: they hold on networks like the others, and are as wide as the others' errors."""

import csv
import dataclasses

import numpy as np
import pytest

from autolabel.plan_board import PlanBoard, normal_scores
from compress.errors import ArtifactError
from experiments.leaderboard import write_intervals
from experiments.plan_intervals import COLUMNS, IntervalRow, judge_intervals, summarize_intervals
from experiments.raw_table import read_raw
from experiments.who_predicts import Prediction


def prediction(seed, noise):
    rng = np.random.default_rng(seed)
    loss = rng.random(40)
    board = PlanBoard(f"net{seed}", "f", "t", None, {"finetuned": loss}, {"finetuned": loss}, {"finetuned": loss}, 0.1)
    return Prediction(board, "labeler", "network", normal_scores(loss) + noise * rng.standard_normal(40))


def test_they_cover_what_was_asked_on_networks_like_the_others():
    rows = judge_intervals([prediction(i, 0.6) for i in range(40)], "finetuned", asked=0.8)
    (line,) = summarize_intervals(rows)
    assert line["networks"] == 40
    assert line["coverage"] == pytest.approx(0.8, abs=0.05)
    (narrow,) = summarize_intervals(judge_intervals([prediction(i, 0.1) for i in range(40)], "finetuned"))
    assert narrow["half_width"] < 0.5 * line["half_width"]


def test_a_network_is_not_calibrated_on_itself():
    rows = judge_intervals([*(prediction(i, 0.1) for i in range(12)), prediction(99, 30.0)], "finetuned")
    assert rows[-1].coverage < 0.4
    assert min(row.coverage for row in rows[:-1]) > 0.8
    assert judge_intervals([prediction(0, 0.1)], "finetuned") == []


def test_they_are_read_back_and_told(tmp_path):
    rows = judge_intervals([prediction(i, 0.6) for i in range(3)], "finetuned")
    with (tmp_path / "raw.csv").open("w", newline="") as file:
        writer = csv.DictWriter(file, COLUMNS)
        writer.writeheader()
        writer.writerows(dataclasses.asdict(row) for row in rows)
    assert read_raw(tmp_path / "raw.csv", IntervalRow) == rows
    assert "| labeler | known families | 90 % |" in write_intervals(rows)
    with pytest.raises(ArtifactError, match="Cannot read"):
        read_raw(tmp_path / "none.csv", IntervalRow)
    (tmp_path / "raw.csv").write_text("a,b\n1,2\n")
    with pytest.raises(ArtifactError, match="is not a table of IntervalRow"):
        read_raw(tmp_path / "raw.csv", IntervalRow)


def test_test_losses_of_other_networks_change_nothing():
    known = [prediction(i, 0.6) for i in range(6)]
    shuffled = []
    for own in known[1:]:
        judged = {"finetuned": own.board.judged_loss["finetuned"][::-1]}
        shuffled.append(dataclasses.replace(own, board=dataclasses.replace(own.board, judged_loss=judged)))
    first = judge_intervals(known, "finetuned")[0]
    assert judge_intervals([known[0], *shuffled], "finetuned")[0] == first
