"""Masks held in a training: under momentum, decay and AdamW, through schedules, kills and quantisation."""

import itertools

import pytest
import torch
from interruption import DiesAfter, Killed
from torch import nn

from compress import ClassificationTask, CompressError, CompressionPlan, LayerFormat, PlanError, analyze
from compress.errors import ArtifactError
from compress.finetuning import finetune_
from compress.masking import apply_masks_, choose_masks, density_of, masks_of
from compress.quantization import prepare_quantized
from compress.quantizers.minmax import MinMaxQuantizer
from compress.sparsifier import Sparsifier
from compress.sparsity_schedules import AgpSchedule, IterativeSchedule, OneShotSchedule, PolynomialSchedule
from compress.weight_score import score_weights
from compress.weight_scores import MagnitudeWeightScore, TaylorWeightScore, WandaWeightScore

TASK = ClassificationTask()


def make_model(seed=0):
    with torch.random.fork_rng():
        torch.manual_seed(seed)
        return nn.Sequential(nn.Linear(6, 12), nn.BatchNorm1d(12), nn.ReLU(), nn.Dropout(0.2), nn.Linear(12, 4))


def data(n, seed):
    x = torch.randn(n, 6, generator=torch.Generator().manual_seed(seed))
    return x, (x[:, 0] > 0).long() * 2 + (x[:, 1] > 0).long()


def train_batches(epoch):
    """Eight batches in an order of the epoch's own."""
    x, y = data(128, 0)
    order = torch.randperm(128, generator=torch.Generator().manual_seed(epoch))
    return [(x[rows], y[rows]) for rows in order.split(16)]


CALIBRATION = train_batches(99)[:2]


class Recorder:
    """A hook that notes the masks after every step."""

    name = "recorder"

    def __init__(self):
        self.masks = []

    def settings(self):
        return {}

    def attach(self, model, step, total_steps):
        self.masks.append(masks_of(model))

    def penalty(self, model):
        return None

    def after_step(self, model, step):
        self.masks.append(masks_of(model))

    def settled(self, step):
        return True


def train(model, hook, *others, **settings):
    return finetune_(model, TASK, train_batches, hooks=[hook, *others], **{"epochs": 2, **settings})


@pytest.mark.parametrize("optimizer", ["sgd", "adamw"])
@pytest.mark.parametrize("pattern", ["unstructured", "1:2", "block2x3", "channel"])
def test_masks_are_held_under_momentum_and_decay(optimizer, pattern):
    model, seen = make_model(), Recorder()
    # Momentum and moments of an earlier step cannot revive a weight that goes at step 5.
    hook = Sparsifier(0.5, pattern, schedule=OneShotSchedule(at=5))
    train(model, hook, seen, optimizer=optimizer, weight_decay=0.1)
    for before, after in itertools.pairwise(seen.masks[5:]):
        assert all(before[name].equal(after[name]) for name in before)
    assert density_of(model).total == pytest.approx(0.5, abs=0.09)
    assert all(mask.all() for mask in seen.masks[4].values())
    assert hook.settled(5)
    assert not hook.settled(4)
    assert not torch.equal(model[0].weight, make_model()[0].weight)


def test_the_density_follows_the_schedule_and_masks_only_shrink():
    model, seen = make_model(), Recorder()
    schedule = PolynomialSchedule(initial_sparsity=0.25, begin=2, end=10, frequency=4)
    train(model, Sparsifier(0.125, schedule=schedule), seen)
    n = 6 * 12 + 12 * 4
    counts = [sum(int(mask.sum()) for mask in masks.values()) for masks in seen.masks]
    # s = .875 - .625 (1 - t)^3: 0.25 at step 2, 0.796875 at step 6, 0.875 at step 10.
    assert counts == [n] * 2 + [90] * 4 + [round(n * 0.203125)] * 4 + [15] * 7
    for before, after in itertools.pairwise(seen.masks):
        assert all((after[name] <= before[name]).all() for name in before)


def test_the_smallest_weights_go_and_the_rest_trains_on():
    model = make_model()
    expected = choose_masks(model, score_weights(model, MagnitudeWeightScore()), 0.4, scope="global")
    train(model, Sparsifier(0.4))
    assert all(mask.equal(expected[name]) for name, mask in masks_of(model).items())


def with_weights(*values):
    layers = []
    for weight in map(torch.tensor, values):
        layers.append(nn.Linear(weight.shape[1], weight.shape[0]))
        layers[-1].weight = nn.Parameter(weight)
    return nn.Sequential(*layers)


def held(model, **settings):
    """The masks before the first step, as nested lists."""
    hook = Sparsifier(threshold=0.25, **settings)
    with torch.no_grad():
        hook.attach(model, 0, 4)
    assert all(mask.equal(hook.masks[name]) for name, mask in masks_of(model).items() if name in hook.masks)
    assert hook.settled(0)
    return [mask.int().tolist() for mask in masks_of(model).values()]


@pytest.mark.parametrize("scope", ["layer", "global"])
def test_what_scores_below_the_threshold_goes_in_any_scope(scope):
    first, second = [[0.1, -0.5], [0.25, -0.2]], [[0.2, 0.1], [0.05, -0.15]]
    # The best of every layer stays; 0.25 is not below 0.25.
    assert held(with_weights(first, second), scope=scope) == [[[0, 1], [1, 0]], [[1, 0], [0, 0]]]
    assert held(with_weights(first, second), scope=scope, floor=0.75) == [[[0, 1], [1, 1]], [[1, 1], [0, 1]]]
    assert held(with_weights(first, second), scope=scope, skip=["1"]) == [[[0, 1], [1, 0]], [[1, 1], [1, 1]]]
    # A layer with a density of its own knows no threshold.
    assert held(with_weights(first, second), scope=scope, overrides={"1": 0.5}) == [[[0, 1], [1, 0]], [[1, 0], [0, 1]]]
    # A quarter of the largest of each layer: of 0.5, and of 0.2.
    first, second = [[0.1, -0.5], [0.25, -0.2]], [[0.2, 0.1], [0.04, -0.15]]
    assert held(with_weights(first, second), scope=scope, normalize="max") == [[[0, 1], [1, 1]], [[1, 1], [0, 1]]]


def test_blocks_go_by_their_mean_and_scores_by_their_own_scale():
    values = [[0.1, -0.5, 0.3, 0.1]]
    # Means .3 and .2.
    assert held(with_weights(values), pattern="block1x2") == [[[1, 1, 0, 0]]]
    # Ranks 0 (shared by two), 2/3 and 1, in thirds.
    assert held(with_weights(values), normalize="rank") == [[[0, 1, 1, 0]]]
    assert held(with_weights(values), scores={"0": torch.tensor([[0.3, 0.2, 0.1, 0.25]])}) == [[[1, 0, 0, 1]]]


def test_the_threshold_is_for_the_weights_of_its_moment():
    model = with_weights([[0.15, 0.5, 0.3]])
    hook = Sparsifier(threshold=0.25, schedule=OneShotSchedule(at=2))
    found = []
    with torch.no_grad():
        hook.attach(model, 0, 3)
        for step in (1, 2, 3):
            model[0].weight -= 0.1
            hook.after_step(model, step)
            found.append((masks_of(model)["0"].int().tolist(), hook.settled(step)))
    # At step 2 they are -0.05, 0.3 and 0.1; at step 3 the one that stays, 0.2, is below it too.
    assert found == [([[1, 1, 1]], False), ([[0, 1, 0]], True), ([[0, 1, 0]], True)]


def test_a_threshold_below_all_scores_warns(caplog):
    assert held(with_weights([[0.3, 0.5]])) == [[[1, 1]]]
    assert "none scores below the threshold of 0.25" in caplog.text


@pytest.mark.parametrize("killed_after", [1, 5, 9, 14])
def test_a_threshold_killed_and_resumed_is_the_same_bit_for_bit(tmp_path, killed_after):
    def hook():
        return Sparsifier(threshold=0.3, normalize="max", schedule=OneShotSchedule(at=6))

    whole = make_model()
    train(whole, hook(), optimizer="adamw")
    assert 0.2 < density_of(whole).total < 0.9
    file = tmp_path / "training.safetensors"
    with pytest.raises(Killed):
        finetune_(make_model(), DiesAfter(killed_after), train_batches, hooks=[hook()], epochs=2, optimizer="adamw",
                  checkpoint=file, checkpoint_every_steps=1)  # fmt: skip
    fresh = make_model(7)
    assert train(fresh, hook(), optimizer="adamw", checkpoint=file).resumed
    assert all(value.equal(fresh.state_dict()[name]) for name, value in whole.state_dict().items())
    with pytest.raises(ArtifactError, match="other settings"):
        train(make_model(), Sparsifier(threshold=0.2, normalize="max", schedule=OneShotSchedule(at=6)),
              optimizer="adamw", checkpoint=file)  # fmt: skip


def test_a_checkpoint_from_before_thresholds_goes_on():
    assert set(Sparsifier(0.5).settings()) == {"density", "pattern", "scope", "overrides", "floor", "skip", "normalize",
                                               "score", "schedule"}  # fmt: skip
    assert Sparsifier(threshold=0.0).settings()["threshold"] == 0.0


@pytest.mark.parametrize("killed_after", [1, 5, 9, 14])
@pytest.mark.parametrize("score", [MagnitudeWeightScore(), TaylorWeightScore(), WandaWeightScore()])
def test_killed_and_resumed_is_the_same_bit_for_bit(tmp_path, killed_after, score):
    def hook():
        schedule = AgpSchedule(begin=2, end=12, removals=5)
        if score.name == "magnitude":
            return Sparsifier(0.5, "1:2", schedule=schedule)
        return Sparsifier(0.2, overrides={"4": 0.6}, score=score, schedule=schedule, task=TASK, batches=CALIBRATION)

    settings = {"optimizer": "adamw", "validation": [data(32, 5)]}
    whole = make_model()
    expected = train(whole, hook(), **settings)
    model, file = make_model(), tmp_path / "training.safetensors"
    with pytest.raises(Killed):
        finetune_(model, DiesAfter(killed_after), train_batches, hooks=[hook()], epochs=2, checkpoint=file,
                  checkpoint_every_steps=1, **settings)  # fmt: skip
    fresh = make_model(7)
    torch.rand(5)
    report = train(fresh, hook(), checkpoint=file, **settings)
    assert report.resumed
    assert report.history == expected.history
    assert all(value.equal(fresh.state_dict()[name]) for name, value in whole.state_dict().items())
    # Only models of the final density may be the result; the first epoch ends before it.
    assert report.best_epoch == 2


def test_a_checkpoint_of_another_sparsifier_is_refused(tmp_path):
    file = tmp_path / "training.safetensors"
    train(make_model(), Sparsifier(0.5), checkpoint=file)
    with pytest.raises(ArtifactError, match="other settings"):
        train(make_model(), Sparsifier(0.4), checkpoint=file)
    scores = score_weights(make_model(), MagnitudeWeightScore())
    with pytest.raises(ArtifactError, match="other settings"):
        train(make_model(), Sparsifier(0.5, scores=scores), checkpoint=file)


def test_zeros_that_are_there_are_held_and_fixed_scores_are_followed():
    model = make_model()
    first = {"0": torch.rand(12, 6, generator=torch.Generator().manual_seed(0)) > 0.5}
    apply_masks_(model, first)
    train(model, Sparsifier(1.0))
    assert masks_of(model)["0"].equal(first["0"])
    assert masks_of(model)["4"].all()
    # Scores that want the zeros back do not get them.
    scores = {"0": (~first["0"]).double() + 1.0, "4": torch.arange(48.0).reshape(4, 12)}
    train(model, Sparsifier(0.25, scope="layer", scores=scores, schedule=IterativeSchedule(2)))
    assert not masks_of(model)["0"][~first["0"]].any()
    assert masks_of(model)["4"].flatten().tolist() == [False] * 36 + [True] * 12


def test_skipped_layers_are_left_alone_and_overrides_have_their_own_density():
    model = make_model()
    train(model, Sparsifier(0.5, skip=["4"]))
    assert density_of(model).layers == {"0": 0.5, "4": 1.0}
    model = make_model()
    train(model, Sparsifier(0.5, overrides={"4": 0.25}, schedule=AgpSchedule(removals=3)))
    assert density_of(model).layers == {"0": 0.5, "4": 0.25}


def test_masks_survive_quantisation_aware_training():
    model = make_model().eval()
    apply_masks_(model, choose_masks(model, score_weights(model, MagnitudeWeightScore()), 0.5))
    x = data(16, 3)[0]
    plan = CompressionPlan(layer_formats={"0": LayerFormat(4), "4": LayerFormat(4)}, activation_bits=8)
    prepared = prepare_quantized(analyze(model, x).traced.module, plan, [(x,)], MinMaxQuantizer())
    before = masks_of(prepared)
    assert density_of(prepared).layers == {"0": 0.5, "4": 0.5}
    weight = prepared.get_parameter("0.weight").detach().clone()
    train(prepared, Sparsifier(1.0), lr=0.01)
    assert all(mask.equal(before[name]) for name, mask in masks_of(prepared).items())
    assert not torch.equal(prepared.get_parameter("0.weight"), weight)


def test_what_cannot_be_is_refused_before_the_first_step():
    model = make_model()
    with pytest.raises(CompressError, match="ends after the training of 16 steps"):
        train(model, Sparsifier(0.5, schedule=OneShotSchedule(at=17)))
    with pytest.raises(CompressError, match="needs the 'task' and 'batches'"):
        train(model, Sparsifier(0.5, score=TaylorWeightScore()))
    with pytest.raises(PlanError, match="'9' names no layer"):
        train(model, Sparsifier(0.5, skip=["9"]))
    with pytest.raises(PlanError, match="'9' names no layer"):
        train(model, Sparsifier(0.5, overrides={"9": 0.5}))
    with pytest.raises(PlanError, match="no scores of layer '4'"):
        train(model, Sparsifier(0.5, scores={"0": torch.ones(12, 6)}))
    with pytest.raises(CompressError, match=r"must be in \[0.5, 1\]"):
        Sparsifier(0.2, "2:4")
    with pytest.raises(CompressError, match="a 'density' or a 'threshold', not both"):
        Sparsifier(0.2, threshold=0.1)
    with pytest.raises(CompressError, match="'threshold' parameter of choose_masks must be a finite number"):
        Sparsifier(threshold=float("nan"))
    with pytest.raises(CompressError, match="needs the 'schedule' OneShotSchedule: 'agp' is told by a density"):
        Sparsifier(threshold=0.1, schedule=AgpSchedule())
    assert all(value.equal(make_model().state_dict()[name]) for name, value in model.state_dict().items())
    nn.init.zeros_(model[4].weight)
    with pytest.raises(CompressError, match="'4' is all zeros"):
        train(model, Sparsifier(0.5))
