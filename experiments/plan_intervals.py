"""Whether intervals around a plan labeler's scores hold on networks that it never saw."""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from autolabel.conformal import Calibration
from experiments.who_predicts import SPLITS, Prediction

COLUMNS = ("predictor", "zero_shot", "network", "family", "task", "coverage", "half_width", "asked")


@dataclass(frozen=True)
class IntervalRow:
    """One network.

    Attributes:
        predictor, zero_shot: whose scores, and what they never saw.
        coverage: part of its plans whose true normal score (of the loss on examples that decide nothing) lies within
            the interval.
        half_width: of the interval, in standard deviations of the plans; learned from all other networks.
        asked: coverage that was asked for.
    """

    predictor: str
    zero_shot: str
    network: str
    family: str
    task: str
    coverage: float
    half_width: float
    asked: float


def judge_intervals(predictions: Sequence[Prediction], truth: str, asked: float = 0.9) -> list[IntervalRow]:
    """Each network's intervals are calibrated on others, whose predictions are as blind as its own.

    The calibration (see `Calibration`) weighs every network the same; a score counts as much as it agreed with the
    truth on those others, on their validation data: test losses only judge.
    """
    rows = []
    for key in dict.fromkeys((p.labeler, p.split) for p in predictions):
        own = [p for p in predictions if (p.labeler, p.split) == key]
        scores = [(p.score - p.score.mean()) / max(float(p.score.std()), 1e-9) for p in own]
        known = [p.board.target(truth) for p in own]
        slopes = np.array([float((s * t).mean()) for s, t in zip(scores, known, strict=True)])
        for i, p in enumerate(own):
            # For a family and a task that are new, nothing of either calibrates.
            others = [j for j in range(len(own)) if j != i and (key[1] != SPLITS[0] or _unlike(own[j], p))]
            if not others:
                continue
            slope = float(np.mean(slopes[others]))
            errors = [known[j] - slope * scores[j] for j in others]
            calibration = Calibration.learn(
                np.concatenate(errors), np.repeat(others, [len(error) for error in errors]), asked
            )
            low, high = calibration.interval(slope * scores[i])
            board, judged = p.board, p.board.judged_target(truth)
            inside = float(((judged >= low) & (judged <= high)).mean())
            rows.append(
                IntervalRow(*key, board.network, board.family, board.task, inside, calibration.half_width, asked)
            )
    return rows


def _unlike(a: Prediction, b: Prediction) -> bool:
    return a.board.family != b.board.family and a.board.task != b.board.task


def summarize_intervals(rows: Sequence[IntervalRow]) -> list[dict[str, float | str]]:
    """One line for each predictor: coverage over networks (mean and worst tenth), and the mean width."""
    found = []
    for key in dict.fromkeys((row.predictor, row.zero_shot) for row in rows):
        own = [row for row in rows if (row.predictor, row.zero_shot) == key]
        coverage = np.array([row.coverage for row in own])
        found.append({
            "predictor": key[0], "zero_shot": key[1], "networks": len(own), "asked": own[0].asked,
            "coverage": float(coverage.mean()), "worst_tenth": float(np.quantile(coverage, 0.1)),
            "half_width": float(np.mean([row.half_width for row in own])),
        })  # fmt: skip
    return found
