"""Competence: distances by hand, what is like nothing known, files."""

import dataclasses

import numpy as np
import pytest

from autolabel.competence import Competence
from autolabel.plan_board import PlanBoard, network_vector
from autolabel.plan_summary import PlanSummary
from compress.errors import ArtifactError, CompressError

FIXED = ("log_units", "first_layer", "last_layer", "n_makers", "n_readers", "is_head", "macs_share", "bytes_share",
         "sensitivity_share", "log1p_group_nats")  # fmt: skip
WHOLE = ("log_dense_macs", "log_dense_bytes", "n_groups")


def summary(size, units=1.0):
    values = np.zeros((2, 3, len(FIXED)), dtype=np.float32)
    values[:, :, 0] = units
    plan = np.zeros((2, 3), dtype=np.float32)
    plan[:, 0] = size
    return PlanSummary(("a", "b", "c"), FIXED, values, WHOLE, plan)


def board(name, size):
    return PlanBoard(name, "f", "t", summary(size), {}, {}, {}, 0.1)


BOARDS = [board("tiny", 4.0), board("small", 5.0), board("large", 7.0), board("larger", 7.5)]


def test_distances_by_hand():
    competence = Competence.of(BOARDS)
    assert network_vector(BOARDS[0].summary).shape == (23,)
    deviation = np.std([4.0, 5.0, 7.0, 7.5])
    verdict = competence.judge(summary(5.25))
    # One of 23 numbers differs.
    assert verdict.distance == pytest.approx(0.25 / deviation / np.sqrt(23), rel=1e-5)
    assert verdict.nearest == "small"
    gaps = np.array([1.0, 1.0, 0.5, 0.5]) / deviation / np.sqrt(23)
    assert verdict.limit == pytest.approx(np.quantile(gaps, 0.95), rel=1e-5)
    assert verdict.inside
    assert str(verdict).startswith("within")


def test_what_is_like_nothing_known_lies_outside():
    far = Competence.of(BOARDS).judge(summary(12.0))
    assert not far.inside
    assert far.nearest == "larger"
    assert str(far).startswith("outside")
    # Where all that is known agrees, any difference counts.
    assert not Competence.of(BOARDS).judge(summary(5.0, units=3.0)).inside


def test_it_is_read_back(tmp_path):
    competence = Competence.of(BOARDS)
    competence.save(tmp_path)
    assert Competence.load(tmp_path).judge(summary(6.0)) == competence.judge(summary(6.0))
    (tmp_path / "competence.json").write_text('{"networks": ["a"], "vectors": [[1.0]]}')
    with pytest.raises(ArtifactError, match="is damaged"):
        Competence.load(tmp_path)
    with pytest.raises(ArtifactError, match="Cannot read"):
        Competence.load(tmp_path / "nowhere")


def test_what_does_not_fit_is_refused():
    with pytest.raises(CompressError, match="at least two networks"):
        Competence.of(BOARDS[:1])
    competence = Competence.of(BOARDS)
    other = dataclasses.replace(competence, vectors=competence.vectors[:, :5])
    with pytest.raises(CompressError, match="other columns"):
        other.judge(summary(5.0))
