"""Measurements go where the plan hangs on them: the cut by hand, what is asked next, who is judged, resuming."""

import numpy as np
import pytest
import torch
from torch import nn

from autolabel import learning
from autolabel.active_sampling import ActiveSampling, straddle
from autolabel.labelers import RidgeLabeler
from autolabel.learning import learn_labels
from autolabel.oracles import RemovalOracle
from autolabel.tables import LabelTable
from compress.errors import CompressError
from compress.statistics import collect_statistics
from compress.structure import analyze
from compress.task import ClassificationTask

TASK = ClassificationTask()


def labels_of(damage, width, source=None):
    damage, width = np.array(damage, float)[:, None], np.array(width, float)[:, None]
    source = np.full(len(damage), "predicted") if source is None else np.array(source)
    ids = tuple(f"a[{i}]" for i in range(len(damage)))
    return LabelTable(ids, ("removed",), damage, np.full(damage.shape, np.nan), damage - width / 2, damage + width / 2,
                      source)  # fmt: skip


def test_the_cut_is_a_price_of_cost():
    # Damage per cost 1, 2, 3, 4; two go, so that the cut lies at 2.5: at damages 2.5, 5, 2.5 and 10.
    labels = labels_of([1.0, 4.0, 3.0, 16.0], [3.0, 0.5, 2.0, 1.0])
    found = straddle(labels, np.array([True, True, False, False]), np.array([1.0, 2.0, 1.0, 4.0]))
    np.testing.assert_allclose(found, [0.5, 2.0, 0.25, 6.0])


def test_where_nothing_is_cut_the_widest_intervals_come_first():
    labels = labels_of([1.0, 2.0, 3.0], [1.0, 3.0, 2.0])
    for removed in (np.zeros(3, bool), np.ones(3, bool)):
        assert np.argsort(straddle(labels, removed, np.ones(3))).tolist() == [1, 2, 0]


def test_the_most_doubtful_are_asked_and_none_twice():
    labels = labels_of([1.0, 2.0, 3.0, 4.0], [1.0] * 4, ["predicted", "measured", "predicted", "predicted"])
    active = ActiveSampling(lambda found: found.damage[:, 0] < 2.5, np.ones(4))
    assert active.choose(labels, 2) == ["a[2]", "a[0]"]
    assert active.choose(labels, 9) == ["a[2]", "a[0]", "a[3]"]
    assert active.choose(labels, 0) == []
    with pytest.raises(CompressError, match="'first' in"):
        ActiveSampling(active.decide, active.saved, first=1.0)


@pytest.fixture(scope="module")
def network():
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(6, 16), nn.ReLU(), nn.Linear(16, 12), nn.ReLU(), nn.Linear(12, 3)).eval()
    x = torch.randn(96, 6)
    batches = [(x[:48], model(x[:48]).argmax(1)), (x[48:], model(x[48:]).argmax(1))]
    structure = analyze(model, (x[:2],))
    return structure, batches, collect_statistics(structure, TASK, batches)


def test_half_is_drawn_and_half_is_asked_for(network, tmp_path, monkeypatch):
    structure, batches, statistics = network
    asked, judged = [], []

    def decide(labels):
        asked.append(int((labels.source == "measured").sum()))
        return labels.damage[:, 0] <= np.median(labels.damage[:, 0])

    def compare(labels, *args, real=learning.compare, **kwargs):
        judged.append(int(np.isfinite(labels.damage).sum()))
        return real(labels, *args, **kwargs)

    monkeypatch.setattr(learning, "compare", compare)
    active = ActiveSampling(decide, np.ones(28), rounds=2)

    def learn(folder):
        return learn_labels(structure, TASK, batches, statistics, RidgeLabeler(), RemovalOracle(), sample=16,
                            active=active, rows_file=folder / "rows.jsonl")  # fmt: skip

    (tmp_path / "a").mkdir()
    learned = learn(tmp_path / "a")
    assert asked == [8, 12]
    assert np.isfinite(learned.measured.damage).sum() == 16
    # Judged on the random half, and the doubtful half counts nowhere as held out.
    assert judged == [8]
    seen = np.isfinite(learned.held_out.damage[:, 0]) & np.isfinite(learned.measured.damage[:, 0])
    assert seen.sum() == 8
    # A killed run asks for the same units, though its file knows more of them than were asked for by then.
    rows = (tmp_path / "a" / "rows.jsonl").read_bytes().splitlines(keepends=True)
    (tmp_path / "b").mkdir()
    (tmp_path / "b" / "rows.jsonl").write_bytes(b"".join(rows[:-3]))
    again = learn(tmp_path / "b")
    np.testing.assert_array_equal(again.labels.damage, learned.labels.damage)
    assert len((tmp_path / "b" / "rows.jsonl").read_bytes().splitlines()) == len(rows)


def test_it_needs_a_file_and_something_left_to_choose(network, tmp_path):
    structure, batches, statistics = network

    def never(labels):
        raise AssertionError("everything is measured, there is nothing to decide")

    active = ActiveSampling(never, np.ones(28))
    with pytest.raises(CompressError, match="rows_file"):
        learn_labels(structure, TASK, batches, statistics, RidgeLabeler(), RemovalOracle(), sample=8, active=active)
    learned = learn_labels(structure, TASK, batches, statistics, RidgeLabeler(), RemovalOracle(), sample=None,
                           active=active, rows_file=tmp_path / "rows.jsonl")  # fmt: skip
    assert np.isfinite(learned.measured.damage).all()
