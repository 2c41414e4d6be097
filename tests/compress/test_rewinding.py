"""Rounds of pruning and rewinding: what goes back to what, and going on after a kill."""

import pytest
import torch
from interruption import DiesAfter, Killed
from torch import nn

from compress import ClassificationTask, CompressError
from compress.errors import ArtifactError
from compress.finetuning import finetune_
from compress.masking import apply_masks_, choose_masks, masks_of
from compress.rewinding import rewind_
from compress.sparsifier import Sparsifier
from compress.weight_score import score_weights
from compress.weight_scores import MagnitudeWeightScore

TASK = ClassificationTask()
TRAINING = {"epochs": 2, "lr": 0.1, "warmup": 0.0}


def make_model(seed=0):
    with torch.random.fork_rng():
        torch.manual_seed(seed)
        return nn.Sequential(nn.Linear(4, 8), nn.BatchNorm1d(8), nn.ReLU(), nn.Linear(8, 2))


def train_batches(epoch):
    """Four batches in an order of the epoch's own."""
    x = torch.randn(64, 4, generator=torch.Generator().manual_seed(0))
    order = torch.randperm(64, generator=torch.Generator().manual_seed(epoch))
    return [(x[rows], (x[rows, 0] * x[rows, 1] > 0).long()) for rows in order.split(16)]


def same(a, b):
    return all(value.equal(b.state_dict()[name]) for name, value in a.state_dict().items())


def masked_by_magnitude(model, density):
    return choose_masks(model, score_weights(model, MagnitudeWeightScore()), density, scope="global")


def test_the_ticket_of_one_round_by_hand():
    found = make_model()
    report = rewind_(found, TASK, train_batches, density=0.25, rounds=1, early=0, **TRAINING)
    trained = make_model()
    finetune_(trained, TASK, train_batches, **TRAINING)
    masks = masked_by_magnitude(trained, 0.25)
    # The first weights, masked by what the trained ones say, trained again with the masks held.
    ticket = make_model()
    apply_masks_(ticket, masks)
    finetune_(ticket, TASK, train_batches, hooks=[Sparsifier(1.0)], **TRAINING)
    assert same(found, ticket)
    assert all(mask.equal(masks[name]) for name, mask in masks_of(found).items())
    assert report.densities == (1.0, 0.25)
    assert [training.steps for training in report.trainings] == [8, 8]


@pytest.mark.parametrize("early", [0, 3, 0.5])
def test_weights_go_back_to_an_early_step(early):
    seen = []

    class Watch:
        name = "watch"

        def settings(self):
            return {}

        def attach(self, model, step, total_steps):
            seen.append((step, {name: value.clone() for name, value in model.state_dict().items()}))

        def penalty(self, model):
            return None

        def after_step(self, model, step):
            seen.append((step, {name: value.clone() for name, value in model.state_dict().items()}))

        def settled(self, step):
            return True

    rewind_(make_model(), TASK, train_batches, density=0.5, rounds=2, early=early, hooks=[Watch()], **TRAINING)
    at = 4 if early == 0.5 else early
    assert [step for step, _ in seen] == list(range(9)) * 3
    for start, before in ((9, 8), (18, 17)):
        masks = {name: value != 0 for name, value in seen[start][1].items() if value.dim() == 2}
        for name, value in seen[start][1].items():
            assert value.equal(seen[at][1][name] * masks.get(name, 1)), name
        trained = make_model()
        trained.load_state_dict(seen[before][1])
        expected = masked_by_magnitude(trained, 0.5 ** (0.5 if start == 9 else 1.0))
        assert all(masks[f"{name}.weight"].equal(mask) for name, mask in expected.items())


def test_the_learning_rate_alone_may_go_back():
    found, twin = make_model(), make_model()
    rewind_(found, TASK, train_batches, density=0.5, rounds=1, rewind="learning_rate", **TRAINING | {"epochs": 1})
    rewind_(twin, TASK, train_batches, density=0.5, rounds=1, rewind="weights", **TRAINING | {"epochs": 1})
    trained = make_model()
    finetune_(trained, TASK, train_batches, **TRAINING | {"epochs": 1})
    assert all(mask.equal(masked_by_magnitude(trained, 0.5)[name]) for name, mask in masks_of(found).items())
    assert not same(found, twin)


@pytest.mark.parametrize("killed_after", [2, 6, 9, 20])
@pytest.mark.parametrize("rewind", ["weights", "learning_rate"])
def test_killed_and_called_again_is_the_same_bit_for_bit(tmp_path, rewind, killed_after):
    settings = {"density": 0.25, "rounds": 2, "rewind": rewind, "early": 3, "optimizer": "adamw", **TRAINING}
    settings |= {"pruning": {"scope": "layer"}, "validation": train_batches(7)}
    whole = make_model()
    expected = rewind_(whole, TASK, train_batches, **settings)
    with pytest.raises(Killed):
        rewind_(make_model(), DiesAfter(killed_after), train_batches, folder=tmp_path, checkpoint_every_steps=2,
                **settings)  # fmt: skip
    fresh = make_model(5)
    report = rewind_(fresh, TASK, train_batches, folder=tmp_path, **settings)
    assert same(fresh, whole)
    assert report.densities == expected.densities == (1.0, 0.5, 0.25)
    assert [t.history for t in report.trainings] == [t.history for t in expected.trainings]
    done = make_model(6)
    assert all(t.resumed for t in rewind_(done, TASK, train_batches, folder=tmp_path, **settings).trainings)
    assert same(done, whole)


def test_what_cannot_be_is_refused(tmp_path):
    for settings, message in (
        ({"rounds": 0}, "'rounds' parameter"), ({"early": 1.5}, "'early' parameter"),
        ({"early": 9}, "step 9 of only 8"),
        ({"rewind": "time"}, "'rewind' parameter"), ({"density": 0.0}, r"in \(0, 1\]"),
        ({"checkpoint": "file"}, "sets 'checkpoint' by itself"), ({"pruning": {"schedule": None}}, "sets 'schedule'"),
    ):  # fmt: skip
        with pytest.raises(CompressError, match=message):
            rewind_(make_model(), TASK, train_batches, **{"density": 0.5, **TRAINING, **settings})
    # So small a rate changes nothing, and patience ends the first training after its first epoch of four batches.
    idle = TRAINING | {"lr": 1e-30, "validation": train_batches(7), "patience": 1}
    with pytest.raises(CompressError, match=r"ended after 4 steps, before the 'early' parameter of rewind_ \(1.0\)"):
        rewind_(nn.Linear(4, 2), TASK, train_batches, density=0.5, rounds=1, early=1.0, **idle)
    rewind_(make_model(), TASK, train_batches, density=0.5, rounds=1, folder=tmp_path, **TRAINING)
    with pytest.raises(ArtifactError, match="other settings"):
        rewind_(make_model(), TASK, train_batches, density=0.4, rounds=1, folder=tmp_path, **TRAINING)
    (tmp_path / "early.safetensors").write_bytes(b"torn")
    with pytest.raises(ArtifactError, match=r"early.safetensors is damaged"):
        rewind_(make_model(), TASK, train_batches, density=0.5, rounds=1, folder=tmp_path, **TRAINING)
